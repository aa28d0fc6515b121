"""The operators of ONNX that arrange elements, as functions of torch, for tracing; semantics of opset 13 and later."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import torch
from torch.nn import functional

from regraft.backends.tvm._onnx_extents import Attributes, Operator, as_integers, as_tensor
from regraft.errors import BackendError
from regraft.frontends.onnx import to_torch


def given(operands: Sequence[Any], count: int) -> list[Any]:
    """Return that many operands; None for each that was left out at the end."""
    return [*operands, *[None] * (count - len(operands))]


def known(name: str, value: Any) -> list[Any]:
    """Return the integers that an operand holds; raises BackendError when they are computed from data."""
    integers = as_integers(value)
    if integers is None:
        raise BackendError(f"tvm backend: {name} takes integers that are computed from data; only extents can be")
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
    if "num_outputs" not in attributes:
        raise BackendError("tvm backend: Split needs its sizes, or num_outputs")
    return tuple(x.split(-(-x.shape[axis] // attributes["num_outputs"]), dim=axis))


def _slice(operands: Sequence[Any], _: Attributes) -> Any:
    x = as_tensor(operands[0])
    starts, stops = (known("Slice", operand) for operand in operands[1:3])
    axes = known("Slice", operands[3]) if len(operands) > 3 and operands[3] is not None else list(range(len(starts)))
    steps = known("Slice", operands[4]) if len(operands) > 4 else [1] * len(starts)
    if any(step < 1 for step in steps):
        raise BackendError("tvm backend: Slice with a step below 1 has no form in torch")
    places = [slice(None)] * x.dim()
    for axis, start, stop, step in zip(axes, starts, stops, steps, strict=True):
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
    if attributes.get("batch_dims", 0):
        raise BackendError("tvm backend: GatherND with batch_dims is not translated")
    return as_tensor(operands[0])[as_tensor(operands[1]).unbind(-1)]


def _scatter_elements(operands: Sequence[Any], attributes: Attributes) -> Any:
    if attributes.get("reduction", "none") != "none":
        raise BackendError("tvm backend: ScatterElements with a reduction is not translated")
    x, indices, updates = map(as_tensor, operands)
    axis = attributes.get("axis", 0)
    return torch.scatter(x, axis, torch.where(indices < 0, indices + x.shape[axis], indices), updates)


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
        raise BackendError(f"tvm backend: Pad in the mode {attributes['mode']!r} is not translated")
    widths = [(0, 0)] * x.dim()
    for place, axis in enumerate(axes):
        widths[axis] = (pads[place], pads[place + len(axes)])
    value = float(operands[2]) if len(operands) > 2 and operands[2] is not None else 0.0
    return functional.pad(x, [width for pair in reversed(widths) for width in pair], value=value)


LAYOUT: Final[Mapping[str, Operator]] = {
    "Concat": _concat,
    "ConstantOfShape": _constant_of_shape,
    "Expand": _expand,
    "Flatten": _flatten,
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "GatherND": _gather_nd,
    "Pad": _pad,
    "Range": _range,
    "Reshape": _reshape,
    "ScatterElements": _scatter_elements,
    "Slice": _slice,
    "Split": _split,
    "Squeeze": _squeeze,
    "Tile": lambda operands, _: operands[0].repeat(known("Tile", operands[1])),
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
"""By their names in the default domain."""
