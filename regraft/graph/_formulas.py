"""Multiply-adds of the canonical operations: products count, element-by-element work does not.

linear, addmm, matmul, gemm      rows · in · out
conv                             outputs · (in / groups) · kernel
attention                        both products: queries · keys · (head_dim + value_dim); scores are not kept
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Final

import sympy

from regraft.errors import ShapeError
from regraft.graph.cost_types import OpCost
from regraft.graph.snapshot import SnapshotNode
from regraft.graph.symbols import dim_expr, numel
from regraft.graph.types import Dim, TensorType

Formula = Callable[[SnapshotNode, Sequence[TensorType | None]], OpCost]
"""(node, types of its operands by position, None where absent) -> cost; raises ShapeError where they do not fit.

It may look at the node's op, native name, attributes and result types only: equal ones are asked for once.
"""

Shape = tuple[Dim, ...]


def _linear(node: SnapshotNode, types: Sequence[TensorType | None]) -> OpCost:
    x, weight = _shape(types, 0, 1), _shape(types, 1, 2)
    return OpCost(numel(x) * dim_expr(weight[0]))


def _addmm(node: SnapshotNode, types: Sequence[TensorType | None]) -> OpCost:
    return OpCost(numel(_shape(types, 1, 2)) * dim_expr(_shape(types, 2, 2)[1]))


def _gemm(node: SnapshotNode, types: Sequence[TensorType | None]) -> OpCost:
    weight = _shape(types, 1, 2)
    return OpCost(numel(_shape(types, 0, 2)) * dim_expr(weight[0 if node.attributes.get("transB", 0) else 1]))


def _matmul(node: SnapshotNode, types: Sequence[TensorType | None]) -> OpCost:
    a, b = _shape(types, 0, 1), _shape(types, 1, 1)
    inner = next((dim for dim in (a[-1], b[max(len(b) - 2, 0)]) if isinstance(dim, int)), a[-1])
    result = node.outputs[0].type.shape if node.outputs else None
    if result is not None:
        return OpCost(numel(result) * dim_expr(inner))
    columns: Shape = b[-1:] if len(b) > 1 else ()
    return OpCost(_broadcast(a[:-2], b[:-2]) * numel(a[-2:-1]) * numel(columns) * dim_expr(inner))


def _conv(node: SnapshotNode, types: Sequence[TensorType | None]) -> OpCost:
    x, weight = _shape(types, 0, 2), _shape(types, 1, 3)
    if node.attributes.get("transposed", False) or node.op == "conv_transpose":
        return OpCost(numel(x) * numel(weight[1:]))
    result = node.outputs[0].type.shape if node.outputs else None
    if result is None:
        raise ShapeError(f"{node.op}: the result's shape is not known")
    return OpCost(numel(result) * numel(weight[1:]))


def _attention(node: SnapshotNode, types: Sequence[TensorType | None]) -> OpCost:
    query, key, value = (_shape(types, place, 3) for place in range(3))
    past = 6 if node.native == "com.microsoft::MultiHeadAttention" else 4
    if not len(query) == len(key) == len(value) or any(type_ is not None for type_ in types[past : past + 2]):
        raise ShapeError("attention: packed or cached keys are not counted")
    width = dim_expr(query[-1]) + dim_expr(value[-1]) * _sharing(node, len(query))
    return OpCost(numel(query[:-1]) * dim_expr(key[-2]) * width)


def _sharing(node: SnapshotNode, rank: int) -> sympy.Expr:
    """Query heads a value head, where heads lie side by side in the last dim."""
    heads, shared = node.attributes.get("q_num_heads"), node.attributes.get("kv_num_heads")
    if rank == 3 and isinstance(heads, int) and isinstance(shared, int) and shared > 0:
        return sympy.Rational(heads, shared)
    return sympy.Integer(1)


def _shape(types: Sequence[TensorType | None], place: int, rank: int) -> Shape:
    type_ = types[place] if place < len(types) else None
    shape = None if type_ is None else type_.shape
    if shape is None or len(shape) < rank:
        raise ShapeError(f"operand {place} must have at least {rank} dims; got {type_}")
    return shape


def _broadcast(a: Shape, b: Shape) -> sympy.Expr:
    """Number of elements of two shapes broadcast together."""
    shorter, longer = sorted((a, b), key=len)
    ahead = len(longer) - len(shorter)
    total = numel(longer[:ahead])
    for one, other in zip(shorter, longer[ahead:], strict=True):
        total = total * _wider(one, other)
    return total


def _wider(one: Dim, other: Dim) -> sympy.Expr:
    if other in (one, 1):
        return dim_expr(one)
    if one == 1:
        return dim_expr(other)
    known = [dim for dim in (one, other) if isinstance(dim, int)]
    if len(known) == 2:
        raise ShapeError(f"extents {one} and {other} cannot be broadcast")
    return dim_expr(known[0]) if known else sympy.Max(dim_expr(one), dim_expr(other))


FORMULAS: Final[Mapping[str, Formula]] = {
    "linear": _linear,
    "addmm": _addmm,
    "matmul": _matmul,
    "gemm": _gemm,
    "conv": _conv,
    "conv_transpose": _conv,
    "attention": _attention,
}

_LAYOUT = (
    "alias cast clone concat constant_of_shape contiguous detach dropout embedding expand flatten gather "
    "gather_elements getitem identity index non_zero pad permute repeat reshape scatter scatter_nd select shape "
    "size slice split squeeze stack sym_size tile to transpose unsqueeze view"
)
_ELEMENTWISE = (
    "abs add and arange bitwise_and bitwise_not bitwise_or ceil clamp clip cos dequantize_linear div "
    "dynamic_quantize_linear elu eq equal erf exp floor full full_like ge gelu greater greater_or_equal gt "
    "hard_sigmoid hard_swish hardsigmoid hardswish is_inf is_na_n is_nan isnan le leaky_relu less less_or_equal "
    "lift_fresh_copy log logical_and logical_not logical_or lt masked_fill max maximum min minimum mod mul ne neg "
    "new_full new_ones new_zeros not not_equal ones ones_like or pow quantize_linear range reciprocal relu round "
    "rsqrt rsub scalar_tensor sigmoid sign silu sin softplus sqrt sub tanh tril triu where zeros zeros_like"
)
_REDUCTIONS = (
    "all amax amin any arg_max arg_min argmax argmin average_pool batch_norm batch_normalization cum_sum cumsum "
    "global_average_pool group_norm instance_norm layer_norm log_softmax max_pool mean reduce_max reduce_mean "
    "reduce_min reduce_sum rms_norm simplified_layer_normalization skip_layer_norm softmax sum"
)
_WITHOUT_PRODUCTS: Final = frozenset(f"{_LAYOUT} {_ELEMENTWISE} {_REDUCTIONS} if loop scan".split())


def has_no_products(op: str) -> bool:
    """Whether an operation is known to multiply no matrices (the nodes of a body are counted themselves)."""
    plain = op.removeprefix("aten.").split(".")[0] if op.startswith("aten.") else op
    return plain.strip("_") in _WITHOUT_PRODUCTS


def apply_formula(formula: Formula, node: SnapshotNode, operands: Sequence[TensorType | None]) -> OpCost | None:
    """Return the cost of a node, or None when it cannot be known."""
    if any(type_ is not None and type_.shape is None for type_ in operands):
        return None
    try:
        return formula(node, operands)
    except ShapeError:  # a malformed node: listed as uncounted, which is all that a count can say of it
        return None
