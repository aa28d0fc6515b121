"""Monarch linear layer in 8-bit integers: both stacks of blocks with one scale a column, activations quantized twice.

    h[a] = Q(x)[a] · (right[a] · right_scale[a])               right: int8 [k, p, l · ρ], right_scale: [k, 1, l · ρ]
    y[b] = Q(h)[b] · (left[b] · left_scale[b])                 left: int8 [l, k · ρ, s],  left_scale: [l, 1, s]
    y    = (y[0], ..., y[l-1]) + bias

Blocks, runs and groups are those of `monarch_linear`; Q is that of `int8_linear`, with one step for each row of x and
of h (`per_row=1`) or one for all of each (`per_row=0`). Optional columns of x that are far larger than the others are
masked out of the blocks (`inliers` is 0 there) and multiplied apart in floating point, with the weights that the
matrix has for them: + x[outliers] · outlier_weightᵀ, outliers: int64 [c], outlier_weight: [out, c].

With M the matrix of the blocks, a result is off by what rounding x does to M · x and what rounding h does to left · h:
at most Σ|right| · s / 2 in each h, and Σ|left| · (that + t / 2) in y, s and t the steps of x and h (twice that at the
ends of a range whose zero point had to be rounded).

Both products are batched over blocks: one integer kernel each in ONNX Runtime, between which only codes (a byte each)
and h are put in another order. Measured there with 128 and 1024 rows on one core, against `monarch_linear`: 0.41 to 0.6
of its time with one step for all, 0.5 to 0.9 with one a row, for layers of 384x384 in 4x4 blocks and wider ones; small
blocks take longer than in floating point. `int8_linear` of the dense weight takes from 0.8 to 1.2 times as long. Eager
PyTorch takes a step for each rounding and copy: there, layers narrower than about 1000 features take up to twice as
long as in floating point (`benchmarks/bench_monarch.py` has the table).

Parameters: a byte each, 0.25 of `monarch_linear`'s, and the scales. Derivatives are straight-through.

Sources: Dao et al. 2022, arXiv:2204.00595 (Monarch); Dettmers et al. 2022, arXiv:2208.07339 (LLM.int8()).
"""

from collections.abc import Callable
from typing import Final

import sympy

from regraft.graph.cost_types import Arithmetic, OpCost
from regraft.graph.symbols import dim_expr, numel
from regraft.graph.types import TensorType
from regraft.numerics.int8 import MOST_INPUTS
from regraft.numerics.partition import Partition
from regraft.ops import monarch_linear
from regraft.ops._builder import Builder, V
from regraft.ops._int8 import quantize, scaled, scaling
from regraft.ops._op import Example, Ints, Op, require
from regraft.ops.monarch_linear import by_row_of, padded, partition_of, results_of, runs_of

NAME: Final = "int8_monarch_linear"
Shapes = dict[str, tuple[int, ...] | Ints]
Layer = tuple[V, V, V, V]
"""Right, its scales, left, its scales."""


def infer(
    x: TensorType,
    right: TensorType,
    right_scale: TensorType,
    left: TensorType,
    left_scale: TensorType,
    bias: TensorType | None = None,
    inliers: TensorType | None = None,
    outliers: TensorType | None = None,
    outlier_weight: TensorType | None = None,
    *,
    per_row: int,
    block_rank: int,
    **counts: int,
) -> TensorType:
    """Return the type of y: x's leading dims, then `out_features`."""
    cut = partition_of(counts)
    found = monarch_linear.result_type(NAME, x, right, left, bias, cut, block_rank)
    check_scales(NAME, right_scale, left_scale, cut, block_rank)
    check_columns(NAME, inliers, outliers, outlier_weight, cut)
    return found


def check_scales(name: str, right_scale: TensorType, left_scale: TensorType, cut: Partition, rank: int) -> None:
    """Raise ShapeError unless every column of every block has a scale, and no sum of products can overflow."""
    inner, outer = monarch_linear.factor_shapes(cut, rank)
    for operand, scale, shape in (("right_scale", right_scale, inner), ("left_scale", left_scale, outer)):
        wanted = (shape[0], 1, shape[2])
        require(scale.shape == wanted, f"{name}: {operand} must be {list(wanted)}; got {scale}")
        require(shape[1] <= MOST_INPUTS, f"{name}: blocks must have at most {MOST_INPUTS} inputs; got {shape[1]}")


def check_columns(
    name: str,
    inliers: TensorType | None,
    outliers: TensorType | None,
    outlier_weight: TensorType | None,
    cut: Partition,
) -> None:
    """Raise ShapeError unless the operands of the columns in floating point are all there and fit, or none is."""
    given = [operand is not None for operand in (inliers, outliers, outlier_weight)]
    require(len(set(given)) == 1, f"{name}: inliers, outliers and outlier_weight go together; got {sum(given)} of them")
    if inliers is None or outliers is None or outlier_weight is None:
        return
    require(inliers.shape == (cut.in_features,), f"{name}: inliers must be [{cut.in_features}]; got {inliers}")
    require(outliers.rank == 1, f"{name}: outliers must be 1-D; got {outliers}")
    assert outliers.shape is not None
    wanted = (cut.out_features, *outliers.shape)
    require(outlier_weight.shape == wanted, f"{name}: outlier_weight must be {list(wanted)}; got {outlier_weight}")


def decompose(
    b: Builder[V],
    x: V,
    right: V,
    right_scale: V,
    left: V,
    left_scale: V,
    bias: V | None = None,
    inliers: V | None = None,
    outliers: V | None = None,
    outlier_weight: V | None = None,
    *,
    per_row: int,
    in_features: int,
    out_features: int,
    in_blocks: int,
    out_blocks: int,
    block_rank: int,
    in_strided: int = 0,
    out_strided: int = 0,
) -> V:
    """Two batched products in integers, then the few columns in floating point."""
    cut = Partition(in_features, out_features, in_blocks, out_blocks, bool(in_strided), bool(out_strided))
    layer = right, right_scale, left, left_scale

    def product(seen: V) -> V:
        y = _integer_product(b, seen, layer, cut, block_rank, per_row=per_row)
        return b.straight_through(y, lambda: floating_product(b, seen, layer, cut, block_rank))

    return beside_columns(b, x, product, bias, inliers, outliers, outlier_weight)


def beside_columns(
    b: Builder[V],
    x: V,
    product: Callable[[V], V],
    bias: V | None,
    inliers: V | None,
    outliers: V | None,
    outlier_weight: V | None,
) -> V:
    """Return product(x without outliers) + x[outliers] · outlier_weightᵀ + bias, in the type of x."""
    wide = b.widen(x)
    y = b.cast_like(product(wide if inliers is None else b.mul(wide, b.cast_like(inliers, wide))), x)
    if outliers is not None and outlier_weight is not None:
        y = b.add(y, b.linear(b.gather(x, outliers, -1), outlier_weight))
    return y if bias is None else b.add(y, bias)


def floating_product(b: Builder[V], x: V, layer: Layer[V], cut: Partition, rank: int) -> V:
    """Return the product with the restored blocks, in the type of x."""
    right, right_scale, left, left_scale = layer
    restored = [
        b.mul(b.cast_like(values, x), b.cast_like(scale, x))
        for values, scale in ((right, right_scale), (left, left_scale))
    ]
    attributes = {name: int(value) for name, value in monarch_linear.layer_attributes(cut, rank).items()}
    return monarch_linear.decompose(b, x, *restored, **attributes)


def _integer_product(b: Builder[V], x: V, layer: Layer[V], cut: Partition, rank: int, *, per_row: int) -> V:
    right, right_scale, left, left_scale = layer
    first = quantize(b, padded(b, x, cut), per_row=per_row)
    h = scaled(b, b.matmul_integer(runs_of(b, first.codes, cut), right, first.zero), first.step, right_scale)
    by_row = b.reshape(by_row_of(b, h, cut, rank), [-1, cut.out_blocks * cut.in_blocks * rank])
    second = quantize(b, by_row, per_row=per_row)
    groups = b.permute(b.reshape(second.codes, [-1, cut.out_blocks, cut.in_blocks * rank]), [1, 0, 2])
    y = scaled(b, b.matmul_integer(groups, left, second.zero), second.step, left_scale)
    y = b.like_rows_of(results_of(b, y, cut), x)
    if first.size is None or second.size is None:
        return y
    # Rows of h have yet to be multiplied by those of x, which changes no code of h: both once, at the end.
    return b.mul(y, b.mul(first.size, b.like_rows_of(second.size, x)))


def cost(
    x: TensorType,
    right: TensorType,
    right_scale: TensorType,
    left: TensorType,
    left_scale: TensorType,
    bias: TensorType | None = None,
    inliers: TensorType | None = None,
    outliers: TensorType | None = None,
    outlier_weight: TensorType | None = None,
    *,
    per_row: int,
    block_rank: int,
    **counts: int,
) -> OpCost:
    """Multiply-adds of both products in integers, and of the columns in floating point."""
    if x.shape is None:
        return OpCost()
    return blocks_cost(x, partition_of(counts), block_rank, outlier_weight, ("multiply int8", "add int32"))


def blocks_cost(
    x: TensorType,
    cut: Partition,
    rank: int,
    outlier_weight: TensorType | None,
    each: tuple[Arithmetic, ...],
    times: int = 1,
) -> OpCost:
    """Return the cost of both products, each multiply-add made of `times` of `each`; scaling comes on top."""
    assert x.shape is not None
    rows, between = numel(x.shape[:-1]), dim_expr(cut.in_blocks * cut.out_blocks * rank)
    inputs, outputs = dim_expr(cut.in_features), dim_expr(cut.out_features)
    macs = rows * cut.parameters(rank)
    found = OpCost(
        macs=macs,
        transient_bytes=rows * sympy.Max(inputs, 4 * between, 4 * outputs),
        arithmetic={**dict.fromkeys(each, times * macs), **scaling(rows, inputs + between, between + outputs)},
    )
    if outlier_weight is None or outlier_weight.shape is None:
        return found
    return found.with_floating(rows * outputs * dim_expr(outlier_weight.shape[1]))


def column_shapes(cut: Partition, few: int) -> Shapes:
    """Return the operands of columns in floating point, for examples; none for 0."""
    if not few:
        return {}
    return {
        "inliers": Ints((cut.in_features,), 0, 1, "bool"),
        "outliers": Ints((few,), 0, cut.in_features - 1, "int64"),
        "outlier_weight": (cut.out_features, few),
    }


def scale_shapes(cut: Partition, rank: int) -> Shapes:
    """Return the operands with scales, for examples."""
    inner, outer = monarch_linear.factor_shapes(cut, rank)
    return {"right_scale": (inner[0], 1, inner[2]), "left_scale": (outer[0], 1, outer[2])}


def _example(
    name: str,
    leading: tuple[int, ...],
    cut: Partition,
    rank: int,
    per_row: int,
    *,
    few: int = 0,
    bias: bool = True,
    dynamic: tuple[int, ...] = (0,),
) -> Example:
    inner, outer = monarch_linear.factor_shapes(cut, rank)
    lowest = -9 if cut.in_features > 1 else 1  # the only weight of a layer is not 0
    shapes: Shapes = {
        "x": (*leading, cut.in_features),
        "right": Ints(inner, lowest, 9),  # small, so that the two products fit half precision
        "left": Ints(outer, lowest, 9),
        **scale_shapes(cut, rank),
        **column_shapes(cut, few),
    }
    if bias:
        shapes["bias"] = (cut.out_features,)
    return Example(name, shapes, {"per_row": per_row, **monarch_linear.layer_attributes(cut, rank)}, dynamic)


op: Final = Op(
    name=NAME,
    doc="y = Q(M · x) + bias, a linear layer whose weight is a grid of blocks of low rank, in 8-bit integers",
    infer=infer,
    decompose=decompose,
    cost=cost,
    linear_weights=("outlier_weight",),
    smooth=False,
    examples=(
        _example("row by row", (2, 5), Partition(15, 14, 3, 2), 2, 1, dynamic=(0, 1)),
        _example("one step for all", (2, 5), Partition(6, 20, 2, 4, False, True), 2, 0, dynamic=(0, 1)),
        _example("no bias", (7,), Partition(12, 10, 4, 2, True), 3, 1, bias=False),
        _example("counts that divide nothing", (2, 3), Partition(11, 13, 4, 3), 2, 1, dynamic=(0, 1)),
        _example("the same, strided", (2, 3), Partition(11, 13, 4, 3, True, True), 2, 0, dynamic=(0, 1)),
        _example("outliers", (2, 5), Partition(11, 13, 4, 3), 2, 1, few=3, dynamic=(0, 1)),
        _example("outliers, one step for all, no bias", (7,), Partition(12, 10, 4, 2), 3, 0, few=2, bias=False),
        _example("four dims", (2, 3, 4), Partition(10, 21, 5, 3), 1, 1, dynamic=(0, 2)),
        _example("a vector", (), Partition(6, 8, 3, 2), 2, 1, dynamic=()),
        _example("wide", (3,), Partition(67, 65, 2, 3), 5, 0),
        _example("extents of one", (3,), Partition(1, 1, 1, 1), 1, 0),
    ),
)
