"""The operators of ONNX that arrange elements, as functions of torch, for tracing; semantics of opset 13 and later."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import torch
from torch.nn import functional

from regraft.backends.tvm._onnx_extents import Attributes, Operator, as_integers, as_tensor, refused
from regraft.backends.tvm._onnx_resize import resize
from regraft.frontends.onnx import to_torch

_END: Final = 2**31 - 1
"""From here on, a place in Slice stands for the end; below its negative, for the begin."""

_REDUCTIONS: Final = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}
"""Of scatters, as torch calls them."""


def known(name: str, value: Any) -> list[Any]:
    """Return the integers that an operand holds; raises BackendError when they are computed from data."""
    integers = as_integers(value)
    if integers is None:
        raise refused(name, "it takes integers that are computed from data; only extents can be")
    return integers


def axes_of(name: str, operands: Sequence[Any], attributes: Attributes) -> list[int] | None:
    """Axes from the second operand, or from the attribute that they were before opset 13 or 18."""
    if len(operands) > 1 and operands[1] is not None:
        return known(name, operands[1])
    return list(attributes["axes"]) if "axes" in attributes else None


def _transpose(operands: Sequence[Any], attributes: Attributes) -> Any:
    x = operands[0]
    return x.permute(attributes.get("perm", tuple(reversed(range(x.dim())))))


def _reshape(operands: Sequence[Any], _: Attributes) -> Any:
    x = as_tensor(operands[0])
    wanted = known("Reshape", operands[1])
    return x.reshape(
        [x.shape[at] if isinstance(extent, int) and extent == 0 else extent for at, extent in enumerate(wanted)]
    )


def _expand(operands: Sequence[Any], _: Attributes) -> Any:
    x, wanted = as_tensor(operands[0]), known("Expand", operands[1])
    rank = max(x.dim(), len(wanted))
    own = [1] * (rank - x.dim()) + list(x.shape)
    asked = [1] * (rank - len(wanted)) + wanted
    return x.expand([b if isinstance(a, int) and a == 1 else a for a, b in zip(own, asked, strict=True)])


def _squeeze(operands: Sequence[Any], attributes: Attributes) -> Any:
    axes = axes_of("Squeeze", operands, attributes)
    x = as_tensor(operands[0])
    return x.squeeze() if axes is None else x.squeeze(tuple(axes))


def _unsqueeze(operands: Sequence[Any], attributes: Attributes) -> Any:
    x, axes = as_tensor(operands[0]), axes_of("Unsqueeze", operands, attributes) or []
    rank = x.dim() + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        x = x.unsqueeze(axis)
    return x


def _concat(operands: Sequence[Any], attributes: Attributes) -> Any:
    return torch.cat([as_tensor(operand) for operand in operands], dim=attributes["axis"])


def _split(operands: Sequence[Any], attributes: Attributes) -> Any:
    x, axis = operands[0], attributes.get("axis", 0)
    if len(operands) > 1 and operands[1] is not None:
        return tuple(x.split(known("Split", operands[1]), dim=axis))
    return tuple(x.split(-(-x.shape[axis] // attributes["num_outputs"]), dim=axis))


def _slice(operands: Sequence[Any], _: Attributes) -> Any:
    x = as_tensor(operands[0])
    starts, stops = (known("Slice", operand) for operand in operands[1:3])
    axes = known("Slice", operands[3]) if len(operands) > 3 and operands[3] is not None else list(range(len(starts)))
    steps = known("Slice", operands[4]) if len(operands) > 4 else [1] * len(starts)
    places = [slice(None)] * x.dim()
    for axis, start, stop, step in zip(axes, starts, stops, steps, strict=True):
        if step == -1 and start in (-1, _END) and isinstance(stop, int) and stop <= -_END:
            x = x.flip(axis)
        elif step < 1:
            raise refused("Slice", "a step below 1 is translated only where it turns the whole dim around")
        else:
            places[axis] = slice(start, stop, step)
    return x[tuple(places)]


def _gather(operands: Sequence[Any], attributes: Attributes) -> Any:
    x, axis = as_tensor(operands[0]), attributes.get("axis", 0) % as_tensor(operands[0]).dim()
    indices = operands[1]
    if isinstance(indices, np.ndarray) and indices.ndim == 0 and isinstance(indices.item(), int):
        return x.select(axis, indices.item())
    return x[(*([slice(None)] * axis), as_tensor(indices))]


def _gather_elements(operands: Sequence[Any], attributes: Attributes) -> Any:
    x, indices = as_tensor(operands[0]), as_tensor(operands[1])
    axis = attributes.get("axis", 0)
    return torch.gather(x, axis, torch.where(indices < 0, indices + x.shape[axis], indices))


def _gather_nd(operands: Sequence[Any], attributes: Attributes) -> Any:
    x, indices = as_tensor(operands[0]), as_tensor(operands[1])
    count = attributes.get("batch_dims", 0)
    rank = indices.dim() - 1
    batch = [_along(torch.arange(x.shape[at]), at, rank) for at in range(count)]
    return x[(*batch, *indices.unbind(-1))]


def _along(x: Any, axis: int, rank: int) -> Any:
    """A vector as a tensor of that rank, its elements along the axis."""
    return x.reshape([-1 if at == axis else 1 for at in range(rank)])


def _scatter_elements(operands: Sequence[Any], attributes: Attributes) -> Any:
    x, indices, updates = map(as_tensor, operands)
    axis = attributes.get("axis", 0)
    return _scattered(x, axis, torch.where(indices < 0, indices + x.shape[axis], indices), updates, attributes)


def _scattered(x: Any, axis: int, indices: Any, updates: Any, attributes: Attributes) -> Any:
    reduction = attributes.get("reduction", "none")
    if reduction == "none":
        return torch.scatter(x, axis, indices, updates)
    return torch.scatter_reduce(x, axis, indices, updates, _REDUCTIONS[reduction])


def _scatter_nd(operands: Sequence[Any], attributes: Attributes) -> Any:
    """As a scatter along one dim: that of all indexed dims together, beside that of all others."""
    x, indices, updates = map(as_tensor, operands)
    depth = int(indices.shape[-1])
    rows = torch.zeros((), dtype=torch.int64)
    for index, extent in zip(indices.unbind(-1), x.shape[:depth], strict=True):
        rows = rows * extent + torch.where(index < 0, index + extent, index)
    width = math.prod(x.shape[depth:])
    places = rows.reshape(-1, 1).expand(-1, width)
    flat = x.reshape(math.prod(x.shape[:depth]), width)
    return _scattered(flat, 0, places, updates.reshape(-1, width), attributes).reshape(x.shape)


def _one_hot(operands: Sequence[Any], attributes: Attributes) -> Any:
    indices, values = as_tensor(operands[0]).to(torch.int64), as_tensor(operands[2])
    depth = known("OneHot", operands[1])[0]
    axis = attributes.get("axis", -1) % (indices.dim() + 1)
    wanted = torch.where(indices < 0, indices + depth, indices).unsqueeze(axis)
    is_hot = wanted == _along(torch.arange(depth), axis, indices.dim() + 1)
    return torch.where(is_hot, values[1], values[0])


def _cum_sum(operands: Sequence[Any], attributes: Attributes) -> Any:
    x, axis = as_tensor(operands[0]), known("CumSum", operands[1])[0]
    turned = x.flip(axis) if attributes.get("reverse", 0) else x
    y = torch.cumsum(turned, axis).to(x.dtype)
    if attributes.get("exclusive", 0):
        before = torch.zeros_like(y.narrow(axis, 0, 1))
        y = torch.cat([before, y.narrow(axis, 0, y.shape[axis] - 1)], axis)
    return y.flip(axis) if attributes.get("reverse", 0) else y


def _einsum(operands: Sequence[Any], attributes: Attributes) -> Any:
    return torch.einsum(attributes["equation"], *map(as_tensor, operands))


def _depth_to_space(operands: Sequence[Any], attributes: Attributes) -> Any:
    x, size = operands[0], attributes["blocksize"]
    batch, channels, rows, columns = x.shape
    inner = channels // size**2
    if attributes.get("mode", "DCR") == "DCR":
        apart = x.reshape(batch, size, size, inner, rows, columns).permute(0, 3, 4, 1, 5, 2)
    else:
        apart = x.reshape(batch, inner, size, size, rows, columns).permute(0, 1, 4, 2, 5, 3)
    return apart.reshape(batch, inner, rows * size, columns * size)


def _space_to_depth(operands: Sequence[Any], attributes: Attributes) -> Any:
    x, size = operands[0], attributes["blocksize"]
    batch, channels, rows, columns = x.shape
    apart = x.reshape(batch, channels, rows // size, size, columns // size, size).permute(0, 3, 5, 1, 2, 4)
    return apart.reshape(batch, channels * size**2, rows // size, columns // size)


def _range(operands: Sequence[Any], _: Attributes) -> Any:
    start, stop, step = (known("Range", operand)[0] for operand in operands)
    return torch.arange(start, stop, step)


def _constant_of_shape(operands: Sequence[Any], attributes: Attributes) -> Any:
    value: Any = to_torch(attributes["value"]) if "value" in attributes else torch.zeros(1)
    return torch.full(known("ConstantOfShape", operands[0]), value.reshape(()).tolist(), dtype=value.dtype)


def _flatten(operands: Sequence[Any], attributes: Attributes) -> Any:
    x, axis = operands[0], attributes.get("axis", 1)
    return x.reshape(-1, *x.shape[axis:]).flatten(1) if axis else x.reshape(1, -1)


def _pad(operands: Sequence[Any], attributes: Attributes) -> Any:
    x, pads = operands[0], known("Pad", operands[1])
    axes = known("Pad", operands[3]) if len(operands) > 3 else list(range(x.dim()))
    if attributes.get("mode", "constant") != "constant":
        raise refused("Pad", f"the mode {attributes['mode']!r} is not translated")
    widths = [(0, 0)] * x.dim()
    for place, axis in enumerate(axes):
        widths[axis] = (pads[place], pads[place + len(axes)])
    value = float(operands[2]) if len(operands) > 2 and operands[2] is not None else 0.0
    return functional.pad(x, [width for pair in reversed(widths) for width in pair], value=value)


LAYOUT: Final[Mapping[str, Operator]] = {
    "Concat": _concat,
    "ConstantOfShape": _constant_of_shape,
    "CumSum": _cum_sum,
    "DepthToSpace": _depth_to_space,
    "Einsum": _einsum,
    "Expand": _expand,
    "Flatten": _flatten,
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "GatherND": _gather_nd,
    "OneHot": _one_hot,
    "Pad": _pad,
    "Range": _range,
    "Reshape": _reshape,
    "Resize": resize,
    "ScatterElements": _scatter_elements,
    "ScatterND": _scatter_nd,
    "Slice": _slice,
    "SpaceToDepth": _space_to_depth,
    "Split": _split,
    "Squeeze": _squeeze,
    "Tile": lambda operands, _: operands[0].repeat(known("Tile", operands[1])),
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
"""By their names in the default domain."""
