"""Attention in rank space: heads as wide as a rank, because products of projections need no more.

    scores:  (x Wqᵀ + bq) (c Wkᵀ + bk)ᵀ  =  x (Wqᵀ Wk) cᵀ + (bq Wk) cᵀ  + what is the same for all keys of a query
    values:  softmax · (c Wvᵀ + bv) Woᵀ  =  softmax · c (Wvᵀ Woᵀ) + bv Woᵀ

per head, without rotary positions. Wqᵀ Wk (with the row bq Wk below it) and Wvᵀ Woᵀ are of rank head size at most; each
is cut to its rank by one truncated SVD, which is the best that two factors can do for the product, and better than
cutting both factors apart. Heads that share a key (grouped heads) are stacked and cut together.

Computed in float64. Source: derived from FlashSVD (Shao et al. 2025, arXiv:2508.01506), whose per-head factors are cut
apart.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from regraft.errors import ShapeError


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


def joint_factors(left: Tensor, right: Tensor, rank: int) -> Shared:
    """Cut the products left_hᵀ · right_g to a rank, those of the query heads h of a kv head g together.

    Args:
        left: [heads, head, m]; heads are grouped: h belongs to g = h // (heads / kv_heads).
        right: [kv_heads, head, n].
        rank: of the factors, from 1 to the head size.

    Returns:
        factors of the dtype of `left`, whose products are closest to the given ones in Frobenius norm.

    Raises:
        ShapeError: when heads do not divide evenly, or the rank is out of range.
    """
    most = most_rank(left, right)
    if not 1 <= rank <= most:
        raise ShapeError(f"rank must be at least 1 and at most {most} for heads of {left.shape[1]}; got {rank}")
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
