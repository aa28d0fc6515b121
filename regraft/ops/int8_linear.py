"""Linear layer in 8-bit integers: weights with one scale a row, activations quantized when it runs.

    y = Q(x) · (weight · scale)ᵀ + bias     x: [..., in], weight: int8 [out, in], scale: [out], bias: [out]

Q rounds x to 256 values that span its range: one step for each row of x (`per_row=1`, "vector-wise") or one for all of
x (`per_row=0`, faster). With w = weight · scale and step s, a result is off by at most Σ|w| · s / 2 (twice that at the
ends of a range whose zero point had to be rounded), and by sqrt(s² ‖w‖² / 12) in the mean square. A row of zeros gives
the bias. The step of a row depends a little on the rows beside it, whose signs decide where the range ends.

Parameters: a byte each, 0.25 of single precision; as many multiply-adds as the dense layer, in integers. Derivatives
are straight-through: those of the layer without Q.

Source: Dettmers et al. 2022, arXiv:2208.07339 (LLM.int8(), without its outliers); activations as in ONNX
DynamicQuantizeLinear.
"""

from typing import Final

from regraft.graph.cost_types import OpCost
from regraft.graph.types import TensorType
from regraft.ops._builder import Builder, V
from regraft.ops._int8 import check_layer, int8_product, product_cost, result_type
from regraft.ops._op import Example, Ints, Op


def infer(
    x: TensorType, weight: TensorType, scale: TensorType, bias: TensorType | None = None, *, per_row: int
) -> TensorType:
    """Return the type of y: x's leading dims, then `out`."""
    check_layer("int8_linear", x, weight, scale, bias)
    return result_type(x, weight)


def decompose(b: Builder[V], x: V, weight: V, scale: V, bias: V | None = None, *, per_row: int) -> V:
    """Quantize, multiply in integers, scale."""
    y = int8_product(b, b.widen(x), weight, scale, per_row=per_row)
    return b.cast_like(y if bias is None else b.add(y, b.cast_like(bias, y)), x)


def cost(
    x: TensorType, weight: TensorType, scale: TensorType, bias: TensorType | None = None, *, per_row: int
) -> OpCost:
    """Multiply-adds of the product; its int32 result, or the codes, live only inside the op."""
    return product_cost(x, weight)


op: Final = Op(
    name="int8_linear",
    doc="y = Q(x) · (weight · scale)ᵀ + bias, a linear layer in 8-bit integers",
    infer=infer,
    decompose=decompose,
    cost=cost,
    linear_weights=("weight",),
    smooth=False,
    examples=(
        Example(
            "row by row",
            {"x": (2, 5, 7), "weight": Ints((4, 7), -127, 127), "scale": (4,), "bias": (4,)},
            {"per_row": 1},
            dynamic=(0, 1),
        ),
        Example(
            "one step for all",
            {"x": (2, 5, 11), "weight": Ints((13, 11), -127, 127), "scale": (13,), "bias": (13,)},
            {"per_row": 0},
            dynamic=(0, 1),
        ),
        Example("no bias", {"x": (5, 7), "weight": Ints((4, 7), -127, 127), "scale": (4,)}, {"per_row": 1}),
        Example(
            "four dims",
            {"x": (2, 3, 4, 6), "weight": Ints((8, 6), -127, 127), "scale": (8,), "bias": (8,)},
            {"per_row": 1},
            dynamic=(0, 2),
        ),
        Example(
            "extents of one",
            {"x": (3, 1), "weight": Ints((1, 1), -127, 127), "scale": (1,), "bias": (1,)},
            {"per_row": 0},
        ),
        Example(
            "wide",
            {"x": (3, 67), "weight": Ints((65, 67), -127, 127), "scale": (65,), "bias": (65,)},
            {"per_row": 0},
        ),
    ),
)
