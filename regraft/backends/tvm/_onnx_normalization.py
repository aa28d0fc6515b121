"""Normalizations of ONNX and of ONNX Runtime as functions of torch, for tracing."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import functional

from regraft.backends.tvm._onnx_extents import Attributes, Operator, as_tensor, given, refused


def _layer(operands: Sequence[Any], attributes: Attributes) -> Any:
    x, weight, bias = given(operands, 3)
    axis = attributes.get("axis", -1) % x.dim()
    return functional.layer_norm(x, list(x.shape[axis:]), weight, bias, attributes.get("epsilon", 1e-5))


def _root_mean_square(operands: Sequence[Any], attributes: Attributes) -> Any:
    x, weight = given(operands, 2)[:2]
    axis = attributes.get("axis", -1) % x.dim()
    return _by_root_mean_square(x, attributes.get("epsilon", 1e-5), axis) * weight


def _by_root_mean_square(x: Tensor, epsilon: float, axis: int) -> Tensor:
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    mean = (wide * wide).mean(list(range(axis, x.dim())), keepdim=True)
    return (wide * torch.rsqrt(mean + epsilon)).to(x.dtype)


def _skip(operands: Sequence[Any], attributes: Attributes) -> Any:
    """The sum of an input and a skipped one, normalized; the sum itself is the fourth result."""
    x, skip, weight, shift, bias = given(operands, 5)
    total = x + skip if bias is None else x + skip + bias
    y = functional.layer_norm(total, [x.shape[-1]], weight, shift, attributes.get("epsilon", 1e-12))
    return y, None, None, total


def _skip_simplified(operands: Sequence[Any], attributes: Attributes) -> Any:
    x, skip, weight, bias = given(operands, 4)
    total = x + skip if bias is None else x + skip + bias
    return _by_root_mean_square(total, attributes.get("epsilon", 1e-12), x.dim() - 1) * weight, None, None, total


def _batch(operands: Sequence[Any], attributes: Attributes) -> Any:
    x, *parameters = map(as_tensor, operands)
    if attributes.get("training_mode", 0):
        raise refused("BatchNormalization", "training_mode is for training")
    weight, bias, mean, variance = (_channels(p, x) for p in parameters)
    factor = weight * torch.rsqrt(variance + attributes.get("epsilon", 1e-5))
    return ((x - mean) * factor + bias).to(x.dtype)


def _channels(parameter: Tensor, x: Tensor) -> Tensor:
    return parameter.reshape(-1, *[1] * (x.dim() - 2))


def _instance(operands: Sequence[Any], attributes: Attributes) -> Any:
    x, weight, bias = map(as_tensor, operands)
    y = _standardized(x, list(range(2, x.dim())), attributes.get("epsilon", 1e-5))
    return y * _channels(weight, x) + _channels(bias, x)


def _group(operands: Sequence[Any], attributes: Attributes) -> Any:
    x, weight, bias = map(as_tensor, operands)
    groups, channels = attributes["num_groups"], x.shape[1]
    apart = x.unflatten(1, (groups, channels // groups))
    y = _standardized(apart, list(range(2, apart.dim())), attributes.get("epsilon", 1e-5)).flatten(1, 2)
    if weight.shape[0] != channels:  # before opset 21 one number a group
        weight, bias = (p.unsqueeze(-1).expand(groups, channels // groups).reshape(-1) for p in (weight, bias))
    return y * _channels(weight, x) + _channels(bias, x)


def _standardized(x: Tensor, axes: list[int], epsilon: float) -> Tensor:
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    centred = wide - wide.mean(axes, keepdim=True)
    return (centred * torch.rsqrt((centred * centred).mean(axes, keepdim=True) + epsilon)).to(x.dtype)


NORMALIZATION: Final[Mapping[str, Operator]] = {
    "BatchNormalization": _batch,
    "GroupNormalization": _group,
    "InstanceNormalization": _instance,
    "LayerNormalization": _layer,
    "RMSNormalization": _root_mean_square,
    "SimplifiedLayerNormalization": _root_mean_square,  # ONNX Runtime's, in the default domain
    "com.microsoft::SkipLayerNormalization": _skip,
    "com.microsoft::SkipSimplifiedLayerNormalization": _skip_simplified,
}
"""By their names as ONNX spells them."""
