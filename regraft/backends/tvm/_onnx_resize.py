"""Resize of ONNX as functions of torch, for tracing: one dim after the other, by neighbours of each new place.

A new place j reads the old place (j + 1/2) / scale - 1/2, or as the coordinate mode says; nearest takes one neighbour,
linear weighs two.
"""

import math
from collections.abc import Sequence
from typing import Any, Final

import torch
from torch import Tensor

from regraft.backends.tvm._onnx_extents import Attributes, as_integers, given, refused

_MODES: Final = ("nearest", "linear")
_COORDINATES: Final = ("half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel")


def resize(operands: Sequence[Any], attributes: Attributes) -> Any:
    """Return the resized tensor; operands as in ONNX: x, roi, scales, sizes."""
    x, _, scales, sizes = given(operands, 4)
    mode, coordinates = (
        attributes.get("mode", "nearest"),
        attributes.get("coordinate_transformation_mode", "half_pixel"),
    )
    _check(mode, coordinates, attributes)
    axes = [axis % x.dim() for axis in attributes.get("axes", range(x.dim()))]
    for axis, (extent, scale) in zip(axes, _targets(x, axes, scales, sizes), strict=True):
        if scale != 1:
            places = _places(x.shape[axis], extent, scale, coordinates)
            x = _nearest(x, axis, places, attributes) if mode == "nearest" else _linear(x, axis, places)
    return x


def _check(mode: str, coordinates: str, attributes: Attributes) -> None:
    if mode not in _MODES or coordinates not in _COORDINATES:
        raise refused("Resize", f"{mode} at {coordinates} is not translated")
    if attributes.get("antialias", 0) or attributes.get("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise refused("Resize", "antialias and keep_aspect_ratio_policy are not translated")
    if attributes.get("exclude_outside", 0):
        raise refused("Resize", "exclude_outside is not translated")


def _targets(x: Tensor, axes: Sequence[int], scales: Any, sizes: Any) -> list[tuple[Any, float]]:
    """The new extent and the scale of each axis."""
    wanted, factors = as_integers(sizes), as_integers(scales)
    if wanted:
        return [(size, _ratio(size, x.shape[axis])) for axis, size in zip(axes, wanted, strict=True)]
    if factors:
        return [(_scaled(x.shape[axis], factor), factor) for axis, factor in zip(axes, factors, strict=True)]
    raise refused("Resize", "scales or sizes that are computed from data")


def _ratio(size: Any, extent: Any) -> float:
    if isinstance(size, int) and isinstance(extent, int):
        return size / extent
    if size == extent:
        return 1
    raise refused("Resize", "sizes of dims that are not numbers")


def _scaled(extent: Any, factor: float) -> Any:
    if float(factor).is_integer():
        return extent * int(factor)
    if not isinstance(extent, int):
        raise refused("Resize", f"the scale {factor:g} of a dim that is not a number")
    return math.floor(extent * factor)


def _places(extent: Any, wanted: Any, scale: float, coordinates: str) -> Tensor:
    """[wanted] places in the old dim, as float32."""
    new = torch.arange(wanted).to(torch.float32)
    if coordinates == "asymmetric":
        return new / scale
    if coordinates == "align_corners":
        return new * (0.0 if isinstance(wanted, int) and wanted == 1 else (extent - 1) / (wanted - 1))
    if coordinates == "pytorch_half_pixel" and isinstance(wanted, int) and wanted == 1:
        return new * 0
    return (new + 0.5) / scale - 0.5


def _nearest(x: Tensor, axis: int, places: Tensor, attributes: Attributes) -> Tensor:
    mode = attributes.get("nearest_mode", "round_prefer_floor")
    rounded = {
        "round_prefer_floor": torch.ceil(places - 0.5),
        "round_prefer_ceil": torch.floor(places + 0.5),
        "floor": torch.floor(places),
        "ceil": torch.ceil(places),
    }[mode]
    return _taken(x, axis, rounded)


def _linear(x: Tensor, axis: int, places: Tensor) -> Tensor:
    below = torch.floor(places)
    weight = (places - below).to(x.dtype).reshape([-1 if at == axis else 1 for at in range(x.dim())])
    return _taken(x, axis, below) * (1 - weight) + _taken(x, axis, below + 1) * weight


def _taken(x: Tensor, axis: int, places: Tensor) -> Tensor:
    last = x.shape[axis] - 1
    return torch.index_select(x, axis, torch.clamp(places.to(torch.int64), 0, last))
