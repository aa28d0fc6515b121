"""Convolution and pooling of ONNX as functions of torch, for tracing; padding is written out where torch has none."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import functional

from regraft.backends.tvm._onnx_extents import Attributes, Operator, as_tensor, given, refused


@dataclass(frozen=True)
class _Window:
    """What slides over the dims behind the channels, one entry a dim each; pads are known numbers."""

    kernel: list[int]
    strides: list[int]
    dilations: list[int]
    before: list[int]
    after: list[int]

    @property
    def is_even(self) -> bool:
        return self.before == self.after

    @property
    def pads(self) -> list[int]:
        """As torch's pad takes them: the last dim first."""
        return [width for pair in zip(reversed(self.before), reversed(self.after), strict=True) for width in pair]


def _window(name: str, x: Tensor, kernel: Sequence[int], attributes: Attributes) -> _Window:
    rank = x.dim() - 2
    strides, dilations = (list(attributes.get(key, [1] * rank)) for key in ("strides", "dilations"))
    pads = list(attributes.get("pads", [0] * (2 * rank)))
    before, after = pads[:rank], pads[rank:]
    mode = attributes.get("auto_pad", "NOTSET")
    if mode in ("SAME_UPPER", "SAME_LOWER"):
        totals = _same(name, list(x.shape[2:]), kernel, strides, dilations)
        less, more = [total // 2 for total in totals], [total - total // 2 for total in totals]
        before, after = (less, more) if mode == "SAME_UPPER" else (more, less)
    elif mode == "VALID":
        before, after = [0] * rank, [0] * rank
    window = _Window(list(kernel), strides, dilations, before, after)
    if attributes.get("ceil_mode", 0):
        _check_ceiling(name, x, window)
    return window


def _same(
    name: str, extents: Sequence[Any], kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]
) -> list[int]:
    """Pads of each dim for a result of extent / stride, rounded up."""
    totals: list[int] = []
    for extent, size, stride, dilation in zip(extents, kernel, strides, dilations, strict=True):
        reach = dilation * (size - 1)
        if stride == 1:
            totals.append(reach)
        elif isinstance(extent, int):
            totals.append(max((-(-extent // stride) - 1) * stride + reach + 1 - extent, 0))
        else:
            raise refused(name, "automatic pads with strides need dims that are numbers")
    return totals


def _check_ceiling(name: str, x: Tensor, window: _Window) -> None:
    """Rounding up is rounding down where the windows fit; anything else is refused."""
    extents: list[Any] = list(x.shape[2:])
    for at, extent in enumerate(extents):
        reach = window.dilations[at] * (window.kernel[at] - 1) + 1
        room = extent + window.before[at] + window.after[at] - reach
        if not isinstance(extent, int) or room % window.strides[at]:
            raise refused(name, "ceil_mode is not translated where the last window is cut off")


def _padded(x: Tensor, window: _Window, value: float = 0.0) -> Tensor:
    return functional.pad(x, window.pads, value=value) if any(window.pads) else x


def convolved(name: str, x: Tensor, weight: Tensor, bias: Tensor | None, attributes: Attributes) -> Tensor:
    """Return the convolution of Conv, ConvInteger and QLinearConv: x [batch, channels, ...] with unequal pads too."""
    window = _window(name, x, [int(extent) for extent in weight.shape[2:]], attributes)
    x, pads = (x, window.before) if window.is_even else (_padded(x, window), [0] * (x.dim() - 2))
    groups = attributes.get("group", 1)
    return torch.convolution(
        x, weight, bias, window.strides, pads, window.dilations, False, [0] * (x.dim() - 2), groups
    )


def _conv(operands: Sequence[Any], attributes: Attributes) -> Any:
    x, weight, bias = given(operands, 3)
    return convolved("Conv", x, weight, bias, attributes)


def _conv_transpose(operands: Sequence[Any], attributes: Attributes) -> Any:
    x, weight, bias = given(operands, 3)
    rank = x.dim() - 2
    if attributes.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID") or "output_shape" in attributes:
        raise refused("ConvTranspose", "automatic pads and output_shape are not translated")
    strides, dilations = (list(attributes.get(name, [1] * rank)) for name in ("strides", "dilations"))
    if any(dilation != 1 for dilation in dilations) or rank > 2:
        raise refused("ConvTranspose", "TVM takes one or two dims, without dilations")
    pads, more = attributes.get("pads", [0] * (2 * rank)), attributes.get("output_padding", [0] * rank)
    before, after = list(pads[:rank]), list(pads[rank:])
    even = before if before == after else [0] * rank
    groups = attributes.get("group", 1)
    y = torch.convolution(x, weight, bias, strides, even, dilations, True, list(more), groups)
    if before == after:
        return y
    return y[(..., *(slice(a, y.shape[2 + at] - b) for at, (a, b) in enumerate(zip(before, after, strict=True))))]


def _max_pool(operands: Sequence[Any], attributes: Attributes) -> Any:
    x, window = operands[0], _window("MaxPool", operands[0], attributes["kernel_shape"], attributes)
    lowest = -float("inf") if x.is_floating_point() else torch.iinfo(x.dtype).min
    return _pooled(_padded(x, window, lowest), window, functional.max_pool2d, functional.max_pool3d, window.dilations)


def _average_pool(operands: Sequence[Any], attributes: Attributes) -> Any:
    x, window = operands[0], _window("AveragePool", operands[0], attributes["kernel_shape"], attributes)
    if any(dilation != 1 for dilation in window.dilations):
        raise refused("AveragePool", "dilations are not translated")
    y = _pooled(_padded(x, window), window, functional.avg_pool2d, functional.avg_pool3d)
    if attributes.get("count_include_pad", 0) or not any(window.pads):
        return y
    ones = _padded(torch.ones_like(x[:1, :1]), window)
    return y / _pooled(ones, window, functional.avg_pool2d, functional.avg_pool3d)


def _pooled(x: Tensor, window: _Window, flat: Any, solid: Any, dilations: Sequence[int] | None = None) -> Tensor:
    """One dim as two, of which the first has one element."""
    options = {} if dilations is None else {"dilation": list(dilations)}
    if x.dim() == 5:
        return solid(x, window.kernel, window.strides, **options)
    if x.dim() == 4:
        return flat(x, window.kernel, window.strides, **options)
    options = {} if dilations is None else {"dilation": [1, *dilations]}
    return flat(x.unsqueeze(2), [1, *window.kernel], [1, *window.strides], **options).squeeze(2)


def _over_all(function: Any) -> Operator:
    def apply(operands: Sequence[Any], _: Attributes) -> Any:
        x = as_tensor(operands[0])
        return function(x, list(range(2, x.dim())), keepdim=True)

    return apply


WINDOWS: Final[Mapping[str, Operator]] = {
    "AveragePool": _average_pool,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "GlobalAveragePool": _over_all(torch.mean),
    "GlobalMaxPool": _over_all(torch.amax),
    "MaxPool": _max_pool,
}
"""By their names as ONNX spells them."""
