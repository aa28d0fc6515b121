"""What the int8 layers share: a product of quantized activations and int8 weights, with its straight-through slope.

One step for the whole activation, x ≈ (codes - zero) · step, is what runtimes have fast kernels for. One step a row is
had from the same kernels: each row is divided by its size first, so that all rows share one range, and the product is
multiplied by it again. The size of a row is max(max(x), -min(x) · 127/128), so that the shared range is that of codes
from -128 to 127: then the largest value of each row falls on a code, where with max|x| it would fall between two.

Step of a row: its size / 127 at most; of the whole activation: (max(x, 0) - min(x, 0)) / 255. The zero is exact, so a
column that is masked to zeros contributes nothing.
"""

from typing import Generic, NamedTuple

import sympy

from regraft.graph.cost_types import Arithmetic, OpCost
from regraft.graph.symbols import dim_expr, numel
from regraft.graph.types import TensorType
from regraft.numerics.int8 import MOST_INPUTS
from regraft.ops._builder import Builder, V
from regraft.ops._op import require


def int8_product(b: Builder[V], x: V, weight: V, scale: V, *, per_row: int) -> V:
    """Return x · (weight · scale)ᵀ over quantized x, in at least single precision.

    Args:
        b: the builder.
        x: [..., in], in at least single precision.
        weight: int8 [out, in].
        scale: [out], of any floating type.
        per_row: 1 for one step a row of x, 0 for one step for all of it.
    """
    quantized = quantize(b, x, per_row=per_row)
    y = scaled(b, b.linear_integer(quantized.codes, weight, quantized.zero), quantized.step, scale)
    y = y if quantized.size is None else b.mul(y, quantized.size)
    return b.straight_through(y, lambda: _smooth_product(b, x, weight, scale))


class Quantized(NamedTuple, Generic[V]):
    """x ≈ (codes - zero) · step, times `size`, [..., 1], where each row was divided by it."""

    codes: V
    step: V
    zero: V
    size: V | None


def quantize(b: Builder[V], x: V, *, per_row: int) -> Quantized[V]:
    """Round x [..., in] to 256 values: one step a row of x for `per_row` 1, one for all of it for 0."""
    size = _size(b, x) if per_row else None
    codes, step, zero = b.dynamic_quantize(x if size is None else b.div(x, size))
    return Quantized(codes, step, zero, size)


def scaled(b: Builder[V], product: V, step: V, scale: V) -> V:
    """Return an integer product in units of x and the weight, in the type of `step`."""
    # This spelling, with both scales multiplied first, is the one that ONNX Runtime fuses into one kernel.
    return b.mul(b.cast_like(product, step), b.mul(step, b.cast_like(scale, step)))


def _size(b: Builder[V], x: V) -> V:
    """By what each row is divided, [..., 1]; 1 for a row of zeros, which any step represents."""
    high, low = b.reduce_max(x, -1), b.reduce_min(x, -1)
    size = b.maximum(high, b.mul(low, b.scalar(-127 / 128, low)))
    return b.where(b.equal(size, b.scalar(0.0, size)), b.scalar(1.0, size), size)


def _smooth_product(b: Builder[V], x: V, weight: V, scale: V) -> V:
    return b.mul(b.linear(x, b.cast_like(weight, x)), b.cast_like(scale, x))


def check_layer(name: str, x: TensorType, weight: TensorType, scale: TensorType, bias: TensorType | None) -> None:
    """Raise ShapeError unless the operands of an int8 layer fit together."""
    require(weight.rank == 2, f"{name}: weight must be 2-D; got {weight}")
    assert weight.shape is not None
    rows, columns = weight.shape
    require(scale.shape == (rows,), f"{name}: scale must be [{rows}]; got {scale}")
    require(bias is None or bias.shape == (rows,), f"{name}: bias must be [{rows}]; got {bias}")
    if isinstance(columns, int):
        require(columns <= MOST_INPUTS, f"{name}: weight must have at most {MOST_INPUTS} columns; got {columns}")
    if x.shape is not None:
        require(len(x.shape) >= 1, f"{name}: x must have at least one dim; got a scalar")
        require(x.shape[-1] == columns, f"{name}: x ends in {x.shape[-1]}, weight takes {columns}")


def result_type(x: TensorType, weight: TensorType) -> TensorType:
    """Return the type of y: x's leading dims, then `out`."""
    assert weight.shape is not None
    return TensorType(x.dtype, None if x.shape is None else (*x.shape[:-1], weight.shape[0]))


def product_cost(x: TensorType, weight: TensorType) -> OpCost:
    """Return multiply-adds of the integer product, and the larger of its codes and its int32 result, in bytes."""
    if x.shape is None or weight.shape is None:
        return OpCost()
    rows, outputs, inputs = numel(x.shape[:-1]), dim_expr(weight.shape[0]), dim_expr(weight.shape[1])
    macs = rows * inputs * outputs
    return OpCost(
        macs=macs,
        transient_bytes=rows * sympy.Max(inputs, 4 * outputs),
        arithmetic={"multiply int8": macs, "add int32": macs, **scaling(rows, inputs, outputs)},
    )


def scaling(rows: sympy.Expr, inputs: sympy.Expr, outputs: sympy.Expr) -> dict[Arithmetic, sympy.Expr]:
    """Return the arithmetic around an integer product: every input and every result is scaled once."""
    return {"multiply float32": rows * (inputs + outputs)}
