"""Monarch matrices: weights whose blocks all have a low rank, and the closest one to a given weight.

Cut a weight into k runs of input features by l groups of output features (`Partition`). A Monarch matrix of block rank
ρ is one whose k · l blocks have at most that rank; as a product it is two block-diagonal factors with a permutation
between them. The blocks do not share anything, so that the closest such matrix in Frobenius norm truncates the SVD of
each, and its squared error is the sum of all tails.

Sources: Dao et al. 2022, arXiv:2204.00595, theorem 1 (square, rank 1); extended here to rectangles, to block counts
that do not divide the extents, and to blocks of rank above 1.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import torch
from torch import Tensor

from regraft.errors import ShapeError
from regraft.numerics.moments import relative_error
from regraft.numerics.partition import Partition

ORDERS: Final = ((False, False), (False, True), (True, False), (True, True))
"""(in_strided, out_strided), from the cheapest to apply to the dearest."""

MUCH_BETTER: Final = 0.5
"""Share of the preferred order's error that another one must get below to be worth its copies."""


@dataclass(frozen=True, slots=True, eq=False)
class Factors:
    """Two stacks of factors; block (a, b) of the matrix is left[b, a·ρ : (a+1)·ρ]ᵀ · right[a, :, b·ρ : (b+1)·ρ]ᵀ.

    Attributes:
        partition: how the matrix is cut into blocks.
        right: [k, p, l · ρ], applied first, in the weight's dtype.
        left: [l, k · ρ, s].
        bias: bias that goes with the factors [out], or None when there is none.
        error: ‖y - ŷ‖ / ‖W x‖ in the mean square over the inputs that the factors were made for: isotropic ones when
            made from the weight alone (then it is ‖W - M‖ / ‖W‖), else the calibration inputs. No unit, 0 is exact.
    """

    partition: Partition
    right: Tensor
    left: Tensor
    bias: Tensor | None
    error: float

    @property
    def rank(self) -> int:
        """ρ, the rank of a block."""
        return int(self.right.shape[2]) // self.partition.out_blocks

    def dense(self) -> Tensor:
        """Return the Monarch matrix M, [out, in], in float64."""
        k, p, _ = self.right.shape
        l, _, s = self.left.shape  # noqa: E741 - the formula's letters
        right = _wide(self.right).reshape(k, p, l, self.rank)
        left = _wide(self.left).reshape(l, k, self.rank, s)
        return self.partition.join(torch.einsum("apbr,bars->absp", right, left))


class Choice(NamedTuple):
    """How a weight is to be projected.

    Attributes:
        partition: the blocks, in the order that suits the weight.
        rank: of each block.
        exact: whether blocks of that rank reproduce the weight, up to the rounding of its dtype.
    """

    partition: Partition
    rank: int
    exact: bool


def pack(partition: Partition, up: Tensor, down: Tensor, *, like: Tensor, bias: Tensor | None, error: float) -> Factors:
    """Return factors from those of every block: up [k, l, s, ρ], down [k, l, ρ, p]; stored in the dtype of `like`."""
    k, l, s, rank = up.shape  # noqa: E741 - the formula's letters
    right = down.permute(0, 3, 1, 2).reshape(k, partition.width, l * rank)
    left = up.permute(1, 0, 3, 2).reshape(l, k * rank, s)
    return Factors(partition, right.to(like.dtype).contiguous(), left.to(like.dtype).contiguous(), bias, error)


def project(weight: Tensor, partition: Partition, rank: int, bias: Tensor | None = None) -> Factors:
    """Return the Monarch matrix closest to the weight in Frobenius norm.

    Args:
        weight: [out, in], any float or complex dtype, on any device; computed in double precision there, not changed.
        partition: the blocks.
        rank: of each block, 1 to min(s, p).
        bias: [out], passed through.

    Returns:
        Factors whose error is sqrt(Σ_blocks Σ_{i>rank} σᵢ² / Σ_blocks Σ σᵢ²). σ is split evenly between them, so that
        both stay in the range of 16-bit types.

    Raises:
        ShapeError: when the rank is out of range or the weight has another shape.

    Source: Dao et al. 2022, arXiv:2204.00595, theorem 1, extended to rectangles and blocks of rank above 1.
    """
    check_rank(partition, rank)
    up, down, s = truncated_blocks(partition.cut(_wide(weight)), rank)
    return pack(partition, up, down, like=weight, bias=bias, error=_tail(s, rank))


def truncated_blocks(blocks: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return up [..., s, rank] and down [..., rank, p] of each block's truncated SVD, and all its singular values."""
    u, s, vh = torch.linalg.svd(blocks, full_matrices=False)
    root = s[..., :rank].sqrt().to(u.dtype)
    return u[..., :rank] * root[..., None, :], root[..., :, None] * vh[..., :rank, :], s


def singular_values(weight: Tensor, partition: Partition) -> Tensor:
    """Return the singular values of every block, [k, l, min(s, p)], descending, in float64."""
    return torch.linalg.svdvals(partition.cut(_wide(weight)))


def choose_blocks(
    weight: Tensor, partition: Partition, rank: int, orders: Sequence[tuple[bool, bool]] = ORDERS
) -> Choice:
    """Return the order of features and the block rank that suit a weight, among ranks up to the given one.

    A weight that is a Monarch matrix of a lower rank in one of the orders (a Fourier transform, a trained Monarch
    layer) gets that order and that rank, and is reproduced exactly, up to the rounding of its dtype. For other weights
    all orders are about as good, and the contiguous one is the cheapest to apply: it is given up only for less than
    half of the error.

    Args:
        weight: [out, in], any float dtype.
        partition: block counts.
        rank: largest block rank, 1 to min(s, p).
        orders: (in_strided, out_strided) to choose from, the preferred one first.

    Raises:
        ShapeError: when the rank is out of range or the weight has another shape.
    """
    check_rank(partition, rank)
    found = [partition.with_order(in_strided=order[0], out_strided=order[1]) for order in orders]
    spectra = [singular_values(weight, candidate) for candidate in found]
    needed = [_needed_rank(weight, partition, values) for values in spectra]
    least = min(needed)
    if least <= rank:
        return Choice(found[needed.index(least)], max(least, 1), True)
    errors = [_tail(values, rank) for values in spectra]
    best = min(errors)
    return Choice(found[errors.index(best) if best < MUCH_BETTER * errors[0] else 0], rank, False)


def hidden_moments(moment: Tensor, factors: Factors) -> Tensor:
    """Return E[h hᵀ] of what the second factor of every group reads, [l, k · ρ, k · ρ], in float64.

    Args:
        moment: E[x xᵀ] of the inputs in the order of the blocks, [k · p, k · p] (`Partition.cut_inputs`).
        factors: their `right` makes h of x.
    """
    k, p, l = factors.right.shape[0], factors.partition.width, factors.partition.out_blocks  # noqa: E741
    right = factors.right.double().reshape(k, p, l, factors.rank)
    seen = torch.einsum("aicj,cjgr->aicgr", moment.double().reshape(k, p, k, p), right)
    return torch.einsum("aigs,aicgr->gascr", right, seen).reshape(l, k * factors.rank, k * factors.rank)


def check_rank(partition: Partition, rank: int) -> None:
    """Raise ShapeError unless blocks of that rank exist."""
    if not 1 <= rank <= partition.full_rank:
        block = f"{partition.height}x{partition.width}"
        raise ShapeError(f"rank must be at least 1 and at most {partition.full_rank} for {block} blocks; got {rank}")


def _needed_rank(weight: Tensor, partition: Partition, values: Tensor) -> int:
    """Largest rank of a block, without what rounding alone can cause: that of the weight's dtype, and of the SVD.

    Rounding errors of standard deviation ε·w give an s by p block a norm of about ε·w·(√s + √p).
    """
    s, p = partition.height, partition.width
    largest = float(values.square().sum(dim=-1).max() / (s * p)) ** 0.5
    stored = torch.finfo(weight.dtype).eps * largest * (s**0.5 + p**0.5)
    computed = torch.finfo(torch.float64).eps * float(values.max()) * max(s, p)
    return int((values > stored + computed).sum(dim=-1).max())


def _tail(values: Tensor, rank: int) -> float:
    return relative_error(float(values[..., rank:].square().sum()), float(values.square().sum()))


def _wide(tensor: Tensor) -> Tensor:
    return tensor.detach().to(torch.promote_types(tensor.dtype, torch.float64))
