"""The operators of ONNX that are taken, as functions of torch, for tracing; semantics of opset 13 and later."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import onnx_ir as ir
import torch
from torch import Tensor

from regraft.backends.tvm._onnx_activations import ACTIVATIONS
from regraft.backends.tvm._onnx_attention import ATTENTION
from regraft.backends.tvm._onnx_extents import Attributes, Operator, as_tensor, given, refused
from regraft.backends.tvm._onnx_layout import LAYOUT, axes_of, known
from regraft.backends.tvm._onnx_normalization import NORMALIZATION
from regraft.backends.tvm._onnx_quantized import QUANTIZED
from regraft.backends.tvm._onnx_windows import WINDOWS
from regraft.frontends.onnx import dtype_label
from regraft.graph.types import torch_dtype


def _dtype(code: int) -> torch.dtype:
    found = torch_dtype(dtype_label(ir.DataType(code)) or "")
    if found is None:
        raise refused("Cast", f"{ir.DataType(code).name} has no form in torch")
    return found


def _cast(operands: Sequence[Any], attributes: Attributes) -> Any:
    return as_tensor(operands[0]).to(_dtype(attributes["to"]))


def _reduction(function: Callable[..., Tensor], name: str) -> Operator:
    def apply(operands: Sequence[Any], attributes: Attributes) -> Any:
        x, axes = as_tensor(operands[0]), axes_of(name, operands, attributes)
        if not axes and attributes.get("noop_with_empty_axes", 0):
            return x
        kept = bool(attributes.get("keepdims", 1))
        return function(x, axes or list(range(x.dim())), keepdim=kept).to(x.dtype)

    return apply


def _length(x: Tensor, axes: list[int], *, keepdim: bool) -> Tensor:
    return torch.sqrt((x * x).sum(axes, keepdim=keepdim))


def _sizes(x: Tensor, axes: list[int], *, keepdim: bool) -> Tensor:
    return torch.abs(x).sum(axes, keepdim=keepdim)


def _squares(x: Tensor, axes: list[int], *, keepdim: bool) -> Tensor:
    return (x * x).sum(axes, keepdim=keepdim)


def _extreme_place(function: Callable[..., Tensor], name: str) -> Operator:
    def apply(operands: Sequence[Any], attributes: Attributes) -> Any:
        if attributes.get("select_last_index", 0):
            raise refused(name, "select_last_index is not translated")
        return function(operands[0], attributes.get("axis", 0), keepdim=bool(attributes.get("keepdims", 1)))

    return apply


def _softmax(function: Callable[..., Tensor]) -> Operator:
    return lambda operands, attributes: function(operands[0], dim=attributes.get("axis", -1))


def _gemm(operands: Sequence[Any], attributes: Attributes) -> Any:
    a, b, c = given(operands, 3)
    a, b = (a.t() if attributes.get("transA", 0) else a), (b.t() if attributes.get("transB", 0) else b)
    y = attributes.get("alpha", 1.0) * torch.matmul(a, b) if attributes.get("alpha", 1.0) != 1 else torch.matmul(a, b)
    return y if c is None else y + (c if attributes.get("beta", 1.0) == 1 else attributes["beta"] * c)


def _fused_matmul(operands: Sequence[Any], attributes: Attributes) -> Any:
    if attributes.get("transBatchA", 0) or attributes.get("transBatchB", 0):
        raise refused("com.microsoft::FusedMatMul", "transBatchA and transBatchB are not translated")
    a, b = (
        x.transpose(-1, -2) if attributes.get(name, 0) and x.dim() > 1 else x
        for x, name in zip(operands, ("transA", "transB"), strict=True)
    )
    y = torch.matmul(a, b)
    return y if attributes.get("alpha", 1.0) == 1 else attributes["alpha"] * y


def _clip(operands: Sequence[Any], _: Attributes) -> Any:
    x, low, high = map(as_tensor, given(operands, 3))
    x = x if low is None else torch.maximum(x, low)
    return x if high is None else torch.minimum(x, high)


def _trilu(operands: Sequence[Any], attributes: Attributes) -> Any:
    diagonal = known("Trilu", operands[1])[0] if len(operands) > 1 else 0
    return (torch.triu if attributes.get("upper", 1) else torch.tril)(operands[0], diagonal)


def _top_k(operands: Sequence[Any], attributes: Attributes) -> Any:
    largest = bool(attributes.get("largest", 1))
    return tuple(torch.topk(operands[0], known("TopK", operands[1])[0], attributes.get("axis", -1), largest))


OPERATORS: Final[Mapping[str, Operator]] = {
    **ACTIVATIONS,
    **ATTENTION,
    **LAYOUT,
    **NORMALIZATION,
    **QUANTIZED,
    **WINDOWS,
    "ArgMax": _extreme_place(torch.argmax, "ArgMax"),
    "ArgMin": _extreme_place(torch.argmin, "ArgMin"),
    "Cast": _cast,
    "CastLike": lambda operands, _: as_tensor(operands[0]).to(as_tensor(operands[1]).dtype),
    "Clip": _clip,
    "Dropout": lambda operands, _: operands[0],
    "Gemm": _gemm,
    "Identity": lambda operands, _: operands[0],
    "LogSoftmax": _softmax(torch.log_softmax),
    "MatMul": lambda operands, _: torch.matmul(*map(as_tensor, operands)),
    "ReduceL1": _reduction(_sizes, "ReduceL1"),
    "ReduceL2": _reduction(_length, "ReduceL2"),
    "ReduceMax": _reduction(torch.amax, "ReduceMax"),
    "ReduceMean": _reduction(torch.mean, "ReduceMean"),
    "ReduceMin": _reduction(torch.amin, "ReduceMin"),
    "ReduceSum": _reduction(torch.sum, "ReduceSum"),
    "ReduceSumSquare": _reduction(_squares, "ReduceSumSquare"),
    "Shape": lambda operands, _: operands[0],
    "Softmax": _softmax(torch.softmax),
    "TopK": _top_k,
    "Trilu": _trilu,
    "com.microsoft::FusedMatMul": _fused_matmul,
}
"""By their names as ONNX spells them."""

REASONS: Final[Mapping[str, str]] = {
    "Compress": "the shape of its result depends on data",
    "If": "a choice between bodies that is made of data",
    "Loop": "a loop whose length is data",
    "NonMaxSuppression": "the shape of its result depends on data",
    "NonZero": "the shape of its result depends on data",
    "Scan": "a loop over slices",
    "Unique": "the shape of its result depends on data",
    **dict.fromkeys(
        ("Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"),
        "its result is random",
    ),
    **dict.fromkeys(("GRU", "LSTM", "RNN"), "a loop over the sequence"),
    **dict.fromkeys(
        ("ConcatFromSequence", "SequenceAt", "SequenceConstruct", "SequenceInsert", "SplitToSequence"),
        "a sequence of tensors",
    ),
}
"""Why operators are not taken, where there is more to say than that they are unknown."""
