"""Low-rank factorizations of a linear layer, from its weight alone or from what its inputs look like.

With G = E[x xᵀ] of the inputs, the best rank-r output of y = W x in the mean square is U_r U_rᵀ y, with U_r the
leading eigenvectors of W G Wᵀ. The same approximation is known as LoRD, as DRONE and as SVD-LLM; taking the covariance
instead of G and mending the bias (AFM) never does worse. None of it needs an inverse, so a singular G is no special
case.

Sources: Eckart & Young 1936; Kaushal et al. 2023, arXiv:2309.14021 (LoRD); Yu & Wu, AAAI 2023 (AFM).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from regraft.errors import ShapeError
from regraft.numerics.moments import Moments, mean_power, relative_error


@dataclass(frozen=True, slots=True, eq=False)
class Factors:
    """Two thin factors of a weight: W ≈ up · down.

    Attributes:
        down: [rank, in], in the weight's dtype.
        up: [out, rank].
        bias: bias that goes with the factors [out], or None when there is none.
        error: ‖y - ŷ‖ / ‖W x‖ in the mean square over the inputs that the factors were made for: isotropic ones when
            made from the weight alone (then it is ‖W - up · down‖ / ‖W‖), else the calibration inputs. No unit, 0 is
            exact.
    """

    down: Tensor
    up: Tensor
    bias: Tensor | None
    error: float

    @property
    def rank(self) -> int:
        """Extent shared by the factors."""
        return int(self.down.shape[0])


def rank_for(out_features: int, in_features: int, keep: float) -> int:
    """Return the largest rank at which the factors hold at most `keep` of the dense parameters (0 when none does)."""
    # A share computed from a rank gives that rank back, although it may miss it by rounding.
    return int(keep * out_features * in_features / (out_features + in_features) + 1e-9)


def rank_for_energy(energies: Tensor, energy: float) -> int:
    """Return the smallest rank, at least 1, whose leading energies (descending) hold a share `energy` of their sum."""
    total = energies.sum()
    if total <= 0:
        return 1
    share = torch.cumsum(energies, dim=0) / total
    # The last entries of a cumulative sum may miss 1 by rounding, hence the tolerance.
    reached = torch.nonzero(share >= energy - 1e-12)
    return int(reached[0]) + 1 if len(reached) else len(energies)


def weight_energies(weight: Tensor) -> Tensor:
    """Return the squared singular values of a weight [out, in], descending, in float64."""
    return torch.linalg.svdvals(weight.double()).square()


def output_energies(weight: Tensor, moments: Moments, *, centred: bool = True, ridge: float = 0.0) -> Tensor:
    """Return the mean energies of y = W x along its principal directions, descending, in float64."""
    return _principal_directions(weight.double(), moments.regularized(centred=centred, ridge=ridge))[1]


def truncated_svd(weight: Tensor, rank: int, bias: Tensor | None = None) -> Factors:
    """Return the factors closest to the weight in Frobenius norm.

    Args:
        weight: [out, in], any float dtype, on any device; computed in float64 there, not changed.
        rank: 1 to min(out, in).
        bias: [out], passed through.

    Returns:
        Factors whose error is sqrt(Σ_{i>rank} σᵢ² / Σ σᵢ²). σ is split evenly, so that both factors stay in the range
        of 16-bit types.

    Raises:
        ShapeError: when the rank is out of range or the weight is not a matrix.

    Source: Eckart & Young 1936.
    """
    _check(weight, rank)
    u, s, vt = torch.linalg.svd(weight.double(), full_matrices=False)
    root = s[:rank].sqrt()
    total = float(s.square().sum())
    tail = float(s[rank:].square().sum())
    return Factors(
        down=(root[:, None] * vt[:rank]).to(weight.dtype).contiguous(),
        up=(u[:, :rank] * root).to(weight.dtype).contiguous(),
        bias=bias,
        error=relative_error(tail, total),
    )


def output_projection(
    weight: Tensor,
    rank: int,
    moments: Moments,
    bias: Tensor | None = None,
    *,
    centred: bool = True,
    ridge: float = 0.0,
) -> Factors:
    """Return the factors whose output is closest on inputs with these moments.

    Args:
        weight: [out, in], any float dtype; computed in float64 on its device, not changed.
        rank: 1 to min(out, in).
        moments: of the layer's inputs.
        bias: [out] or None.
        centred: keep the mean output exact by a new bias (AFM); then the result has a bias even if the layer had none.
        ridge: share of the mean input power that is added to every direction, against too little calibration data.

    Returns:
        up = U_r, down = U_rᵀ W and bias + (I - U_r U_rᵀ) W mean(x). Without a ridge the error is the tail identity,
        sqrt(Σ_{i>rank} λᵢ / tr(W G Wᵀ)), never above that of `truncated_svd` on the same inputs.

    Raises:
        ShapeError: when the rank is out of range, or the moments are of another width, or of no row at all.
    """
    _check(weight, rank)
    if moments.features != weight.shape[1] or moments.rows == 0:
        raise ShapeError(
            f"moments of {moments.rows} rows of {moments.features} features do not fit a weight with "
            f"{weight.shape[1]} inputs"
        )
    w = weight.double()
    basis = _principal_directions(w, moments.regularized(centred=centred, ridge=ridge))[0][:, :rank]
    down = basis.t() @ w
    residual = w - basis @ down
    mean = moments.mean.to(w.device)
    new_bias = bias
    if centred:
        shift = residual @ mean
        new_bias = (shift if bias is None else bias.double() + shift).to(weight.dtype)
    measured = moments.covariance if centred else moments.gram
    return Factors(
        down=down.to(weight.dtype).contiguous(),
        up=basis.to(weight.dtype).contiguous(),
        bias=new_bias,
        error=relative_error(mean_power(residual, measured), mean_power(w, moments.gram)),
    )


def output_error(weight: Tensor, factors: Factors, moments: Moments, bias: Tensor | None = None) -> float:
    """Return ‖y - ŷ‖ / ‖W x‖ in the mean square over inputs with these moments, from the moments alone."""
    w = weight.double()
    difference = w - factors.up.double() @ factors.down.double()
    offset = torch.zeros(len(w), dtype=torch.float64, device=w.device)
    if bias is not None:
        offset += bias.double()
    if factors.bias is not None:
        offset -= factors.bias.double()
    cross = float(2 * offset @ (difference @ moments.mean.to(w.device)))
    tail = mean_power(difference, moments.gram) + cross + float(offset @ offset)
    return relative_error(tail, mean_power(w, moments.gram))


def sample_error(weight: Tensor, factors: Factors, x: Tensor, bias: Tensor | None = None) -> float:
    """Return ‖y - ŷ‖ / ‖W x‖ on given rows x [rows, in], in float64."""
    rows = x.double()
    product = rows @ weight.double().t()
    difference = product - (rows @ factors.down.double().t()) @ factors.up.double().t()
    if bias is not None:
        difference += bias.double()
    if factors.bias is not None:
        difference -= factors.bias.double()
    return relative_error(float(difference.square().sum()), float(product.square().sum()))


def _principal_directions(w: Tensor, moment: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvectors (columns, as many as min(w.shape)) and eigenvalues of w · moment · wᵀ, descending."""
    moment = moment.to(w.device)
    out_features, in_features = w.shape
    if out_features <= in_features:
        energies, vectors = torch.linalg.eigh(w @ moment @ w.t())
        return vectors.flip(-1), energies.flip(-1).clamp_min(0)
    # A tall weight: within the span of its columns, at the cost of the smaller side. Directions without any energy
    # (a singular moment) lie in that span, too, so that all of them together reproduce the weight itself.
    span, inner = torch.linalg.qr(w)
    energies, vectors = torch.linalg.eigh(inner @ moment @ inner.t())
    return span @ vectors.flip(-1), energies.flip(-1).clamp_min(0)


def _check(weight: Tensor, rank: int) -> None:
    if weight.dim() != 2:
        raise ShapeError(f"a weight to factorize must be [out, in]; got {list(weight.shape)}")
    largest, shape = min(weight.shape), f"{weight.shape[0]}x{weight.shape[1]}"
    if not 1 <= rank <= largest:
        raise ShapeError(f"rank must be at least 1 and at most {largest} for a {shape} weight; got {rank}")
