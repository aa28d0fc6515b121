"""What products in floating point share: tile parameters, blocks that fit the registers, and packed weights."""

# TVM has no types, so that those of expressions are unknown.
# pyright: reportUnknownLambdaType=false

from collections.abc import Mapping
from typing import Any, Final

import torch
from torch import Tensor

from regraft.backends.tvm.kernels.cpu._host import Host
from regraft.backends.tvm.kernels.cpu._ir import load
from regraft.backends.tvm.kernels.cpu._product import Block, Finish

TILES: Final[Mapping[str, tuple[int, ...]]] = {
    "block_rows": (8, 4, 2, 1),
    "block_vectors": (2, 1, 4),
    "row_chunk": (32, 16, 64, 128, 256),
}
"""Rows and vectors of the block of sums in registers; rows that run as one task."""

_BITS: Final = {"float32": 32, "float64": 64}


def default_tiles(host: Host) -> Mapping[str, int]:
    """Return tiles whose sums fit: 16 of 32 registers with AVX-512, else 8 of 16."""
    return {"block_rows": 8 if "avx512f" in host.features else 4, "block_vectors": 2, "row_chunk": 32}


def block_of(tiles: Mapping[str, int], host: Host, dtype: str) -> Block:
    """Return the block of sums that tile parameters describe."""
    return Block(tiles["block_rows"], tiles["block_vectors"], host.lanes(_BITS[dtype]), dtype)


def packed(weight: Tensor, block: Block) -> Tensor:
    """Return a weight [out, in] as [panels, in, columns of a panel], flat; what is beyond `out` is 0."""
    out, inner = weight.shape
    padded = weight.new_zeros(block.panels(out) * block.columns, inner)
    padded[:out] = weight
    return padded.view(-1, block.columns, inner).transpose(1, 2).contiguous().flatten()


def padded_vector(vector: Tensor | None, columns: int, block: Block) -> Tensor:
    """Return a bias, with zeros up to the end of the last panel; zeros when it is absent."""
    found = torch.zeros(block.size(columns), dtype=getattr(torch, block.dtype))
    if vector is not None:
        found[:columns] = vector
    return found


def plus(bias: Any, block: Block, first: Any = 0) -> Finish:
    """Return what adds a padded bias, which begins at a place of its buffer."""
    return lambda place, value: value + load(bias, [first + place.column], block.lanes)
