"""Second moments of a layer's inputs: all that the calibrated factorizations need to know of the data."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from regraft.errors import ShapeError


@dataclass(slots=True)
class Moments:
    """Sums over calibration rows x, kept in float64.

    Attributes:
        features: extent n of a row.
        rows: number of rows seen.
        second: Σ x xᵀ, [n, n].
        first: Σ x, [n].
        peak: largest |x| of every feature, [n].
    """

    features: int
    rows: int = 0
    second: Tensor = field(default_factory=lambda: torch.zeros(0, 0, dtype=torch.float64))
    first: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.float64))
    peak: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.float64))

    def __post_init__(self) -> None:
        if self.rows == 0:
            self.second = torch.zeros(self.features, self.features, dtype=torch.float64)
            self.first = torch.zeros(self.features, dtype=torch.float64)
            self.peak = torch.zeros(self.features, dtype=torch.float64)

    def update(self, x: Tensor) -> None:
        """Add rows; x [..., n], any floating type.

        Raises:
            ShapeError: when the last extent is not n.
        """
        if x.dim() < 1 or x.shape[-1] != self.features:
            raise ShapeError(f"calibration rows must end in {self.features} features; got {list(x.shape)}")
        rows = x.detach().reshape(-1, self.features).double()
        if self.rows == 0:  # on the device of the first rows, which is not known before
            self.second, self.first, self.peak = self.second.to(rows), self.first.to(rows), self.peak.to(rows)
        self.second.addmm_(rows.t(), rows)
        self.first.add_(rows.sum(dim=0))
        if len(rows):
            self.peak = torch.maximum(self.peak, rows.abs().amax(dim=0))
        self.rows += len(rows)

    @property
    def gram(self) -> Tensor:
        """E[x xᵀ], [n, n]; zeros when no row was seen."""
        return self.second / max(self.rows, 1)

    @property
    def mean(self) -> Tensor:
        """E[x], [n]; zeros when no row was seen."""
        return self.first / max(self.rows, 1)

    @property
    def covariance(self) -> Tensor:
        """E[(x - mean)(x - mean)ᵀ], [n, n]."""
        return self.gram - torch.outer(self.mean, self.mean)

    def regularized(self, *, centred: bool, ridge: float) -> Tensor:
        """Covariance (or E[x xᵀ], when not centred) with a share `ridge` of its mean power added in every direction."""
        moment = self.covariance if centred else self.gram
        if ridge > 0:
            power = float(moment.diagonal().mean())
            moment = moment + ridge * power * torch.eye(len(moment), dtype=moment.dtype, device=moment.device)
        return moment


def mean_power(matrix: Tensor, moment: Tensor) -> float:
    """Return tr(matrix · moment · matrixᵀ), the mean of ‖matrix · x‖² over inputs x with that second moment."""
    return float(((matrix @ moment.to(matrix.device)) * matrix).sum())


def relative_error(tail: float, total: float) -> float:
    """Return sqrt(tail / total) of two mean squares; 0 when there is nothing to be wrong about."""
    return (max(tail, 0.0) / total) ** 0.5 if total > 0 else 0.0
