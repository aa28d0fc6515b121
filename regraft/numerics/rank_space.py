"""Attention in rank space: heads as wide as a rank, because products of projections need no more.

    scores:  (x Wqᵀ + bq) (c Wkᵀ + bk)ᵀ  =  x (Wqᵀ Wk) cᵀ + (bq Wk) cᵀ  + what is the same for all keys of a query
    values:  softmax · (c Wvᵀ + bv) Woᵀ  =  softmax · c (Wvᵀ Woᵀ) + bv Woᵀ

per head, without rotary positions. Wqᵀ Wk (with the row bq Wk below it) and Wvᵀ Woᵀ are of rank head size at most; each
is cut to its rank by one truncated SVD, which is the best that two factors can do for the product, and better than
cutting both factors apart. Heads that share a key (grouped heads) are stacked and cut together.

With second moments A Aᵀ of x and B Bᵀ of c, what is cut is Aᵀ M B instead of M: then scores (what is attended) are met
best on pairs of such x and c. The cut is M̂ = leftᵀ · P · right with a matrix P of the head size: no moment is inverted.

Computed in float64. Source: derived from FlashSVD (Shao et al. 2025, arXiv:2508.01506), whose per-head factors are cut
apart.
"""

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from regraft.errors import ShapeError

_NOTHING: Final = 1e-13
"""Share of the largest singular value that rounding leaves of a zero."""


@dataclass(frozen=True)
class Shared:
    """One product of each kv head, in two factors.

    Attributes:
        left: [heads, rank, m]: the factor of each query head.
        right: [kv_heads, rank, n]: the factor that the query heads of a kv head share.
        error: ‖M - M̂‖ / ‖M‖ over all heads (0 is exact).
    """

    left: Tensor
    right: Tensor
    error: float


def most_rank(left: Tensor, right: Tensor) -> int:
    """Return the rank from which on nothing is cut: the head size, or less where a factor is narrower.

    Raises:
        ShapeError: when heads do not divide evenly.
    """
    if left.dim() != 3 or right.dim() != 3 or left.shape[1] != right.shape[1] or left.shape[0] % right.shape[0]:
        raise ShapeError(
            f"rank space needs [heads, head, m] and [kv_heads, head, n]; got {list(left.shape)} and {list(right.shape)}"
        )
    return min(left.shape[1], left.shape[2] * (left.shape[0] // right.shape[0]), right.shape[2])


def joint_rank(left: Tensor, right: Tensor, tolerance: float) -> int:
    """Return the largest numerical rank of the products leftᵀ · right of all kv heads; see `joint_factors`.

    Args:
        left: [heads, head, m].
        right: [kv_heads, head, n].
        tolerance: singular values up to this share of a kv head's largest one count as zero.

    Raises:
        ShapeError: when heads do not divide evenly.
    """
    most_rank(left, right)
    _, values, _ = _decomposed(left.double(), right.double())
    floor = values.amax(-1, keepdim=True) * tolerance
    return max(1, int((values > floor).sum(-1).max()))


def root_of(moment: Tensor) -> Tensor:
    """Return A [n, n] with A · Aᵀ = moment, a second moment [n, n] that may be singular; in float64."""
    energies, vectors = torch.linalg.eigh(moment.double())
    return vectors * energies.clamp_min(0).sqrt()


def joint_factors(
    left: Tensor, right: Tensor, rank: int, left_root: Tensor | None = None, right_root: Tensor | None = None
) -> Shared:
    """Cut the products left_hᵀ · right_g to a rank, those of the query heads h of a kv head g together.

    Args:
        left: [heads, head, m]; heads are grouped: h belongs to g = h // (heads / kv_heads).
        right: [kv_heads, head, n].
        rank: of the factors, from 1 to the head size.
        left_root: [m, any], root of the second moment of what `left` is applied to (`root_of`); identity when None.
        right_root: [n, any], the same for `right`.

    Returns:
        factors of the dtype of `left`, whose products, between the roots, are closest to the given ones in Frobenius
        norm; the error is that of the products between the roots.

    Raises:
        ShapeError: when heads do not divide evenly, or the rank is out of range.
    """
    most = most_rank(left, right)
    if not 1 <= rank <= most:
        raise ShapeError(f"rank must be at least 1 and at most {most} for heads of {left.shape[1]}; got {rank}")
    if (left_root is not None or right_root is not None) and rank < most:
        return _weighted(left, right, rank, left_root, right_root)
    heads, kv_heads, m = left.shape[0], right.shape[0], left.shape[2]
    left_base, values, right_base = _decomposed(left.double(), right.double())
    root = values[:, :rank].sqrt()
    # The weight of the singular values is shared evenly, so that both factors stay of one scale.
    first = (left_base[:, :, :rank] * root[:, None, :]).transpose(1, 2)  # [kv, rank, group · m]
    second = right_base[:, :, :rank].transpose(1, 2) * root[:, :, None]
    apart = first.reshape(kv_heads, rank, heads // kv_heads, m).transpose(1, 2).reshape(heads, rank, m)
    lost, total = float(values[:, rank:].square().sum()), float(values.square().sum())
    error = (lost / total) ** 0.5 if total > 0 else 0.0
    return Shared(apart.to(left.dtype).contiguous(), second.to(left.dtype).contiguous(), error)


def _decomposed(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """SVD of each kv head's stacked product, through the QR of its thin factors: nothing of size m · n is built."""
    kv_heads, head, _ = right.shape
    stacked = left.reshape(kv_heads, -1, head, left.shape[2]).transpose(1, 2).reshape(kv_heads, head, -1)
    q_left, r_left = torch.linalg.qr(stacked.transpose(1, 2))
    q_right, r_right = torch.linalg.qr(right.transpose(1, 2))
    u, values, vh = torch.linalg.svd(r_left @ r_right.transpose(1, 2), full_matrices=False)
    return q_left @ u, values, q_right @ vh.transpose(1, 2)


def _weighted(left: Tensor, right: Tensor, rank: int, left_root: Tensor | None, right_root: Tensor | None) -> Shared:
    """The cut between the roots, applied in the space of the heads: what X and Y make of left and right."""
    (heads, head, m), kv_heads = left.shape, right.shape[0]
    grouped = left.double().reshape(kv_heads, -1, head, m)
    weighted = grouped if left_root is None else grouped @ left_root.to(grouped)
    flat = weighted.transpose(1, 2).reshape(kv_heads, head, -1)
    other = right.double() if right_root is None else right.double() @ right_root.to(grouped)
    r_left, r_right = (_triangle(item) for item in (flat, other))
    u, values, vh = torch.linalg.svd(r_left @ r_right.transpose(1, 2), full_matrices=False)
    kept = values[:, :rank]
    # Directions without any energy on the data carry nothing.
    inverse = torch.where(kept > values[:, :1] * _NOTHING, kept, torch.inf).rsqrt()
    x = (r_right.transpose(1, 2) @ vh[:, :rank].transpose(1, 2)) * inverse[:, None]  # [kv, head, rank]
    y = (r_left.transpose(1, 2) @ u[:, :, :rank]) * inverse[:, None]
    first = (x.transpose(1, 2)[:, None] @ grouped).reshape(heads, rank, m)
    lost, total = float(values[:, rank:].square().sum()), float(values.square().sum())
    error = (lost / total) ** 0.5 if total > 0 else 0.0
    second = y.transpose(1, 2) @ right.double()
    return Shared(first.to(left.dtype).contiguous(), second.to(left.dtype).contiguous(), error)


def _triangle(factor: Tensor) -> Tensor:
    """R [k, head] of the QR of factorᵀ, factor [kv, head, any]."""
    return torch.linalg.qr(factor.transpose(1, 2), mode="r")[1]
