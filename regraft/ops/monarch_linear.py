"""Monarch linear layer: a weight cut into k by l blocks that all have a low rank ρ.

    h[a] = x[a] · right[a]                    x cut into k runs of p = ⌈in / k⌉ features; right: [k, p, l · ρ]
    y[b] = (h[0, b], ..., h[k-1, b]) · left[b]     h[a] cut into l groups of ρ;              left:  [l, k · ρ, s]
    y    = (y[0], ..., y[l-1]) + bias         s = ⌈out / l⌉ results a group; bias: [out]

Runs and groups are contiguous, or strided: every k-th feature, every l-th result. Extents that k and l do not divide
are padded with zeros. Parameters and multiply-adds a row: ρ · (l · k · p + k · l · s), against in · out dense.

How it is spelled matters as much as what it multiplies (`benchmarks/bench_monarch.py` has the table). Both products
are batched over blocks whose rows keep the stride of the whole activation, which PyTorch and ONNX Runtime read
without a copy. That leaves two copies: h, put in order of groups for each row (runs of ρ values), and y (runs of s
values). Of the batched spellings it is the fastest in ONNX Runtime, or within a tenth of it. Putting h in order of
rows for each group is as fast there with 4 blocks and takes up to 1.7 times as long with 16; in PyTorch it is the
other way round for few rows, by up to a tenth of the dense layer's time. Intermediates that are shared out one by one
and strided results, as published, take 1.2 to 3 times as long in ONNX Runtime for many rows. One 2-D product a block
gains with few blocks only.

Source: Dao et al. 2022, arXiv:2204.00595.
"""

from collections.abc import Mapping
from typing import Final

import sympy

from regraft.graph.cost_types import OpCost
from regraft.graph.symbols import numel
from regraft.graph.types import TensorType, dtype_bits
from regraft.numerics.partition import Partition
from regraft.ops._builder import Builder, V
from regraft.ops._op import Example, Op, require

NAME: Final = "monarch_linear"


def infer(
    x: TensorType,
    right: TensorType,
    left: TensorType,
    bias: TensorType | None = None,
    *,
    in_features: int,
    out_features: int,
    in_blocks: int,
    out_blocks: int,
    block_rank: int,
    in_strided: int = 0,
    out_strided: int = 0,
) -> TensorType:
    """Return the type of y: x's leading dims, then `out_features`."""
    cut = Partition(in_features, out_features, in_blocks, out_blocks)
    return result_type(NAME, x, right, left, bias, cut, block_rank)


def result_type(
    name: str, x: TensorType, right: TensorType, left: TensorType, bias: TensorType | None, cut: Partition, rank: int
) -> TensorType:
    """Return the type of y; raise ShapeError unless the operands of a layer in blocks fit together."""
    require(rank >= 1, f"{name}: block_rank must be at least 1; got {rank}")
    inner, outer = factor_shapes(cut, rank)
    require(right.shape == inner, f"{name}: right must be {list(inner)}; got {right}")
    require(left.shape == outer, f"{name}: left must be {list(outer)}; got {left}")
    if bias is not None:
        require(bias.shape == (cut.out_features,), f"{name}: bias must be [{cut.out_features}]; got {bias}")
    if x.shape is None:
        return TensorType(x.dtype)
    require(len(x.shape) >= 1, f"{name}: x must have at least one dim; got a scalar")
    require(x.shape[-1] == cut.in_features, f"{name}: x ends in {x.shape[-1]}, the layer takes {cut.in_features}")
    return TensorType(x.dtype, (*x.shape[:-1], cut.out_features))


def factor_shapes(cut: Partition, rank: int) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Return the shapes of right and left."""
    return (cut.in_blocks, cut.width, cut.out_blocks * rank), (cut.out_blocks, cut.in_blocks * rank, cut.height)


def decompose(
    b: Builder[V],
    x: V,
    right: V,
    left: V,
    bias: V | None = None,
    *,
    in_features: int,
    out_features: int,
    in_blocks: int,
    out_blocks: int,
    block_rank: int,
    in_strided: int = 0,
    out_strided: int = 0,
) -> V:
    """Two batched products with a permutation between them."""
    cut = Partition(in_features, out_features, in_blocks, out_blocks, bool(in_strided), bool(out_strided))
    h = b.matmul(runs_of(b, padded(b, x, cut), cut), right)
    by_row = by_row_of(b, h, cut, block_rank)  # the first copy
    groups = b.matmul(b.permute(by_row, [1, 0, 2]), left)  # [l, rows, s]
    y = b.like_rows_of(results_of(b, groups, cut), x)  # the second copy
    return y if bias is None else b.add(y, bias)


def padded(b: Builder[V], x: V, cut: Partition) -> V:
    """Return x [..., in] with the zeros behind it that fill the last runs."""
    return b.pad_last(x, cut.in_padding) if cut.in_padding else x


def runs_of(b: Builder[V], x: V, cut: Partition) -> V:
    """Return padded inputs [..., k · p] run by run, [k, rows, p]."""
    if cut.in_strided:
        return b.permute(b.reshape(x, [-1, cut.width, cut.in_blocks]), [2, 0, 1])
    return b.permute(b.reshape(x, [-1, cut.in_blocks, cut.width]), [1, 0, 2])


def by_row_of(b: Builder[V], h: V, cut: Partition, rank: int) -> V:
    """Return the products of the runs [k, rows, l · ρ] row by row, in order of groups, [rows, l, k · ρ]."""
    parts = b.reshape(h, [cut.in_blocks, -1, cut.out_blocks, rank])
    return b.reshape(b.permute(parts, [1, 2, 0, 3]), [-1, cut.out_blocks, cut.in_blocks * rank])


def results_of(b: Builder[V], groups: V, cut: Partition) -> V:
    """Return the products of the groups [l, rows, s] row by row, [rows, out], without what was padded."""
    turned = b.permute(groups, [1, 2, 0] if cut.out_strided else [1, 0, 2])
    y = b.reshape(turned, [-1, cut.height * cut.out_blocks])
    return b.slice(y, 1, 0, cut.out_features) if cut.out_padding else y


def cost(
    x: TensorType,
    right: TensorType,
    left: TensorType,
    bias: TensorType | None = None,
    *,
    in_features: int,
    out_features: int,
    in_blocks: int,
    out_blocks: int,
    block_rank: int,
    in_strided: int = 0,
    out_strided: int = 0,
) -> OpCost:
    """Multiply-adds of both products; the larger of the two buffers that are put in another order lives only inside."""
    if x.shape is None:
        return OpCost()
    cut = Partition(in_features, out_features, in_blocks, out_blocks)
    rows = numel(x.shape[:-1])
    widest = max(in_blocks * out_blocks * block_rank, cut.height * out_blocks)
    return OpCost(
        macs=rows * cut.parameters(block_rank),
        transient_bytes=rows * widest * sympy.Rational(dtype_bits(x.dtype), 8),
    )


def partition_of(attributes: Mapping[str, int]) -> Partition:
    """Return the partition that an op's attributes describe; whether features are strided may be left out."""
    return Partition(
        attributes["in_features"],
        attributes["out_features"],
        attributes["in_blocks"],
        attributes["out_blocks"],
        bool(attributes.get("in_strided", 0)),
        bool(attributes.get("out_strided", 0)),
    )


def layer_attributes(partition: Partition, rank: int) -> dict[str, int | float]:
    """Return the op's attributes for factors of a partition."""
    return {
        "in_features": partition.in_features,
        "out_features": partition.out_features,
        "in_blocks": partition.in_blocks,
        "out_blocks": partition.out_blocks,
        "block_rank": rank,
        "in_strided": int(partition.in_strided),
        "out_strided": int(partition.out_strided),
    }


def _example(
    name: str,
    leading: tuple[int, ...],
    partition: Partition,
    rank: int,
    *,
    bias: bool = True,
    dynamic: tuple[int, ...] = (0,),
) -> Example:
    right, left = factor_shapes(partition, rank)
    shapes: dict[str, tuple[int, ...]] = {"x": (*leading, partition.in_features), "right": right, "left": left}
    if bias:
        shapes["bias"] = (partition.out_features,)
    return Example(name, shapes, layer_attributes(partition, rank), dynamic)


op: Final = Op(
    name=NAME,
    doc="y = M · x + bias, a linear layer whose weight is a grid of blocks of low rank",
    infer=infer,
    decompose=decompose,
    cost=cost,
    examples=(
        _example("matrix", (5,), Partition(6, 12, 2, 3), 1),
        _example("no bias", (2, 5), Partition(15, 14, 3, 2), 2, bias=False, dynamic=(0, 1)),
        _example("strided results", (2, 5), Partition(6, 20, 2, 4, False, True), 2, dynamic=(0, 1)),
        _example("strided inputs", (7,), Partition(12, 10, 4, 2, True), 3),
        _example("counts that divide nothing", (2, 3), Partition(11, 13, 4, 3), 2, dynamic=(0, 1)),
        _example("the same, strided", (2, 3), Partition(11, 13, 4, 3, True, True), 2, dynamic=(0, 1)),
        _example("four dims", (2, 3, 4), Partition(10, 21, 5, 3), 1, dynamic=(0, 2)),
        _example("as many blocks as features", (4,), Partition(5, 7, 5, 7), 1),
        _example("a vector", (), Partition(6, 8, 3, 2), 2, dynamic=()),
        _example("extents of one", (3,), Partition(1, 1, 1, 1), 1),
    ),
)
