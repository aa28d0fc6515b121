"""Linear layer whose weights are sums of signed powers of two, in 4 bits a term.

    y = Q(x) · (values · scale)ᵀ + bias     x: [..., in], scale: [out], bias: [out]
    codes: uint8 [out, ceil(terms · in / 2)], two terms a byte, unpacked to values: int8 [out, in]

A value is a sum of `terms` (1 or 2) numbers out of {0, ±1, ±2, ..., ±64}; a code is a sign (8) and an exponent e in
[0, 6] for ±2^(6 - e), or 7 for zero. A row's codes, all first terms and then all second ones, fill the lower 4 bits of
its bytes and then the upper ones. So the weights are embedded in int8 exactly, and the layer runs wherever
`int8_linear` does: the unpacking is standard operations on constants, which a runtime folds when it loads the file.

`activations`: 2, Q rounds x with one step a row; 1, with one step for all of x; 0, x stays in floating point. Q and the
straight-through derivatives are those of `int8_linear`.

Parameters: terms / 8 of single precision, and the scales. Arithmetic on hardware with shifters, where x is quantized: a
shift and an addition for each term of each weight, instead of a multiplication and an addition for each weight.

Sources: Elhoushi et al. 2021, arXiv:1905.13298 (DeepShift); You et al. 2024, arXiv:2406.05981 (ShiftAddLLM).
"""

from typing import Final

from regraft.graph.cost_types import OpCost
from regraft.graph.types import TensorType
from regraft.ops import int8_linear
from regraft.ops._builder import Builder, V
from regraft.ops._int8 import check_layer, result_type
from regraft.ops._op import Example, Ints, Op
from regraft.ops._shift import FLOATING, PER_ROW, check_codes, example_codes, shift_cost, unpack_weight


def infer(
    x: TensorType,
    codes: TensorType,
    scale: TensorType,
    bias: TensorType | None = None,
    *,
    terms: int,
    in_features: int,
    activations: int,
) -> TensorType:
    """Return the type of y: x's leading dims, then `out`."""
    weight = check_codes(op.name, codes, terms, in_features, activations)
    check_layer(op.name, x, weight, scale, bias)
    return result_type(x, weight)


def decompose(
    b: Builder[V],
    x: V,
    codes: V,
    scale: V,
    bias: V | None = None,
    *,
    terms: int,
    in_features: int,
    activations: int,
) -> V:
    """Unpack, then multiply in integers, or in floating point by the restored weight."""
    values = unpack_weight(b, codes, terms=terms, in_features=in_features)
    if activations != FLOATING:
        return int8_linear.decompose(b, x, values, scale, bias, per_row=int(activations == PER_ROW))
    weight = b.mul(b.cast_like(values, scale), b.reshape(scale, (-1, 1)))
    y = b.linear(x, b.cast_like(weight, x))
    return y if bias is None else b.add(y, bias)


def cost(
    x: TensorType,
    codes: TensorType,
    scale: TensorType,
    bias: TensorType | None = None,
    *,
    terms: int,
    in_features: int,
    activations: int,
) -> OpCost:
    """A shift and an addition a term where x is quantized, else multiply-adds."""
    return shift_cost(x, codes, terms=terms, in_features=in_features, activations=activations)


def _shapes(x: tuple[int, ...], out: int, terms: int, bias: bool = True) -> dict[str, tuple[int, ...] | Ints]:
    found: dict[str, tuple[int, ...] | Ints] = {"x": x, "codes": example_codes(out, x[-1], terms), "scale": (out,)}
    return {**found, "bias": (out,)} if bias else found


def _example(
    name: str,
    x: tuple[int, ...],
    out: int,
    terms: int,
    activations: int,
    *,
    bias: bool = True,
    dynamic: tuple[int, ...] = (0,),
) -> Example:
    attributes = {"terms": terms, "in_features": x[-1], "activations": activations}
    return Example(name, _shapes(x, out, terms, bias), attributes, dynamic)


op: Final = Op(
    name="shift_linear",
    doc="y = Q(x) · (values · scale)ᵀ + bias, a linear layer whose weights are sums of signed powers of two",
    infer=infer,
    decompose=decompose,
    cost=cost,
    smooth=False,
    examples=(
        _example("one term, row by row", (2, 5, 6), 4, 1, 2, dynamic=(0, 1)),
        _example("two terms, row by row", (2, 5, 7), 4, 2, 2, dynamic=(0, 1)),
        _example("one step for all, odd", (2, 5, 11), 13, 1, 1, dynamic=(0, 1)),
        _example("floating-point activations", (2, 5, 7), 4, 2, 0, dynamic=(0, 1)),
        _example("no bias", (5, 7), 4, 1, 2, bias=False),
        _example("four dims", (2, 3, 4, 6), 8, 2, 1, dynamic=(0, 2)),
        _example("extents of one", (3, 1), 1, 1, 1),
        _example("wide", (3, 67), 65, 1, 0),
    ),
)
