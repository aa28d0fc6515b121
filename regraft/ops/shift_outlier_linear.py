"""Linear layer whose weights are sums of signed powers of two, except for a few columns in floating point.

    y = Q(x ∘ inliers) · (values · scale)ᵀ + x[outliers] · outlier_weightᵀ + bias

`codes` unpack to `values` as in `shift_linear`; everything else is as in `int8_outlier_linear`: columns of x that are
far larger than the others are masked before the range is taken, and multiplied apart, with the weights that they had.
"""

from typing import Final

from regraft.graph.cost_types import OpCost
from regraft.graph.types import TensorType
from regraft.ops import int8_outlier_linear
from regraft.ops._builder import Builder, V
from regraft.ops._int8 import check_layer, result_type
from regraft.ops._op import Example, Ints, Op, require
from regraft.ops._shift import FLOATING, PER_ROW, check_codes, example_codes, shift_cost, unpack_weight


def infer(
    x: TensorType,
    codes: TensorType,
    scale: TensorType,
    inliers: TensorType,
    outliers: TensorType,
    outlier_weight: TensorType,
    bias: TensorType | None = None,
    *,
    terms: int,
    in_features: int,
    activations: int,
) -> TensorType:
    """Return the type of y: x's leading dims, then `out`."""
    weight = check_codes(op.name, codes, terms, in_features, activations)
    require(activations != FLOATING, f"{op.name}: activations must be quantized (1 or 2); got {activations}")
    check_layer(op.name, x, weight, scale, bias)
    int8_outlier_linear.check_outliers(op.name, weight, inliers, outliers, outlier_weight)
    return result_type(x, weight)


def decompose(
    b: Builder[V],
    x: V,
    codes: V,
    scale: V,
    inliers: V,
    outliers: V,
    outlier_weight: V,
    bias: V | None = None,
    *,
    terms: int,
    in_features: int,
    activations: int,
) -> V:
    """Unpack, then the product in integers and the few columns in floating point."""
    values = unpack_weight(b, codes, terms=terms, in_features=in_features)
    per_row = int(activations == PER_ROW)
    return int8_outlier_linear.decompose(b, x, values, scale, inliers, outliers, outlier_weight, bias, per_row=per_row)


def cost(
    x: TensorType,
    codes: TensorType,
    scale: TensorType,
    inliers: TensorType,
    outliers: TensorType,
    outlier_weight: TensorType,
    bias: TensorType | None = None,
    *,
    terms: int,
    in_features: int,
    activations: int,
) -> OpCost:
    """Those of `shift_linear`, and multiply-adds of the few columns."""
    few = outlier_weight.shape[1] if outlier_weight.shape else 0
    return shift_cost(x, codes, terms=terms, in_features=in_features, activations=activations, outliers=few)


def _example(
    name: str, x: tuple[int, ...], out: int, few: int, terms: int, activations: int, *, bias: bool = True
) -> Example:
    shapes: dict[str, tuple[int, ...] | Ints] = {
        "x": x,
        "codes": example_codes(out, x[-1], terms),
        "scale": (out,),
        "inliers": Ints((x[-1],), 0, 1, "bool"),
        "outliers": Ints((few,), 0, x[-1] - 1, "int64"),
        "outlier_weight": (out, few),
    }
    return Example(
        name,
        {**shapes, "bias": (out,)} if bias else shapes,
        {"terms": terms, "in_features": x[-1], "activations": activations},
        dynamic=tuple(range(len(x) - 1)),
    )


op: Final = Op(
    name="shift_outlier_linear",
    doc="y = Q(x ∘ inliers) · (values · scale)ᵀ + x[outliers] · outlier_weightᵀ + bias, few columns not shifted",
    infer=infer,
    decompose=decompose,
    cost=cost,
    linear_weights=("outlier_weight",),
    smooth=False,
    examples=(
        _example("two terms, row by row", (2, 5, 7), 4, 3, 2, 2),
        _example("one term, one step for all", (2, 5, 11), 13, 3, 1, 1),
        _example("no bias", (5, 7), 4, 2, 1, 2, bias=False),
        _example("one outlier", (5, 67), 65, 1, 2, 1),
        _example("extents of one", (3, 1), 1, 1, 1, 2),
    ),
)
