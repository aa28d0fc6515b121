"""Monarch factors fitted to what a layer's inputs look like, from their moments alone.

The outputs of one group depend on its k blocks only, so that every group is a problem of its own: find D_1 ... D_k of
rank ρ with the least E‖W x - Σ D_a x_a‖². It is solved by descent, from the better of two starts (the projection of the
weight; every block fitted to its own inputs as if there were no others):

1. One block after the other is replaced by the best one given the others. With R the part of W that the others leave
   over, C = E[R x x_aᵀ] and G = E[x_a x_aᵀ], that is U Uᵀ C G⁺, U the ρ leading left singular vectors of C G^(-1/2).
2. The second factor is fitted once more, for all blocks of a group together, by least squares.

No step can raise the error, so that it is never above that of the projection. A ridge does not change that: the
projection is the closest to the weight, so that a penalty on the distance from it only pulls towards the weight.

Sources: reduced-rank regression (Izenman 1975); block coordinate descent.
"""

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from regraft.errors import ShapeError
from regraft.numerics.moments import Moments, mean_power, relative_error
from regraft.numerics.monarch import Factors, check_rank, pack, truncated_blocks
from regraft.numerics.partition import Partition

SINGULAR: Final = 1e-12
"""Share of the largest eigenvalue below which a direction counts as never seen."""


def fit_outputs(
    weight: Tensor,
    partition: Partition,
    rank: int,
    moments: Moments,
    bias: Tensor | None = None,
    *,
    centred: bool = True,
    ridge: float = 0.1,
) -> Factors:
    """Return factors whose output is close on inputs with these moments.

    Args:
        weight: [out, in], any float dtype; computed in float64 on its device, not changed.
        partition: the blocks.
        rank: of each block, 1 to min(s, p).
        moments: of the layer's inputs.
        bias: [out] or None.
        centred: keep the mean output exact by a new bias; then the result has a bias even if the layer had none.
        ridge: share of the mean input power that is added to every direction, against too little calibration data.

    Returns:
        Factors with a mean squared error on these inputs that is at most that of `monarch.project`.

    Raises:
        ShapeError: when the rank is out of range, or the moments are of another width, or of no row at all.
    """
    check_rank(partition, rank)
    if moments.features != partition.in_features or moments.rows == 0:
        raise ShapeError(
            f"moments of {moments.rows} rows of {moments.features} features do not fit a weight with "
            f"{partition.in_features} inputs"
        )
    w = weight.double()
    moment = moments.regularized(centred=centred, ridge=ridge).to(w.device)
    fit = _Fit(partition.cut(w), partition.cut_inputs(moment), rank)
    up, down = fit.second_factor(*fit.descend(*fit.start()))
    factors = pack(partition, up, down, like=weight, bias=bias, error=0.0)
    return _finish(w, weight.dtype, factors, moments, centred=centred)


def sample_error(weight: Tensor, factors: Factors, x: Tensor, bias: Tensor | None = None) -> float:
    """Return ‖y - ŷ‖ / ‖W x‖ on given rows x [rows, in], in float64."""
    rows = x.double()
    product = rows @ weight.double().t()
    difference = product - rows @ factors.dense().t()
    if bias is not None:
        difference += bias.double()
    if factors.bias is not None:
        difference -= factors.bias.double()
    return relative_error(float(difference.square().sum()), float(product.square().sum()))


def _finish(w: Tensor, dtype: torch.dtype, factors: Factors, moments: Moments, *, centred: bool) -> Factors:
    """The factors as they are stored, with the bias that goes with them and their error on the inputs."""
    residual = w - factors.dense()
    bias = factors.bias
    if centred:
        shift = residual @ moments.mean.to(w.device)
        bias = (shift if bias is None else bias.double() + shift).to(dtype)
    measured = moments.covariance if centred else moments.gram
    error = relative_error(mean_power(residual, measured), mean_power(w, moments.gram))
    return Factors(factors.partition, factors.right, factors.left, bias, error)


@dataclass(frozen=True, slots=True, eq=False)
class _Fit:
    """The problem of all groups.

    Attributes:
        blocks: of the weight, [k, l, s, p].
        moment: of the inputs in the order of the blocks, [k · p, k · p].
        rank: ρ.
    """

    blocks: Tensor
    moment: Tensor
    rank: int

    def start(self) -> tuple[Tensor, Tensor]:
        """Factors up [k, l, s, ρ], down [k, l, ρ, p] of the better start, chosen for each group."""
        up, down, _ = truncated_blocks(self.blocks, self.rank)
        own_up = torch.empty_like(up)
        for a in range(len(self.blocks)):
            root = _root(self._moment_of(a))
            own_up[a] = torch.linalg.svd(self.blocks[a] @ root, full_matrices=False)[0][..., : self.rank]
        own_down = own_up.transpose(-1, -2) @ self.blocks
        better = (self._loss(own_up @ own_down) < self._loss(up @ down))[None, :, None, None]
        return torch.where(better, own_up, up), torch.where(better, own_down, down)

    def descend(self, up: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
        """One sweep over the blocks of every group, each set to the best one given the others."""
        up, down = up.clone(), down.clone()
        left_over = self.blocks - up @ down
        for a in range(len(self.blocks)):
            left_over[a] = self.blocks[a]
            whitener = _inverse_root(self._moment_of(a))
            cross = self._by_group(left_over) @ self.moment[:, self._columns(a)]  # [l, s, p]
            whitened = cross @ whitener
            up[a] = torch.linalg.svd(whitened, full_matrices=False)[0][..., : self.rank]
            down[a] = (up[a].transpose(-1, -2) @ whitened) @ whitener
            left_over[a] = self.blocks[a] - up[a] @ down[a]
        return up, down

    def second_factor(self, up: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
        """`down` as it is, and `up` fitted for all blocks of a group together."""
        k, l, s, rank = up.shape  # noqa: E741 - the formula's letters
        seen = torch.stack([down[a] @ self.moment[self._columns(a)] for a in range(k)], dim=1)  # [l, k, ρ, k · p]
        seen = seen.reshape(l, k * rank, -1)
        wide_down = torch.zeros(l, k, rank, k, down.shape[-1], dtype=down.dtype, device=down.device)
        for a in range(k):
            wide_down[:, a, :, a] = down[a]
        wide_down = wide_down.reshape(l, k * rank, -1)
        error = self._by_group(self.blocks - up @ down) @ seen.transpose(-1, -2)  # [l, s, k · ρ]
        inner = seen @ wide_down.transpose(-1, -2)
        change = error @ torch.linalg.pinv(inner, rtol=SINGULAR, hermitian=True)
        return up + change.reshape(l, s, k, rank).permute(2, 0, 1, 3), down

    def _loss(self, blocks: Tensor) -> Tensor:
        """Mean squared error of every group, [l]."""
        error = self._by_group(self.blocks - blocks)
        return ((error @ self.moment) * error).sum(dim=(1, 2))

    def _by_group(self, blocks: Tensor) -> Tensor:
        k, l, s, p = blocks.shape  # noqa: E741 - the formula's letters
        return blocks.permute(1, 2, 0, 3).reshape(l, s, k * p)

    def _columns(self, a: int) -> slice:
        width = self.blocks.shape[-1]
        return slice(a * width, (a + 1) * width)

    def _moment_of(self, a: int) -> Tensor:
        return self.moment[self._columns(a), self._columns(a)]


def _root(moment: Tensor) -> Tensor:
    values, basis = torch.linalg.eigh(moment)
    return basis * values.clamp_min(0).sqrt()


def _inverse_root(moment: Tensor) -> Tensor:
    """Symmetric G^(-1/2) on the directions that were seen, zero on the others."""
    values, basis = torch.linalg.eigh(moment)
    known = values > SINGULAR * values.abs().max()
    inverse = torch.where(known, values, torch.ones_like(values)).rsqrt() * known
    return (basis * inverse) @ basis.t()
