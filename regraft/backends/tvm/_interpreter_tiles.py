"""TileLang's operations on whole tiles, as the interpreter runs them: copy, fill, product, reduction."""

from collections.abc import Callable
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from regraft.backends.tvm._interpreter_values import Lanes, Values, dtype_of

Array = NDArray[Any]
_GLOBAL: Final = "global"


class Region:
    """A box in a buffer. In global memory it may reach beyond the buffer, as TileLang guards copies there."""

    def __init__(self, values: Values, call: Any) -> None:
        if call.op.name != "tl.region":
            raise NotImplementedError(f"the interpreter does not know the region {call}")
        load, extents = call.args[0], call.args[2:]
        self.buffer = load.buffer
        self.array = values.buffer(load.buffer)
        self.start = [values.integer(index, Lanes()) for index in load.indices]
        self.shape = [values.integer(extent, Lanes()) for extent in extents]
        if self.buffer.scope() != _GLOBAL or min(self.start) < 0:
            self._check()

    @property
    def extents(self) -> tuple[int, ...]:
        """Its shape without the axes of extent 1."""
        return tuple(extent for extent in self.shape if extent != 1)

    def read(self) -> Array:
        """Return its content in its shape without axes of extent 1, zeros beyond the buffer."""
        inside, part = self._inside()
        found = np.zeros(self.shape, dtype=self.array.dtype)
        found[part] = self.array[inside]
        return found.reshape(self.extents)

    def write(self, content: Array) -> None:
        """Write its content, rounded; what is beyond the buffer is dropped."""
        inside, part = self._inside()
        self.array[inside] = content.reshape(self.shape)[part].astype(dtype_of(self.buffer))

    def _inside(self) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
        boxes = list(zip(self.start, self.shape, self.array.shape, strict=True))
        kept = [max(0, min(start + extent, limit) - start) for start, extent, limit in boxes]
        inside = tuple(slice(start, start + count) for start, count in zip(self.start, kept, strict=True))
        return inside, tuple(slice(0, count) for count in kept)

    def _check(self) -> None:
        for axis, (start, extent, limit) in enumerate(zip(self.start, self.shape, self.array.shape, strict=True)):
            if start < 0 or start + extent > limit:
                ends = f"{start} to {start + extent} of axis {axis}"
                raise IndexError(f"a tile of {self.buffer.name} is {ends}, whose extent is {limit}")


def _copy(values: Values, call: Any) -> None:
    source, target = Region(values, call.args[0]), Region(values, call.args[1])
    if source.extents != target.extents:
        raise ValueError(f"copies a tile of {source.shape} to one of {target.shape}")
    target.write(source.read())


def _fill(values: Values, call: Any) -> None:
    target = Region(values, call.args[0])
    target.write(np.broadcast_to(np.asarray(values.value(call.args[1], Lanes())), target.extents))


def _gemm(values: Values, call: Any) -> None:
    a, b, total = (Region(values, argument) for argument in call.args[:3])
    turn_a, turn_b, *sizes = (values.integer(argument, Lanes()) for argument in call.args[3:8])
    clear, *rest = (values.integer(argument, Lanes()) for argument in call.args[9:13])
    if any(rest):
        raise NotImplementedError(f"the interpreter does not know products of parts: {call}")
    left, right = (_exact(region.read().reshape(region.shape[-2:])) for region in (a, b))
    left, right = (left.T if turn_a else left), (right.T if turn_b else right)
    if [*left.shape, right.shape[1]] != [sizes[0], sizes[2], sizes[1]] or left.shape[1] != right.shape[0]:
        raise ValueError(f"multiplies {left.shape} by {right.shape} for a product of {sizes}")
    product = left @ right
    earlier = 0 if clear else total.read().reshape(product.shape)
    total.write(product + earlier)


def _exact(operand: Array) -> Array:
    """In a type in which products and sums of tiles are exact or nearly so; float32 as tensor cores round it."""
    if operand.dtype.kind in "iu":
        return operand.astype(np.int64)
    return (_tf32(operand) if operand.dtype == np.float32 else operand).astype(np.float64)


def _tf32(operand: Array) -> Array:
    """Rounded to 10 bits of mantissa, to nearest; infinities and NaN stay."""
    bits = np.ascontiguousarray(operand).view(np.uint32)
    rounded = ((bits + np.uint32(0x0FFF) + ((bits >> 13) & 1)) & np.uint32(0xFFFFE000)).view(np.float32)
    return np.where(np.isfinite(operand), rounded, operand)


def _reduce(values: Values, call: Any) -> None:
    source, target = Region(values, call.args[0]), Region(values, call.args[1])
    kind, axis, clear = str(call.args[2].value), int(call.args[3]), bool(call.args[4])
    functions: dict[str, Any] = {"sum": np.add, "max": np.maximum, "min": np.minimum}
    if kind not in (*functions, "absmax"):
        raise NotImplementedError(f"the interpreter does not know the reduction {kind}")
    content = source.read().reshape(source.shape)
    content = np.abs(content) if kind == "absmax" else content
    function = functions.get(kind, np.maximum)
    reduced = function.reduce(content, axis=axis).reshape(target.extents)
    target.write(reduced if clear else function(target.read(), reduced))


TILE_OPERATIONS: Final[dict[str, Callable[[Values, Any], None]]] = {
    "tl.tileop.copy": _copy,
    "tl.tileop.fill": _fill,
    "tl.tileop.gemm": _gemm,
    "tl.tileop.reduce": _reduce,
}
"""By the name of the call."""
