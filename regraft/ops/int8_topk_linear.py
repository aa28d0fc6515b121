"""Linear layer in 8-bit integers, except for the largest columns of each call that stay in floating point.

    y = Q(x ∘ m) · wᵀ + g · x[o] · w[o]ᵀ + bias     w = weight · scale; x: [..., in], weight: int8 [out, in],
                                                    scale: [out], bias: [out]

    o: the `columns` columns of x with the largest peaks max|x[:, j]| over all its rows
    g: 1 where such a peak reaches `threshold`, else 0;  m: 0 in the columns o where g is 1, else 1

Needs no calibration. While no more than `columns` columns reach the threshold, these are the outliers of LLM.int8(),
with shapes that do not depend on the data; of more, the largest are taken and the others stretch the steps. The weights
of these columns are restored from int8, so that no second copy of the weight is kept. The choice looks at the whole
input, so that a row's result depends on the rows beside it, as in the published method. Q is that of `int8_linear`;
with `threshold=0` the largest columns are always taken.

Multiply-adds a row: in · out in integers and columns · out in floating point. Derivatives are straight-through.

Source: Dettmers et al. 2022, arXiv:2208.07339.
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
    bias: TensorType | None = None,
    *,
    columns: int,
    threshold: float,
    per_row: int,
) -> TensorType:
    """Return the type of y: x's leading dims, then `out`."""
    check_layer(op.name, x, weight, scale, bias)
    assert weight.shape is not None
    width = weight.shape[1]
    fits = columns >= 1 and (not isinstance(width, int) or columns <= width)
    require(fits, f"{op.name}: columns must be at least 1 and at most {width}; got {columns}")
    return result_type(x, weight)


def decompose(
    b: Builder[V],
    x: V,
    weight: V,
    scale: V,
    bias: V | None = None,
    *,
    columns: int,
    threshold: float,
    per_row: int,
) -> V:
    """Find the columns, mask them, and multiply twice."""
    rows = b.as_rows(b.widen(x))
    of_column = b.reduce_max(b.abs(rows), 0)
    peaks, places = b.top_k(of_column, columns)
    # 1 where peak >= threshold, without a comparison of its own.
    reached = b.cast_like(b.equal(b.maximum(peaks, b.scalar(threshold, peaks)), peaks), peaks)
    ones = b.cast_like(b.equal(of_column, of_column), rows)
    inliers = b.scatter(ones, places, b.sub(b.scalar(1.0, reached), reached))
    y = int8_product(b, b.mul(rows, inliers), weight, scale, per_row=per_row)
    y = y if bias is None else b.add(y, b.cast_like(bias, y))
    chosen = b.reshape(places, (columns,))
    few = b.mul(b.gather(rows, chosen, -1), reached)
    restored = b.mul(b.cast_like(b.gather(b.swap_last(weight), chosen, 0), few), b.cast_like(scale, few))
    return b.cast_like(b.like_rows_of(b.add(y, b.matmul(few, restored)), x), x)


def cost(
    x: TensorType,
    weight: TensorType,
    scale: TensorType,
    bias: TensorType | None = None,
    *,
    columns: int,
    threshold: float,
    per_row: int,
) -> OpCost:
    """Multiply-adds of both products."""
    found = product_cost(x, weight)
    if x.shape is None or weight.shape is None:
        return found
    few = numel(x.shape[:-1]) * columns * dim_expr(weight.shape[0])
    return found.with_floating(few)


def _shapes(x: tuple[int, ...], out: int, bias: bool = True) -> dict[str, tuple[int, ...] | Ints]:
    weight = Ints((out, x[-1]), -127, 127)
    return {"x": x, "weight": weight, "scale": (out,), **({"bias": (out,)} if bias else {})}


op: Final = Op(
    name="int8_topk_linear",
    doc="y = Q(x ∘ m) · wᵀ + x[o] · w[o]ᵀ + bias with w = weight · scale, the largest columns o not in 8 bits",
    infer=infer,
    decompose=decompose,
    cost=cost,
    linear_weights=("weight",),
    smooth=False,
    examples=(
        Example("some reach it", _shapes((2, 5, 7), 4), {"columns": 3, "threshold": 1.5, "per_row": 1}, dynamic=(0, 1)),
        Example(
            "more reach it than fit", _shapes((2, 5, 11), 13), {"columns": 2, "threshold": 0.0, "per_row": 0}, (0, 1)
        ),
        Example("none reaches it", _shapes((5, 7), 4, bias=False), {"columns": 2, "threshold": 100.0, "per_row": 1}),
        Example("every column", _shapes((2, 3, 4, 6), 8), {"columns": 6, "threshold": 0.0, "per_row": 1}, (0, 2)),
        Example("extents of one", _shapes((3, 1), 1), {"columns": 1, "threshold": 6.0, "per_row": 0}),
    ),
)
