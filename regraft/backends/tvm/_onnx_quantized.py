"""Quantized operators of ONNX as functions of torch, for tracing: codes = round(x / scale) + zero point, clamped."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import onnx_ir as ir
import torch
from torch import Tensor

from regraft.backends.tvm._decompose import TvmBuilder
from regraft.backends.tvm._onnx_extents import Attributes, Operator, as_tensor, given, refused
from regraft.backends.tvm._onnx_windows import convolved

_CODES: Final[Mapping[ir.DataType, torch.dtype]] = {
    ir.DataType.UINT8: torch.uint8,
    ir.DataType.INT8: torch.int8,
    ir.DataType.INT16: torch.int16,
}


def _quantize(operands: Sequence[Any], attributes: Attributes) -> Any:
    x, scale, zero = map(as_tensor, given(operands, 3))
    asked = ir.DataType(attributes.get("output_dtype", 0) or ir.DataType.UINT8)
    if zero is None and asked not in _CODES:
        raise refused("QuantizeLinear", f"codes of {asked.name} are not translated")
    dtype = _CODES[asked] if zero is None else zero.dtype
    wide, zero = _spread("QuantizeLinear", x, (scale, zero), attributes)
    return _codes(x / wide, zero, dtype)


def _codes(x: Tensor, zero: Tensor | None, dtype: torch.dtype) -> Tensor:
    if dtype not in _CODES.values():
        raise refused("QuantizeLinear", f"codes of {dtype} are not translated")
    rounded = torch.round(x) if zero is None else torch.round(x) + zero.to(x.dtype)
    limits = torch.iinfo(dtype)
    return torch.clamp(rounded, limits.min, limits.max).to(torch.int32).to(dtype)


def _dequantize(operands: Sequence[Any], attributes: Attributes) -> Any:
    x, scale, zero = map(as_tensor, given(operands, 3))
    scale, zero = _spread("DequantizeLinear", x, (scale, zero), attributes)
    assert scale is not None, "it is not optional"
    return _without(x, zero).to(scale.dtype) * scale


def _spread(
    name: str, x: Tensor, parameters: tuple[Tensor, Tensor | None], attributes: Attributes
) -> tuple[Tensor, Tensor | None]:
    """Scale and zero point as they broadcast to x: of the tensor, of each slice of an axis, or of each block."""
    axis, block = attributes.get("axis", 1), attributes.get("block_size", 0)
    scale, zero = (None if p is None else _spread_one(name, x, p, axis, block) for p in parameters)
    assert scale is not None, "it is not optional"
    return scale, zero


def _spread_one(name: str, x: Tensor, parameter: Tensor, axis: int, block: int) -> Tensor:
    if parameter.numel() == 1 and not block:
        return parameter.reshape(())
    axis %= x.dim()
    if not block:
        return parameter.reshape([-1 if at == axis else 1 for at in range(x.dim())])
    extent: Any = x.shape[axis]
    if not isinstance(extent, int) or extent != parameter.shape[axis] * block:
        raise refused(name, "blocks must divide a dim that is a number")
    shape = [*parameter.shape[: axis + 1], block, *parameter.shape[axis + 1 :]]
    return parameter.unsqueeze(axis + 1).expand(shape).flatten(axis, axis + 1)


def _without(codes: Tensor, zero: Tensor | None) -> Tensor:
    """The codes less their zero point, in 32-bit integers."""
    wide = codes.to(torch.int32)
    return wide if zero is None else wide - zero.to(torch.int32)


def _rows(parameter: Tensor | None) -> Tensor | None:
    """Of each row of the left operand, or of the whole."""
    return parameter.unsqueeze(-1) if parameter is not None and parameter.dim() == 1 else parameter


def _matmul_integer(operands: Sequence[Any], _: Attributes) -> Any:
    a, b, a_zero, b_zero = map(as_tensor, given(operands, 4))
    return torch.matmul(_without(a, _rows(a_zero)), _without(b, b_zero))


def _matmul(operands: Sequence[Any], _: Attributes) -> Any:
    a, a_scale, a_zero, b, b_scale, b_zero, y_scale, y_zero = map(as_tensor, operands)
    product = torch.matmul(_without(a, _rows(a_zero)), _without(b, b_zero))
    factor = _rows(a_scale) * b_scale / _rows(y_scale)
    return _codes(product.to(factor.dtype) * factor, _rows(y_zero), y_zero.dtype)


def _conv_integer(operands: Sequence[Any], attributes: Attributes) -> Any:
    x, weight, x_zero, weight_zero = map(as_tensor, given(operands, 4))
    return _product("ConvInteger", _without(x, x_zero), _without(weight, _channels(weight_zero, weight)), attributes)


def _product(name: str, x: Tensor, weight: Tensor, attributes: Attributes) -> Tensor:
    """In float64, which holds every sum of products of codes exactly: torch convolves no integers."""
    return convolved(name, x.to(torch.float64), weight.to(torch.float64), None, attributes).to(torch.int32)


def _conv(operands: Sequence[Any], attributes: Attributes) -> Any:
    x, x_scale, x_zero, weight, weight_scale, weight_zero, y_scale, y_zero, bias = map(as_tensor, given(operands, 9))
    codes = _without(weight, _channels(weight_zero, weight))
    total = _product("QLinearConv", _without(x, x_zero), codes, attributes)
    tail = [1] * (x.dim() - 2)
    total = total if bias is None else total + bias.reshape(-1, *tail)
    factor = x_scale * weight_scale / y_scale
    factor = factor.reshape(-1, *tail) if factor.dim() else factor
    return _codes(total.to(factor.dtype) * factor, y_zero, y_zero.dtype)


def _channels(parameter: Tensor | None, weight: Tensor) -> Tensor | None:
    """Of each output channel, or of the whole."""
    if parameter is None or parameter.dim() == 0:
        return parameter
    return parameter.reshape(-1, *[1] * (weight.dim() - 1))


QUANTIZED: Final[Mapping[str, Operator]] = {
    "ConvInteger": _conv_integer,
    "DequantizeLinear": _dequantize,
    "DynamicQuantizeLinear": lambda operands, _: TvmBuilder().dynamic_quantize(as_tensor(operands[0])),
    "MatMulInteger": _matmul_integer,
    "QLinearConv": _conv,
    "QLinearMatMul": _matmul,
    "QuantizeLinear": _quantize,
}
"""By their names as ONNX spells them."""
