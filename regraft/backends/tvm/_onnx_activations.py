"""Operators of ONNX and of ONNX Runtime that take each element on its own, as functions of torch, for tracing."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import functional

from regraft.backends.tvm._onnx_extents import Attributes, Operator, as_tensor, refused


def of_tensors(function: Callable[..., Any]) -> Operator:
    """A function of tensors alone."""

    def apply(operands: Sequence[Any], _: Attributes) -> Any:
        return function(*(as_tensor(operand) for operand in operands))

    return apply


def folded(function: Callable[[Any, Any], Any]) -> Operator:
    """An operator of any number of tensors."""

    def apply(operands: Sequence[Any], _: Attributes) -> Any:
        return reduce(function, map(as_tensor, operands))

    return apply


def _with(function: Callable[..., Tensor], **defaults: float) -> Operator:
    """A function of one tensor and of numbers: attributes by name, with their defaults."""

    def apply(operands: Sequence[Any], attributes: Attributes) -> Any:
        return function(operands[0], *(attributes.get(name, value) for name, value in defaults.items()))

    return apply


def _elu(x: Tensor, alpha: float, gamma: float = 1.0) -> Tensor:
    return gamma * torch.where(x > 0, x, alpha * (torch.exp(x) - 1))


def _celu(x: Tensor, alpha: float) -> Tensor:
    return torch.where(x > 0, x, alpha * (torch.exp(x / alpha) - 1))


def _softplus(x: Tensor) -> Tensor:
    return torch.relu(x) + torch.log1p(torch.exp(-torch.abs(x)))


def _hard_sigmoid(x: Tensor, alpha: float = 1 / 6, beta: float = 0.5) -> Tensor:
    return torch.clamp(alpha * x + beta, 0, 1)


def _hard_swish(x: Tensor) -> Tensor:
    return x * _hard_sigmoid(x)


def _leaky_relu(x: Tensor, slope: Any) -> Tensor:
    return torch.where(x < 0, slope * x, x)


def _mish(x: Tensor) -> Tensor:
    return x * torch.tanh(_softplus(x))


def _softsign(x: Tensor) -> Tensor:
    return x / (1 + torch.abs(x))


def _swish(x: Tensor, alpha: float) -> Tensor:
    return x * torch.sigmoid(alpha * x)


def _thresholded(x: Tensor, alpha: float) -> Tensor:
    return torch.where(x > alpha, x, torch.zeros_like(x))


def _bias_gelu(x: Tensor, bias: Tensor) -> Tensor:
    return functional.gelu(x + bias)


def _gelu(operands: Sequence[Any], attributes: Attributes) -> Any:
    return functional.gelu(operands[0], approximate=attributes.get("approximate", "none"))


def _fast_gelu(x: Tensor, bias: Tensor | None = None) -> Tensor:
    return functional.gelu(x if bias is None else x + bias, approximate="tanh")


def _div(a: Tensor, b: Tensor) -> Tensor:
    return torch.div(a, b, rounding_mode=None if a.is_floating_point() else "trunc")


def _pow(a: Tensor, b: Tensor) -> Tensor:
    return torch.pow(a, b).to(a.dtype)


def _mod(operands: Sequence[Any], attributes: Attributes) -> Any:
    """The sign of the divisor, or with fmod that of the dividend; not torch.fmod, whose 0 TVM gets wrong."""
    a, b = map(as_tensor, operands)
    if attributes.get("fmod", 0):
        if not a.is_floating_point():
            raise refused("Mod", "fmod of integers is not translated")
        return a - b * torch.trunc(a / b)
    return torch.remainder(a, b)


def _is_inf(operands: Sequence[Any], attributes: Attributes) -> Any:
    x, signs = operands[0], [("detect_positive", math.inf), ("detect_negative", -math.inf)]
    asked = [x == value for name, value in signs if attributes.get(name, 1)]
    return reduce(torch.logical_or, asked) if asked else torch.zeros_like(x, dtype=torch.bool)


def _mean(operands: Sequence[Any], _: Attributes) -> Any:
    return reduce(torch.add, operands) / len(operands)


ACTIVATIONS: Final[Mapping[str, Operator]] = {
    "Abs": of_tensors(torch.abs),
    "Acos": of_tensors(torch.acos),
    "Add": of_tensors(torch.add),
    "And": of_tensors(torch.logical_and),
    "Asin": of_tensors(torch.asin),
    "Atan": of_tensors(torch.atan),
    "Ceil": of_tensors(torch.ceil),
    "Celu": _with(_celu, alpha=1.0),
    "Cos": of_tensors(torch.cos),
    "Cosh": of_tensors(torch.cosh),
    "Div": of_tensors(_div),
    "Elu": _with(_elu, alpha=1.0),
    "Equal": of_tensors(torch.eq),
    "Erf": of_tensors(torch.erf),
    "Exp": of_tensors(torch.exp),
    "Floor": of_tensors(torch.floor),
    "Gelu": _gelu,
    "Greater": of_tensors(torch.gt),
    "GreaterOrEqual": of_tensors(torch.ge),
    "HardSigmoid": _with(_hard_sigmoid, alpha=0.2, beta=0.5),
    "HardSwish": of_tensors(_hard_swish),
    "IsInf": _is_inf,
    "IsNaN": of_tensors(torch.isnan),
    "LeakyRelu": _with(_leaky_relu, alpha=0.01),
    "Less": of_tensors(torch.lt),
    "LessOrEqual": of_tensors(torch.le),
    "Log": of_tensors(torch.log),
    "Max": folded(torch.maximum),
    "Mean": _mean,
    "Min": folded(torch.minimum),
    "Mish": of_tensors(_mish),
    "Mod": _mod,
    "Mul": of_tensors(torch.mul),
    "Neg": of_tensors(torch.neg),
    "Not": of_tensors(torch.logical_not),
    "Or": of_tensors(torch.logical_or),
    "PRelu": of_tensors(_leaky_relu),
    "Pow": of_tensors(_pow),
    "Reciprocal": of_tensors(torch.reciprocal),
    "Relu": of_tensors(torch.relu),
    "Round": of_tensors(torch.round),
    "Selu": _with(_elu, alpha=1.6732632423543772, gamma=1.0507009873554805),
    "Sigmoid": of_tensors(torch.sigmoid),
    "Sign": of_tensors(torch.sign),
    "Sin": of_tensors(torch.sin),
    "Sinh": of_tensors(torch.sinh),
    "Softplus": of_tensors(_softplus),
    "Softsign": of_tensors(_softsign),
    "Sqrt": of_tensors(torch.sqrt),
    "Sub": of_tensors(torch.sub),
    "Sum": folded(torch.add),
    "Swish": _with(_swish, alpha=1.0),
    "Tan": of_tensors(torch.tan),
    "Tanh": of_tensors(torch.tanh),
    "ThresholdedRelu": _with(_thresholded, alpha=1.0),
    "Where": of_tensors(torch.where),
    "Xor": of_tensors(torch.logical_xor),
    "com.microsoft::BiasGelu": of_tensors(_bias_gelu),
    "com.microsoft::FastGelu": of_tensors(_fast_gelu),
    "com.microsoft::Gelu": of_tensors(functional.gelu),
    "com.microsoft::QuickGelu": _with(_swish, alpha=1.702),
}
"""By their names as ONNX spells them."""
