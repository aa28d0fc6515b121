"""Monarch linear layer whose blocks are sums of signed powers of two, in 4 bits a term.

    right_codes: uint8 [k · l · ρ, ceil(terms · p / 2)]    unpacked and turned to int8 [k, p, l · ρ]
    left_codes: uint8 [l · s, ceil(terms · k · ρ / 2)]     unpacked and turned to int8 [l, k · ρ, s]

A row of codes is a column of a block, packed as in `shift_linear`; scales, bias and columns that stay in floating point
are those of `int8_monarch_linear`, which this layer is once the codes are unpacked: by standard operations on
constants, which a runtime folds when it loads the file. `activations`: 2, the inputs of both products are rounded with
one step a row; 1, with one step for all of each; 0, they stay in floating point.

Parameters: terms / 8 of `monarch_linear`'s, and the scales. Derivatives are straight-through.

Sources: Dao et al. 2022, arXiv:2204.00595 (Monarch); Elhoushi et al. 2021, arXiv:1905.13298 (DeepShift).
"""

from typing import Final

from regraft.graph.cost_types import OpCost
from regraft.graph.types import TensorType
from regraft.numerics.partition import Partition
from regraft.ops import int8_monarch_linear, monarch_linear
from regraft.ops._builder import Builder, V
from regraft.ops._op import Example, Op, require
from regraft.ops._shift import FLOATING, PER_ROW, check_codes, example_codes, unpack_weight
from regraft.ops.int8_monarch_linear import Shapes, beside_columns, floating_product
from regraft.ops.monarch_linear import factor_shapes, partition_of

NAME: Final = "shift_monarch_linear"


def infer(
    x: TensorType,
    right_codes: TensorType,
    right_scale: TensorType,
    left_codes: TensorType,
    left_scale: TensorType,
    bias: TensorType | None = None,
    inliers: TensorType | None = None,
    outliers: TensorType | None = None,
    outlier_weight: TensorType | None = None,
    *,
    terms: int,
    activations: int,
    block_rank: int,
    **counts: int,
) -> TensorType:
    """Return the type of y: x's leading dims, then `out_features`."""
    cut = partition_of(counts)
    require(block_rank >= 1, f"{NAME}: block_rank must be at least 1; got {block_rank}")
    unpacked: list[TensorType] = []
    for operand, codes, shape in zip(
        ("right_codes", "left_codes"), (right_codes, left_codes), factor_shapes(cut, block_rank), strict=True
    ):
        found = check_codes(f"{NAME}: {operand}", codes, terms, shape[1], activations)
        assert found.shape is not None
        rows = shape[0] * shape[2]
        require(found.shape[0] == rows, f"{NAME}: {operand} must have {rows} rows; got {codes}")
        unpacked.append(TensorType("int8", shape))
    int8_monarch_linear.check_scales(NAME, right_scale, left_scale, cut, block_rank)
    int8_monarch_linear.check_columns(NAME, inliers, outliers, outlier_weight, cut)
    return monarch_linear.result_type(NAME, x, unpacked[0], unpacked[1], bias, cut, block_rank)


def decompose(
    b: Builder[V],
    x: V,
    right_codes: V,
    right_scale: V,
    left_codes: V,
    left_scale: V,
    bias: V | None = None,
    inliers: V | None = None,
    outliers: V | None = None,
    outlier_weight: V | None = None,
    *,
    terms: int,
    activations: int,
    in_features: int,
    out_features: int,
    in_blocks: int,
    out_blocks: int,
    block_rank: int,
    in_strided: int = 0,
    out_strided: int = 0,
) -> V:
    """Unpack, then multiply in integers, or in floating point by the restored blocks."""
    cut = Partition(in_features, out_features, in_blocks, out_blocks, bool(in_strided), bool(out_strided))
    inner, outer = factor_shapes(cut, block_rank)
    right, left = _unpacked(b, right_codes, inner, terms), _unpacked(b, left_codes, outer, terms)
    layer = right, right_scale, left, left_scale
    if activations == FLOATING:
        return beside_columns(
            b,
            x,
            lambda seen: floating_product(b, seen, layer, cut, block_rank),
            bias,
            inliers,
            outliers,
            outlier_weight,
        )
    attributes = {name: int(value) for name, value in monarch_linear.layer_attributes(cut, block_rank).items()}
    per_row = int(activations == PER_ROW)
    return int8_monarch_linear.decompose(
        b, x, *layer, bias, inliers, outliers, outlier_weight, per_row=per_row, **attributes
    )


def _unpacked(b: Builder[V], codes: V, shape: tuple[int, int, int], terms: int) -> V:
    """The int8 values of a stack of blocks [blocks, inputs, outputs]."""
    blocks, inputs, outputs = shape
    rows = unpack_weight(b, codes, terms=terms, in_features=inputs)
    return b.permute(b.reshape(rows, [blocks, outputs, inputs]), [0, 2, 1])


def cost(
    x: TensorType,
    right_codes: TensorType,
    right_scale: TensorType,
    left_codes: TensorType,
    left_scale: TensorType,
    bias: TensorType | None = None,
    inliers: TensorType | None = None,
    outliers: TensorType | None = None,
    outlier_weight: TensorType | None = None,
    *,
    terms: int,
    activations: int,
    block_rank: int,
    **counts: int,
) -> OpCost:
    """A shift and an addition a term where activations are quantized, else multiply-adds."""
    if x.shape is None:
        return OpCost()
    cut = partition_of(counts)
    found = int8_monarch_linear.blocks_cost(x, cut, block_rank, outlier_weight, ("shift int32", "add int32"), terms)
    return OpCost(macs=found.macs) if activations == FLOATING else found


def _example(
    name: str,
    leading: tuple[int, ...],
    cut: Partition,
    rank: int,
    terms: int,
    activations: int,
    *,
    few: int = 0,
    bias: bool = True,
    dynamic: tuple[int, ...] = (0,),
) -> Example:
    inner, outer = factor_shapes(cut, rank)
    shapes: Shapes = {
        "x": (*leading, cut.in_features),
        "right_codes": example_codes(inner[0] * inner[2], inner[1], terms),
        "left_codes": example_codes(outer[0] * outer[2], outer[1], terms),
        **int8_monarch_linear.scale_shapes(cut, rank),
        **int8_monarch_linear.column_shapes(cut, few),
    }
    if bias:
        shapes["bias"] = (cut.out_features,)
    attributes = {"terms": terms, "activations": activations, **monarch_linear.layer_attributes(cut, rank)}
    return Example(name, shapes, attributes, dynamic)


op: Final = Op(
    name=NAME,
    doc="y = Q(M · x) + bias, a grid of blocks of low rank that are sums of signed powers of two",
    infer=infer,
    decompose=decompose,
    cost=cost,
    linear_weights=("outlier_weight",),
    smooth=False,
    examples=(
        _example("one term, row by row", (2, 5), Partition(15, 14, 3, 2), 2, 1, 2, dynamic=(0, 1)),
        _example("two terms, one step for all", (2, 5), Partition(6, 20, 2, 4, False, True), 2, 2, 1, dynamic=(0, 1)),
        _example("floating-point activations", (7,), Partition(12, 10, 4, 2, True), 3, 2, 0),
        _example("counts that divide nothing, no bias", (5,), Partition(11, 13, 4, 3, True, True), 1, 1, 2, bias=False),
        _example("outliers", (2, 5), Partition(11, 13, 4, 3), 2, 2, 2, few=3, dynamic=(0, 1)),
        _example("outliers, floating-point activations", (5,), Partition(11, 13, 4, 3), 2, 1, 0, few=3),
        _example("a vector", (), Partition(6, 8, 3, 2), 2, 2, 2, dynamic=()),
        _example("extents of one", (3,), Partition(1, 1, 1, 1), 1, 1, 1),
    ),
)
