"""The cases of operators that the TVM backend takes from ONNX files."""

from typing import Any

import numpy as np
from onnx_cases import BATCH, MICROSOFT, Case, codes, ints, numbers, positive, weight

X = numbers(BATCH, 6)
IMAGE = numbers(BATCH, 4, 7, 6)
LINE = numbers(BATCH, 4, 9)
SEEN = np.random.default_rng(3).random((BATCH, 1, 4, 6)) > 0.3
SEEN[0, 0, 1] = False  # one query that sees nothing


def pointwise() -> list[Case]:
    plain = "Abs Ceil Cos Erf Exp Floor HardSwish LeakyRelu Elu HardSigmoid Mish Neg Relu Round Selu Celu Sigmoid Sign"
    more = "Sin Softplus Softsign Tanh ThresholdedRelu Gelu"
    found = [Case(op, [X]) for op in (plain + " " + more).split()]
    chosen: dict[str, dict[str, Any]] = {
        "LeakyRelu": {"alpha": 0.3},
        "Elu": {"alpha": 0.7},
        "HardSigmoid": {"alpha": 0.3, "beta": 0.4},
        "Celu": {"alpha": 0.5},
        "Gelu": {"approximate": "tanh"},
        "ThresholdedRelu": {"alpha": 0.4},
    }
    return [
        *found,
        *(Case(op, [X], attributes, note="attributes") for op, attributes in chosen.items()),
        Case("Swish", [X], {"alpha": 0.5}, opset=24),
        Case("PRelu", [X, weight(positive(6))]),
        Case("Mod", [codes(BATCH, 3, dtype=np.int64) - 50, codes(BATCH, 3, dtype=np.int64) % 7 - 8]),
        Case("Mod", [X, positive(BATCH, 6)], {"fmod": 1}, note="fmod"),
        Case("Mean", [X, positive(BATCH, 6), positive(6)]),
        Case("Sum", [X, positive(BATCH, 6), positive(6)]),
        Case("IsInf", [np.array([[np.inf, -np.inf, 1]] * BATCH, np.float32)], {"detect_negative": 0}),
        Case("Xor", [X > 0, positive(BATCH, 6) > 1]),
        Case("Gelu", [X], domain=MICROSOFT),
        Case("QuickGelu", [X], domain=MICROSOFT),
        Case("QuickGelu", [X], {"alpha": 1.5}, MICROSOFT, note="alpha"),
        Case("FastGelu", [X], domain=MICROSOFT),
        Case("FastGelu", [X, weight(positive(6))], domain=MICROSOFT, note="bias"),
        Case("BiasGelu", [X, weight(positive(6))], domain=MICROSOFT),
    ]


def products() -> list[Case]:
    a, b = numbers(BATCH, 3, 4), numbers(BATCH, 4, 2, seed=1)
    turned = {"transA": 1, "transB": 1, "alpha": 0.5}
    return [
        Case("FusedMatMul", [a, b], {"alpha": 0.3}, MICROSOFT),
        Case("FusedMatMul", [a.swapaxes(1, 2).copy(), b.swapaxes(1, 2).copy()], turned, MICROSOFT, note="turned"),
        Case("Einsum", [a, b], {"equation": "bij,bjk->bik"}),
        Case("Einsum", [a, numbers(4, 2)], {"equation": "bij,jk->bki"}, note="turned"),
        Case("Einsum", [a, numbers(3, 4)], {"equation": "bij,ij->b"}, note="summed"),
        Case("ReduceL1", [a, ints(1)]),
        Case("ReduceL2", [a, ints(-1)], {"keepdims": 0}),
        Case("ReduceSumSquare", [a, ints(1, 2)]),
        Case("ArgMax", [a], {"axis": 1, "keepdims": 0}),
        Case("ArgMin", [a], {"axis": -1}),
    ]


def normalizations() -> list[Case]:
    x, skip, image = numbers(BATCH, 3, 8), numbers(BATCH, 3, 8, seed=1), numbers(BATCH, 6, 3, 4)
    w, b = weight(positive(8)), weight(numbers(8))
    four, six, two = (weight(positive(extent)) for extent in (4, 6, 2))
    batch = [four, weight(numbers(4)), weight(numbers(4, seed=1)), four]
    return [
        Case("RMSNormalization", [x, w]),
        Case("RMSNormalization", [x, weight(positive(3, 8))], {"axis": 1, "epsilon": 0.01}, note="axis"),
        Case("SimplifiedLayerNormalization", [x, w], {"axis": -1, "epsilon": 1e-5}, opset=17),
        Case("SkipLayerNormalization", [x, skip, w, b], {"epsilon": 1e-5}, MICROSOFT, outputs=(0, 3)),
        Case("SkipLayerNormalization", [x, skip, w, b, w], {"epsilon": 1e-5}, MICROSOFT, note="bias"),
        Case("SkipSimplifiedLayerNormalization", [x, skip, w], {"epsilon": 1e-5}, MICROSOFT, outputs=(0, 3)),
        Case("SkipSimplifiedLayerNormalization", [x, skip, w, b], {"epsilon": 1e-5}, MICROSOFT, note="bias"),
        Case("BatchNormalization", [IMAGE, *batch], {"epsilon": 1e-3}),
        Case("BatchNormalization", [LINE, *batch], note="line"),
        Case("InstanceNormalization", [IMAGE, four, weight(numbers(4))]),
        Case("GroupNormalization", [image, six, weight(numbers(6))], {"num_groups": 2}, opset=21),
        Case("GroupNormalization", [image, two, weight(numbers(2))], {"num_groups": 2}, opset=18, note="of-groups"),
        Case("LayerNormalization", [x, w, b], {"epsilon": 1e-3}),
    ]


def windows() -> list[Case]:
    w, bias = weight(numbers(6, 4, 3, 2, seed=1)), weight(numbers(6))
    grouped, line = weight(numbers(8, 2, 3, 3, seed=1)), weight(numbers(3, 4, 3, seed=1))
    back = weight(numbers(4, 3, 3, 2, seed=1))
    pool = {"kernel_shape": [3, 2]}
    return [
        Case("Conv", [IMAGE, w, bias], {"strides": [2, 1], "dilations": [1, 2]}),
        Case("Conv", [IMAGE, w], {"pads": [1, 0, 2, 1]}, note="unequal"),
        Case("Conv", [IMAGE, w, bias], {"auto_pad": "SAME_UPPER", "strides": [2, 2]}, note="upper"),
        Case("Conv", [IMAGE, w, bias], {"auto_pad": "SAME_LOWER"}, note="lower"),
        Case("Conv", [IMAGE, w, bias], {"auto_pad": "VALID"}, note="valid"),
        Case("Conv", [IMAGE, grouped], {"group": 2, "pads": [1, 1, 1, 1]}, note="groups"),
        Case("Conv", [LINE, line], {"pads": [0, 2]}, note="line"),
        Case("ConvTranspose", [IMAGE, back], {"strides": [2, 3]}),
        Case(
            "ConvTranspose", [IMAGE, back, weight(numbers(3))], {"strides": [2, 2], "pads": [1, 0, 1, 0]}, note="pads"
        ),
        Case("ConvTranspose", [IMAGE, back], {"strides": [2, 2], "pads": [0, 1, 1, 0]}, note="unequal"),
        Case("ConvTranspose", [IMAGE, back], {"strides": [2, 2], "output_padding": [1, 1]}, note="output"),
        Case("MaxPool", [IMAGE], {**pool, "strides": [2, 2]}),
        Case("MaxPool", [IMAGE], {**pool, "pads": [1, 0, 0, 1]}, note="pads"),
        Case("MaxPool", [IMAGE], {**pool, "auto_pad": "SAME_UPPER", "strides": [2, 2]}, note="upper"),
        Case("MaxPool", [LINE], {"kernel_shape": [3], "strides": [3], "ceil_mode": 1}, note="line"),
        Case("AveragePool", [IMAGE], {**pool, "strides": [2, 2]}),
        Case("AveragePool", [IMAGE], {**pool, "pads": [1, 0, 0, 1]}, note="pads"),
        Case("AveragePool", [IMAGE], {**pool, "pads": [1, 1, 1, 1], "count_include_pad": 1}, note="counted"),
        Case("AveragePool", [LINE], {"kernel_shape": [3], "pads": [1, 1]}, note="line"),
        Case("GlobalAveragePool", [IMAGE]),
        Case("GlobalMaxPool", [IMAGE]),
    ]


def resizes() -> list[Case]:
    none, twice = weight(np.zeros(0, np.float32)), weight([1, 1, 2, 2], np.float32)
    more, sizes = weight([1, 1, 1.5, 0.5], np.float32), ints(4, 11, 4)
    linear = {"mode": "linear"}
    align = {"mode": "linear", "coordinate_transformation_mode": "align_corners"}
    old = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    return [
        Case("Resize", [IMAGE, None, twice], old, note="nearest"),
        Case("Resize", [IMAGE, None, more], note="nearest-part"),
        Case("Resize", [IMAGE, none, twice], linear, note="linear"),
        Case("Resize", [IMAGE, None, more], linear, note="linear-part"),
        Case("Resize", [IMAGE, None, None, sizes], {**align, "axes": [1, 2, 3]}, note="corners"),
        Case("Resize", [IMAGE, None, None, sizes], {"axes": [1, 2, 3], "nearest_mode": "ceil"}, note="sizes"),
    ]


def quantized() -> list[Case]:
    scale, zero, scales, zeros = (
        weight(0.05, np.float32),
        weight(120, np.uint8),
        weight(positive(6)),
        weight([3] * 6, np.int8),
    )
    a, b = codes(BATCH, 3, 4), codes(4, 6, dtype=np.int8)
    image, kernel = codes(BATCH, 4, 7, 6), codes(6, 4, 3, 2, dtype=np.int8)
    blocks = weight(positive(4, 3))
    product = [
        a,
        weight(0.1, np.float32),
        weight(50, np.uint8),
        weight(b),
        scale,
        weight(2, np.int8),
        weight(0.7, np.float32),
    ]
    conv = [image, weight(0.1, np.float32), weight(50, np.uint8), weight(kernel), scales, weight([0] * 6, np.int8)]
    return [
        Case("QuantizeLinear", [X, scale, zero]),
        Case("QuantizeLinear", [X, scale], note="no-zero"),
        Case("QuantizeLinear", [X, scales, zeros], {"axis": -1}, note="axis"),
        Case("QuantizeLinear", [numbers(4, 6), blocks], {"block_size": 2, "output_dtype": 3}, note="blocks"),
        Case("DequantizeLinear", [codes(BATCH, 6), scale, zero]),
        Case("DequantizeLinear", [codes(BATCH, 6, dtype=np.int8), scales, zeros], {"axis": 1}, note="axis"),
        Case("DequantizeLinear", [codes(BATCH, 6, dtype=np.int32), scale], note="wide"),
        Case("DequantizeLinear", [codes(4, 6, dtype=np.int8), blocks], {"block_size": 2}, note="blocks"),
        Case("MatMulInteger", [a, weight(b), zero, weight(7, np.int8)]),
        Case("QLinearMatMul", [*product, zero]),
        Case("ConvInteger", [codes(BATCH, 4, 7, 6), codes(6, 4, 3, 2), zero], {"pads": [1, 1, 1, 1]}),
        Case("QLinearConv", [*conv, weight(0.7, np.float32), zero, weight([90] * 6, np.int32)], {"pads": [1, 0, 1, 0]}),
    ]


def layouts() -> list[Case]:
    x, rows = numbers(BATCH, 3, 4), np.array([[0, 2], [3, 1]], np.int64)
    places, updates = np.array([[[0, 1], [1, -1]], [[2, 0], [3, 2]]], np.int64), numbers(2, 2, 4, seed=1)
    four = numbers(4, 3, 4)
    return [
        Case("Tile", [x, ints(1, 2, 3)]),
        Case("OneHot", [codes(BATCH, 2, dtype=np.int64, high=4), weight(4, np.int64), weight([2, 5], np.float32)]),
        Case(
            "OneHot",
            [codes(BATCH, 2, dtype=np.int64, high=4) - 4, weight(4, np.int64), weight([0, 1], np.float32)],
            {"axis": 1},
            note="axis",
        ),
        Case("GatherND", [four, rows[:, :1].copy()]),
        Case("GatherND", [x, codes(BATCH, 2, 1, dtype=np.int64, high=3)], {"batch_dims": 1}, note="batch"),
        Case("ScatterND", [four, places, updates]),
        Case("ScatterND", [four, places, updates], {"reduction": "add"}, note="add"),
        Case(
            "ScatterElements",
            [x, codes(BATCH, 1, 4, dtype=np.int64, high=3) - 3, numbers(BATCH, 1, 4, seed=1)],
            {"axis": 1},
        ),
        Case(
            "ScatterElements",
            [x, codes(BATCH, 2, 4, dtype=np.int64, high=3), numbers(BATCH, 2, 4, seed=1)],
            {"axis": 1, "reduction": "add"},
            note="add",
        ),
        Case(
            "ScatterElements",
            [x, codes(BATCH, 2, 4, dtype=np.int64, high=3), numbers(BATCH, 2, 4, seed=1)],
            {"axis": 1, "reduction": "max"},
            note="max",
        ),
        Case("CumSum", [x, weight(1, np.int64)]),
        Case("CumSum", [x, weight(1, np.int64)], {"exclusive": 1}, note="exclusive"),
        Case("CumSum", [x, weight(2, np.int64)], {"reverse": 1}, note="reverse"),
        Case("CumSum", [x, weight(-1, np.int64)], {"reverse": 1, "exclusive": 1}, note="both"),
        Case("Split", [x], {"axis": 2, "num_outputs": 2}, outputs=(0, 1)),
        Case("Split", [x, ints(1, 3)], {"axis": 2}, outputs=(0, 1), note="sizes"),
        Case("Split", [x], {"axis": 1}, opset=13, outputs=(0, 1, 2), note="results"),
        Case("Slice", [x, ints(-1), ints(-(2**63)), ints(2), ints(-1)], note="turned"),
        Case("DepthToSpace", [numbers(BATCH, 8, 2, 3)], {"blocksize": 2}),
        Case("DepthToSpace", [numbers(BATCH, 8, 2, 3)], {"blocksize": 2, "mode": "CRD"}, note="crd"),
        Case("SpaceToDepth", [numbers(BATCH, 2, 4, 6)], {"blocksize": 2}),
    ]


def attentions() -> list[Case]:
    q, k, v = (numbers(BATCH, 4, rows, 8, seed=rows + at) for at, rows in enumerate((4, 6, 6)))
    few = [q, k[:, :2].copy(), v[:, :2].copy()]
    wide = [numbers(BATCH, rows, 32, seed=at) for at, rows in enumerate((4, 6, 6))]
    heads = {"q_num_heads": 4, "kv_num_heads": 4}
    past = [numbers(BATCH, 4, 3, 8, seed=7), numbers(BATCH, 4, 3, 8, seed=8)]
    bias = numbers(BATCH, 4, 4, 6, seed=9)
    masks = (np.arange(6) < np.array([[6], [3], [1], [5], [2]])).astype(np.int32)
    lm = {"num_heads": 4}
    tables = [weight(numbers(12, 4)), weight(numbers(12, 4, seed=1))]
    places = codes(BATCH, 4, dtype=np.int64, high=12)
    return [
        Case("Attention", [q, k, v]),
        Case("Attention", few, {"scale": 0.3}, note="few-heads"),
        Case("Attention", wide, heads, note="wide"),
        Case("Attention", wide, {**heads, "is_causal": 1}, note="causal"),
        Case("Attention", [q, k, v, SEEN], note="mask"),
        Case("Attention", [q, k, v, SEEN], {"is_causal": 1}, note="mask-causal"),
        Case("Attention", [q, k, v, bias], {"softcap": 1.5}, note="bias-softcap"),
        Case("Attention", [q, k, v, None, *past], {"is_causal": 1}, outputs=(0, 1, 2), note="past"),
        Case("Attention", [q, k, v], opset=24, note="opset-24"),
        Case("MultiHeadAttention", wide, lm, MICROSOFT),
        Case("MultiHeadAttention", [*wide, weight(numbers(96, seed=4))], {**lm, "scale": 0.2}, MICROSOFT, note="bias"),
        Case("MultiHeadAttention", [*wide, None, masks], lm, MICROSOFT, note="keys"),
        Case("MultiHeadAttention", [*wide, None, None, bias], lm, MICROSOFT, note="added"),
        Case("MultiHeadAttention", [wide[0], wide[0], wide[0]], {**lm, "unidirectional": 1}, MICROSOFT, note="causal"),
        Case("RotaryEmbedding", [q, *tables, places]),
        Case("RotaryEmbedding", [q, *tables, places], {"interleaved": 1}, note="interleaved"),
        Case("RotaryEmbedding", [wide[0], *tables, places], {"num_heads": 4}, note="wide"),
        Case(
            "RotaryEmbedding",
            [q, *(weight(t.value[:, :2]) for t in tables), places],
            {"rotary_embedding_dim": 4},
            note="part",
        ),
    ]


CASES = [
    *pointwise(),
    *products(),
    *normalizations(),
    *windows(),
    *resizes(),
    *quantized(),
    *layouts(),
    *attentions(),
]
