"""Low-rank linear layer: a dense weight held as two thin factors.

    y = (x · downᵀ) · upᵀ + bias            x: [..., in], down: [rank, in], up: [out, rank], bias: [out]

Parameters and multiply-adds a row: rank · (in + out), against in · out dense. Smaller than dense while
rank < in · out / (in + out).

Source: truncated SVD (Eckart & Young 1936); as a layer in Denton et al. 2014, arXiv:1404.0736.
"""

from typing import Final

import sympy

from regraft.graph.cost_types import OpCost
from regraft.graph.symbols import dim_expr, numel
from regraft.graph.types import TensorType, dtype_bits
from regraft.ops._builder import Builder, V
from regraft.ops._op import Example, Op, require


def infer(x: TensorType, down: TensorType, up: TensorType, bias: TensorType | None = None) -> TensorType:
    """Return the type of y: x's leading dims, then `out`."""
    require(down.rank == 2 and up.rank == 2, f"lowrank_linear: down and up must be 2-D; got {down} and {up}")
    assert down.shape is not None and up.shape is not None
    require(up.shape[1] == down.shape[0], f"lowrank_linear: ranks differ: down {down.shape[0]}, up {up.shape[1]}")
    if bias is not None:
        require(bias.shape == (up.shape[0],), f"lowrank_linear: bias must be [{up.shape[0]}]; got {bias}")
    if x.shape is None:
        return TensorType(x.dtype)
    require(len(x.shape) >= 1, "lowrank_linear: x must have at least one dim; got a scalar")
    require(x.shape[-1] == down.shape[1], f"lowrank_linear: x ends in {x.shape[-1]}, down takes {down.shape[1]}")
    return TensorType(x.dtype, (*x.shape[:-1], up.shape[0]))


def decompose(b: Builder[V], x: V, down: V, up: V, bias: V | None = None) -> V:
    """Two products, the thin one first."""
    y = b.linear(b.linear(x, down), up)
    return y if bias is None else b.add(y, bias)


def cost(x: TensorType, down: TensorType, up: TensorType, bias: TensorType | None = None) -> OpCost:
    """Multiply-adds of both products; the buffer between them lives only inside the op."""
    if x.shape is None or down.shape is None or up.shape is None:
        return OpCost()
    rows, rank = numel(x.shape[:-1]), dim_expr(down.shape[0])
    width = dim_expr(down.shape[1]) + dim_expr(up.shape[0])
    return OpCost(
        macs=rows * rank * width,
        transient_bytes=rows * rank * sympy.Rational(dtype_bits(x.dtype), 8),
    )


op: Final = Op(
    name="lowrank_linear",
    doc="y = (x · downᵀ) · upᵀ + bias, a linear layer held as two thin factors",
    infer=infer,
    decompose=decompose,
    cost=cost,
    linear_weights=("down", "up"),
    chain=("down", "up"),
    examples=(
        Example("matrix", {"x": (5, 7), "down": (3, 7), "up": (4, 3), "bias": (4,)}),
        Example("batched", {"x": (2, 5, 7), "down": (3, 7), "up": (4, 3), "bias": (4,)}, dynamic=(0, 1)),
        Example("no bias", {"x": (2, 5, 7), "down": (3, 7), "up": (4, 3)}, dynamic=(0, 1)),
        Example("rank one", {"x": (2, 6, 11), "down": (1, 11), "up": (13, 1), "bias": (13,)}, dynamic=(0, 1)),
        Example("four dims", {"x": (2, 3, 4, 6), "down": (5, 6), "up": (8, 5), "bias": (8,)}, dynamic=(0, 2)),
        Example("extents of one", {"x": (3, 1), "down": (1, 1), "up": (1, 1), "bias": (1,)}),
    ),
)
