"""The standard operators of ONNX as functions of torch, for tracing; semantics of opset 13 and later."""

from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import Any, Final

import onnx_ir as ir
import torch
from torch import Tensor
from torch.nn import functional

from regraft.backends.tvm._decompose import TvmBuilder
from regraft.backends.tvm._onnx_extents import Attributes, Operator, as_tensor
from regraft.backends.tvm._onnx_layout import LAYOUT, axes_of, given, known
from regraft.errors import BackendError
from regraft.frontends.onnx import dtype_label
from regraft.graph.types import torch_dtype


def _of(function: Callable[..., Any]) -> Operator:
    """A function of tensors alone."""

    def apply(operands: Sequence[Any], _: Attributes) -> Any:
        return function(*(as_tensor(operand) for operand in operands))

    return apply


def _folded(function: Callable[[Any, Any], Any]) -> Operator:
    """An operator of any number of tensors."""

    def apply(operands: Sequence[Any], _: Attributes) -> Any:
        return reduce(function, map(as_tensor, operands))

    return apply


def _dtype(code: int) -> torch.dtype:
    found = torch_dtype(dtype_label(ir.DataType(code)) or "")
    if found is None:
        raise BackendError(f"tvm backend: Cast to {ir.DataType(code).name} has no form in torch")
    return found


def _div(a: Tensor, b: Tensor) -> Tensor:
    return torch.div(a, b, rounding_mode=None if a.is_floating_point() else "trunc")


def _pow(a: Tensor, b: Tensor) -> Tensor:
    return torch.pow(a, b).to(a.dtype)


def _cast(operands: Sequence[Any], attributes: Attributes) -> Any:
    return as_tensor(operands[0]).to(_dtype(attributes["to"]))


def _reduction(function: Callable[..., Tensor], name: str) -> Operator:
    def apply(operands: Sequence[Any], attributes: Attributes) -> Any:
        x, axes = operands[0], axes_of(name, operands, attributes)
        if not axes and attributes.get("noop_with_empty_axes", 0):
            return x
        return function(x, axes or list(range(x.dim())), keepdim=bool(attributes.get("keepdims", 1)))

    return apply


def _softmax(function: Callable[..., Tensor]) -> Operator:
    return lambda operands, attributes: function(operands[0], dim=attributes.get("axis", -1))


def _layer_norm(operands: Sequence[Any], attributes: Attributes) -> Any:
    x, weight, bias = given(operands, 3)
    axis = attributes.get("axis", -1) % x.dim()
    return functional.layer_norm(x, list(x.shape[axis:]), weight, bias, attributes.get("epsilon", 1e-5))


def _gemm(operands: Sequence[Any], attributes: Attributes) -> Any:
    a, b, c = given(operands, 3)
    a, b = (a.t() if attributes.get("transA", 0) else a), (b.t() if attributes.get("transB", 0) else b)
    y = attributes.get("alpha", 1.0) * torch.matmul(a, b) if attributes.get("alpha", 1.0) != 1 else torch.matmul(a, b)
    return y if c is None else y + (c if attributes.get("beta", 1.0) == 1 else attributes["beta"] * c)


def _matmul_integer(a: Tensor, b: Tensor, a_zero: Any = None, b_zero: Any = None) -> Tensor:
    wide = [
        x.to(torch.int32) if zero is None else x.to(torch.int32) - zero.to(torch.int32)
        for x, zero in ((a, _per_row(a_zero)), (b, b_zero))
    ]
    return torch.matmul(wide[0], wide[1])


def _per_row(zero: Any) -> Any:
    return zero.unsqueeze(-1) if zero is not None and zero.dim() == 1 else zero


def _clip(operands: Sequence[Any], _: Attributes) -> Any:
    x, low, high = map(as_tensor, given(operands, 3))
    x = x if low is None else torch.maximum(x, low)
    return x if high is None else torch.minimum(x, high)


def _trilu(operands: Sequence[Any], attributes: Attributes) -> Any:
    diagonal = known("Trilu", operands[1])[0] if len(operands) > 1 else 0
    return (torch.triu if attributes.get("upper", 1) else torch.tril)(operands[0], diagonal)


def _cum_sum(operands: Sequence[Any], attributes: Attributes) -> Any:
    if attributes.get("exclusive", 0) or attributes.get("reverse", 0):
        raise BackendError("tvm backend: CumSum that is exclusive or reversed is not translated")
    x = as_tensor(operands[0])
    return torch.cumsum(x, known("CumSum", operands[1])[0]).to(x.dtype)


def _top_k(operands: Sequence[Any], attributes: Attributes) -> Any:
    largest = bool(attributes.get("largest", 1))
    return tuple(torch.topk(operands[0], known("TopK", operands[1])[0], attributes.get("axis", -1), largest))


def _conv(operands: Sequence[Any], attributes: Attributes) -> Any:
    x, weight, bias = given(operands, 3)
    rank = x.dim() - 2
    pads = list(attributes.get("pads", [0] * (2 * rank)))
    if attributes.get("auto_pad", "NOTSET") != "NOTSET" or pads[:rank] != pads[rank:]:
        raise BackendError("tvm backend: Conv with unequal or automatic pads is not translated")
    strides, dilations = (list(attributes.get(name, [1] * rank)) for name in ("strides", "dilations"))
    groups = attributes.get("group", 1)
    return torch.convolution(x, weight, bias, strides, pads[:rank], dilations, False, [0] * rank, groups)


def _gelu(operands: Sequence[Any], attributes: Attributes) -> Any:
    return functional.gelu(operands[0], approximate=attributes.get("approximate", "none"))


OPERATORS: Final[Mapping[str, Operator]] = {
    **LAYOUT,
    "Abs": _of(torch.abs),
    "Add": _of(torch.add),
    "And": _of(torch.logical_and),
    "Cast": _cast,
    "CastLike": lambda operands, _: as_tensor(operands[0]).to(operands[1].dtype),
    "Ceil": _of(torch.ceil),
    "Clip": _clip,
    "Conv": _conv,
    "Cos": _of(torch.cos),
    "CumSum": _cum_sum,
    "Div": _of(_div),
    "Dropout": lambda operands, _: operands[0],
    "DynamicQuantizeLinear": _of(TvmBuilder().dynamic_quantize),
    "Equal": _of(torch.eq),
    "Erf": _of(torch.erf),
    "Exp": _of(torch.exp),
    "Floor": _of(torch.floor),
    "Gelu": _gelu,
    "Gemm": _gemm,
    "Greater": _of(torch.gt),
    "GreaterOrEqual": _of(torch.ge),
    "Identity": lambda operands, _: operands[0],
    "IsNaN": _of(torch.isnan),
    "LayerNormalization": _layer_norm,
    "Less": _of(torch.lt),
    "LessOrEqual": _of(torch.le),
    "Log": _of(torch.log),
    "LogSoftmax": _softmax(torch.log_softmax),
    "MatMul": _of(torch.matmul),
    "MatMulInteger": _of(_matmul_integer),
    "Max": _folded(torch.maximum),
    "Min": _folded(torch.minimum),
    "Mul": _of(torch.mul),
    "Neg": _of(torch.neg),
    "Not": _of(torch.logical_not),
    "Or": _of(torch.logical_or),
    "Pow": _of(_pow),
    "Reciprocal": _of(torch.reciprocal),
    "ReduceMax": _reduction(torch.amax, "ReduceMax"),
    "ReduceMean": _reduction(torch.mean, "ReduceMean"),
    "ReduceMin": _reduction(torch.amin, "ReduceMin"),
    "ReduceSum": _reduction(torch.sum, "ReduceSum"),
    "Relu": _of(torch.relu),
    "Round": _of(torch.round),
    "Shape": lambda operands, _: operands[0],
    "Sigmoid": _of(torch.sigmoid),
    "Sin": _of(torch.sin),
    "Softmax": _softmax(torch.softmax),
    "Sqrt": _of(torch.sqrt),
    "Sub": _of(torch.sub),
    "Tanh": _of(torch.tanh),
    "TopK": _top_k,
    "Trilu": _trilu,
    "Where": _of(torch.where),
}
"""By their names in the default domain."""
