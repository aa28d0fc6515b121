"""Random content for values whose types are known: what a graph is run on when nobody gave inputs."""

from typing import Final

import torch

from regraft.graph.symbols import bind, dim_expr, is_plain_symbol
from regraft.graph.types import Dim, TensorType, torch_dtype

DEFAULT_EXTENTS: Final = (2, 8)
"""Extents of dynamic dims: of the first one (the batch), and of the others."""


def random_value(kind: TensorType, extents: dict[str, int], generator: torch.Generator) -> torch.Tensor | None:
    """Return normal numbers, or zeros and ones for integers and booleans; None when the type is not known.

    Args:
        kind: the value's type.
        extents: of dynamic dims; one that is missing is added.
        generator: what draws.
    """
    dtype = torch_dtype(kind.dtype or "")
    if dtype is None or kind.shape is None:
        return None
    shape = [_extent(dim, extents) for dim in kind.shape]
    if dtype.is_floating_point:
        return torch.randn(shape, generator=generator).to(dtype)
    return torch.randint(0, 2, shape, generator=generator).to(dtype)


def _extent(dim: Dim, extents: dict[str, int]) -> int:
    if isinstance(dim, int):
        return dim
    if is_plain_symbol(dim):
        return _of_symbol(dim, extents)
    expr = dim_expr(dim)
    return bind(expr, {str(symbol): _of_symbol(str(symbol), extents) for symbol in sorted(expr.free_symbols, key=str)})


def _of_symbol(name: str, extents: dict[str, int]) -> int:
    # The first dynamic dim is the batch; torch may know the batch of a second input by another name ("batch_2").
    is_batch = not extents or name.startswith("batch")
    return extents.setdefault(name, DEFAULT_EXTENTS[0 if is_batch else 1])
