"""Linear layer in 8-bit integers, except for a few columns that stay in floating point.

    y = Q(x ∘ inliers) · (weight · scale)ᵀ + x[outliers] · outlier_weightᵀ + bias

    x: [..., in], weight: int8 [out, in], scale: [out], inliers: bool [in], outliers: int64 [k],
    outlier_weight: [out, k], bias: [out]

Columns of x that are far larger than the others would leave the others few of the 256 values, so they are masked
(`inliers` is 0 there) before the range is taken, and multiplied apart, with the weights that they had. Q is that of
`int8_linear`. The columns are fixed: all shapes are static. With every column an outlier, the layer is the dense one.

Multiply-adds a row: in · out in integers and k · out in floating point. Derivatives are straight-through.

Source: Dettmers et al. 2022, arXiv:2208.07339, with columns from calibration rather than from each batch, and with the
original weights for them rather than weights restored from int8.
"""

from typing import Final

from regraft.graph.cost_types import OpCost
from regraft.graph.symbols import dim_expr, numel
from regraft.graph.types import TensorType
from regraft.ops._builder import Builder, V
from regraft.ops._int8 import check_layer, int8_product, product_cost, result_type
from regraft.ops._op import Example, Ints, Op, require


def infer(
    x: TensorType,
    weight: TensorType,
    scale: TensorType,
    inliers: TensorType,
    outliers: TensorType,
    outlier_weight: TensorType,
    bias: TensorType | None = None,
    *,
    per_row: int,
) -> TensorType:
    """Return the type of y: x's leading dims, then `out`."""
    check_layer(op.name, x, weight, scale, bias)
    check_outliers(op.name, weight, inliers, outliers, outlier_weight)
    return result_type(x, weight)


def check_outliers(
    name: str, weight: TensorType, inliers: TensorType, outliers: TensorType, outlier_weight: TensorType
) -> None:
    """Raise ShapeError unless the operands of the columns in floating point fit those of the others."""
    assert weight.shape is not None
    rows, columns = weight.shape
    require(inliers.shape == (columns,), f"{name}: inliers must be [{columns}]; got {inliers}")
    require(outliers.rank == 1, f"{name}: outliers must be 1-D; got {outliers}")
    assert outliers.shape is not None
    wanted = (rows, *outliers.shape)
    shown = f"[{rows}, {outliers.shape[0]}]"
    require(outlier_weight.shape == wanted, f"{name}: outlier_weight must be {shown}; got {outlier_weight}")


def decompose(
    b: Builder[V],
    x: V,
    weight: V,
    scale: V,
    inliers: V,
    outliers: V,
    outlier_weight: V,
    bias: V | None = None,
    *,
    per_row: int,
) -> V:
    """The product in integers, then the few columns in floating point."""
    wide = b.widen(x)
    y = int8_product(b, b.mul(wide, b.cast_like(inliers, wide)), weight, scale, per_row=per_row)
    few = b.linear(b.gather(x, outliers, -1), outlier_weight)
    if bias is None:
        return b.add(b.cast_like(y, x), few)
    if per_row:  # at the end, ONNX Runtime can fuse it with what comes next: an activation, a residual
        return b.add(b.add(b.cast_like(y, x), few), bias)
    # Right behind the integer product it costs ONNX Runtime nothing.
    return b.add(b.cast_like(b.add(y, b.cast_like(bias, y)), x), few)


def cost(
    x: TensorType,
    weight: TensorType,
    scale: TensorType,
    inliers: TensorType,
    outliers: TensorType,
    outlier_weight: TensorType,
    bias: TensorType | None = None,
    *,
    per_row: int,
) -> OpCost:
    """Multiply-adds of both products."""
    found = product_cost(x, weight)
    if x.shape is None or outlier_weight.shape is None:
        return found
    few = numel(x.shape[:-1]) * dim_expr(outlier_weight.shape[0]) * dim_expr(outlier_weight.shape[1])
    return found.with_floating(few)


def _shapes(x: tuple[int, ...], out: int, few: int, bias: bool = True) -> dict[str, tuple[int, ...] | Ints]:
    width = x[-1]
    return {
        "x": x,
        "weight": Ints((out, width), -127, 127),
        "scale": (out,),
        "inliers": Ints((width,), 0, 1, "bool"),
        "outliers": Ints((few,), 0, width - 1, "int64"),
        "outlier_weight": (out, few),
        **({"bias": (out,)} if bias else {}),
    }


op: Final = Op(
    name="int8_outlier_linear",
    doc="y = Q(x ∘ inliers) · (weight · scale)ᵀ + x[outliers] · outlier_weightᵀ + bias, few columns not in 8 bits",
    infer=infer,
    decompose=decompose,
    cost=cost,
    linear_weights=("weight", "outlier_weight"),
    smooth=False,
    examples=(
        Example("row by row", _shapes((2, 5, 7), 4, 3), {"per_row": 1}, dynamic=(0, 1)),
        Example("one step for all", _shapes((2, 5, 11), 13, 3), {"per_row": 0}, dynamic=(0, 1)),
        Example("no bias", _shapes((5, 7), 4, 2, bias=False), {"per_row": 1}),
        Example("one outlier", _shapes((5, 67), 65, 1), {"per_row": 0}),
        Example("extents of one", _shapes((3, 1), 1, 1), {"per_row": 1}),
    ),
)
