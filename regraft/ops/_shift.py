"""What the shift-add layers share: weights unpacked from 4-bit codes by standard operations, and what they cost.

A backend that knows its weights folds the unpacking once when it loads the program, and then runs a layer in 8-bit
integers, whose weights happen to be sums of powers of two. Hardware with shifters reads the codes themselves.
"""

from dataclasses import replace
from typing import Final

import sympy

from regraft.graph.cost_types import Arithmetic, OpCost
from regraft.graph.symbols import dim_expr, numel
from regraft.graph.types import Dim, TensorType
from regraft.numerics.int8 import MOST_INPUTS
from regraft.numerics.power_of_two import TERM_VALUES, packed_width
from regraft.ops._builder import Builder, V
from regraft.ops._int8 import product_cost, scaling
from regraft.ops._op import Ints, require

FLOATING: Final = 0
PER_TENSOR: Final = 1
PER_ROW: Final = 2

_LOWER: Final = TERM_VALUES * 16
_UPPER: Final = tuple(value for value in TERM_VALUES for _ in range(16))
_BOTH: Final = tuple(
    (lower + upper + 128) % 256 - 128  # 64 + 64, which int8 does not hold and `pack` does not write, wraps around
    for lower, upper in zip(_LOWER, _UPPER, strict=True)
)
"""What a byte's lower and upper code stand for, and their sum."""


def unpack_weight(b: Builder[V], codes: V, *, terms: int, in_features: int) -> V:
    """Return the int8 values [out, in] that `regraft.numerics.power_of_two.pack` laid out in bytes."""
    # A table of all bytes, not of all codes: a fifteenth of the time in PyTorch, which unpacks in every call.
    bytes_ = b.reshape(b.cast(codes, "int32"), (-1,))
    tables = (_BOTH,) if terms == 2 else (_LOWER, _UPPER)
    width = packed_width(in_features, terms)
    parts = [b.reshape(b.gather(b.table(values, "int8"), bytes_, 0), (-1, width)) for values in tables]
    if terms == 2:
        return parts[0]
    values = b.concat(parts, 1)
    return values if in_features % 2 == 0 else b.slice(values, 1, 0, in_features)


def check_codes(name: str, codes: TensorType, terms: int, in_features: int, activations: int) -> TensorType:
    """Return the type of the unpacked weight; raise ShapeError unless the codes are those of such a layer."""
    require(terms in (1, 2), f"{name}: terms must be 1 or 2; got {terms}")
    allowed = f"{FLOATING}, {PER_TENSOR} or {PER_ROW}"
    require(activations in (FLOATING, PER_TENSOR, PER_ROW), f"{name}: activations must be {allowed}; got {activations}")
    require(codes.rank == 2, f"{name}: codes must be 2-D; got {codes}")
    assert codes.shape is not None
    width = packed_width(in_features, terms)
    shown = f"{in_features} inputs of {terms} terms"
    require(codes.shape[1] == width, f"{name}: {shown} take {width} bytes a row; codes have {codes.shape[1]}")
    require(in_features <= MOST_INPUTS, f"{name}: in_features must be at most {MOST_INPUTS}; got {in_features}")
    return TensorType("int8", (codes.shape[0], in_features))


def shift_cost(
    x: TensorType, codes: TensorType, *, terms: int, in_features: int, activations: int, outliers: Dim = 0
) -> OpCost:
    """Return multiply-adds, and what they are made of: with quantized activations, shifts and additions a term."""
    if x.shape is None or codes.shape is None:
        return OpCost()
    rows, outputs = numel(x.shape[:-1]), dim_expr(codes.shape[0])
    if activations == FLOATING:
        return OpCost(macs=rows * in_features * outputs)
    product = product_cost(x, TensorType("int8", (codes.shape[0], in_features)))
    summed = terms * product.macs
    arithmetic: dict[Arithmetic, sympy.Expr] = {"shift int32": summed, "add int32": summed}
    arithmetic |= scaling(rows, dim_expr(in_features), outputs)
    return replace(product, arithmetic=arithmetic).with_floating(rows * outputs * dim_expr(outliers))


def example_codes(out_features: int, in_features: int, terms: int) -> Ints:
    """Return what the packed codes of such a layer look like, for examples."""
    # The byte 0 of two terms would be 64 + 64, which int8 does not hold and `pack` does not write; up to 6, no lower
    # code is zero, so that the only weight of a layer is not.
    return Ints((out_features, packed_width(in_features, terms)), 1, 255 if in_features > 1 else 6, "uint8")
