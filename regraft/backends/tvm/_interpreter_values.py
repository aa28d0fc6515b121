"""Values of the interpreter: what variables, buffers and expressions are, for all iterations of parallel loops at once.

An iteration of the enclosing parallel loops is a lane. A value is one number for all lanes, or an array with an axis a
parallel loop.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from tilelang import tvm

from regraft.backends.tvm._wire import numpy_dtype

Array = NDArray[Any]
_erf = np.vectorize(math.erf, otypes=[np.float64])


def _rsqrt(x: Any) -> Any:
    return 1 / np.sqrt(x)


def _sigmoid(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))


_BINARY: Final[dict[str, Callable[[Any, Any], Any]]] = {
    "Add": np.add,
    "Sub": np.subtract,
    "Mul": np.multiply,
    "Div": np.divide,
    "FloorDiv": np.floor_divide,
    "FloorMod": np.mod,
    "Min": np.minimum,
    "Max": np.maximum,
    "EQ": np.equal,
    "NE": np.not_equal,
    "LT": np.less,
    "LE": np.less_equal,
    "GT": np.greater,
    "GE": np.greater_equal,
    "And": np.logical_and,
    "Or": np.logical_or,
}

_CALLS: Final[dict[str, Callable[..., Any]]] = {
    "tirx.exp": np.exp,
    "tirx.exp2": np.exp2,
    "tirx.log2": np.log2,
    "tirx.erf": _erf,
    "tirx.tanh": np.tanh,
    "tirx.sqrt": np.sqrt,
    "tirx.rsqrt": _rsqrt,
    "tirx.fabs": np.abs,
    "tirx.nearbyint": np.rint,
    "tirx.sigmoid": _sigmoid,
    "tirx.shift_right": np.right_shift,
    "tirx.shift_left": np.left_shift,
    "tirx.bitwise_and": np.bitwise_and,
    "tirx.bitwise_or": np.bitwise_or,
    "tirx.bitwise_xor": np.bitwise_xor,
}


def dtype_of(node: Any) -> np.dtype[Any]:
    """Return numpy's dtype of a buffer or an expression."""
    return numpy_dtype(str(node.dtype))


@dataclass(frozen=True)
class Lanes:
    """The lanes of the enclosing parallel loops.

    Attributes:
        shape: their extents.
        mask: which are active, broadcastable to the shape; all when None.
    """

    shape: tuple[int, ...] = ()
    mask: Array | None = None

    @property
    def depth(self) -> int:
        """How many parallel loops there are."""
        return len(self.shape)

    def widened(self, extent: int) -> "Lanes":
        """Return the lanes inside one more parallel loop."""
        mask = None if self.mask is None else np.asarray(self.mask)[..., None]
        return Lanes((*self.shape, extent), mask)

    def where(self, condition: Array) -> "Lanes":
        """Return the lanes of which a condition holds, too."""
        return Lanes(self.shape, condition if self.mask is None else self.mask & condition)

    def spread(self, value: Any) -> Array:
        """Return a value as an array of all lanes."""
        return np.broadcast_to(np.asarray(value), self.shape)

    def active(self) -> Array:
        """Return which lanes are active, as an array of all."""
        return np.ones(self.shape, dtype=bool) if self.mask is None else self.spread(self.mask)


class Values:
    """Variables and buffers of a run, and the values of expressions over them."""

    def __init__(self) -> None:
        self._variables: dict[Any, tuple[Any, int]] = {}
        self._buffers: dict[Any, Array | None] = {}
        self._expressions: dict[str, Callable[[Any, Lanes], Any]] = {
            "IntImm": self._constant,
            "FloatImm": self._constant,
            "Var": self._variable,
            "BufferLoad": self._load,
            "Cast": self._cast,
            "Not": self._not,
            "Call": self._call,
        }

    def declare(self, buffer: Any, array: Array | None) -> None:
        """Bind a parameter; its dynamic extents get their values."""
        self._buffers[buffer] = array
        if array is None:
            return
        if array.dtype != dtype_of(buffer) or array.ndim != len(buffer.shape):
            raise ValueError(f"{buffer.name} must be {buffer.dtype} of {len(buffer.shape)} dims; got {array.dtype}")
        for needed, extent in zip(buffer.shape, array.shape, strict=True):
            if isinstance(needed, tvm.tirx.Var) and needed not in self._variables:
                self.bind_scalar(needed, np.int32(extent))
            if int(self.value(needed, Lanes())) != extent:
                raise ValueError(f"{buffer.name} must have an extent of {needed}; got {extent}")

    def allocate(self, buffer: Any) -> None:
        """Make a buffer on the chip, of a content that shows when it is read before it is written."""
        dtype = dtype_of(buffer)
        content = 85 if dtype.kind in "iu" else math.nan
        self._buffers[buffer] = np.full([int(extent) for extent in buffer.shape], content).astype(dtype)

    def buffer(self, buffer: Any) -> Array:
        """Return the content of a buffer, to read or write."""
        array = self._buffers[buffer]
        if array is None:
            raise IndexError(f"touches {buffer.name}, which is absent")
        return array

    def bind(self, variable: Any, along: Array, lanes: Lanes) -> None:
        """Give the variable of the innermost parallel loop its values."""
        self._variables[variable] = (along.reshape((1,) * (lanes.depth - 1) + (-1,)), lanes.depth)

    def bind_scalar(self, variable: Any, value: Any) -> None:
        """Give a variable one value for all lanes."""
        self._variables[variable] = (value, 0)

    def bind_value(self, variable: Any, value: Any, lanes: Lanes) -> None:
        """Give a variable the value of an expression."""
        self._variables[variable] = (value, lanes.depth if np.ndim(value) else 0)

    def integer(self, expression: Any, lanes: Lanes) -> int:
        """Return an extent or a bound, which must be the same in all lanes."""
        value = self.value(expression, lanes)
        if np.ndim(value):
            raise NotImplementedError(f"the interpreter does not know bounds that differ between lanes: {expression}")
        return int(value)

    def value(self, node: Any, lanes: Lanes) -> Any:
        """Return the value of an expression, in its dtype."""
        kind = type(node).__name__
        if kind in _BINARY:
            return self._rounded(node, _BINARY[kind](self.value(node.a, lanes), self.value(node.b, lanes)))
        if kind not in self._expressions:
            raise NotImplementedError(f"the interpreter does not know the expression {kind}: {node}")
        return self._expressions[kind](node, lanes)

    def _constant(self, node: Any, lanes: Lanes) -> Any:
        del lanes
        return self._rounded(node, node.value)

    def _cast(self, node: Any, lanes: Lanes) -> Any:
        return self._rounded(node, self.value(node.value, lanes))

    def _not(self, node: Any, lanes: Lanes) -> Any:
        return np.logical_not(self.value(node.a, lanes))

    def _variable(self, node: Any, lanes: Lanes) -> Any:
        if node not in self._variables:
            raise NotImplementedError(f"the interpreter has no value for {node}: it runs blocks, not single threads")
        value, depth = self._variables[node]
        return value.reshape(value.shape + (1,) * (lanes.depth - depth)) if np.ndim(value) else value

    def _load(self, node: Any, lanes: Lanes) -> Any:
        array = self.buffer(node.buffer)
        places = [self.value(index, lanes) for index in node.indices]
        inside = [np.clip(place, 0, extent - 1) for place, extent in zip(places, array.shape, strict=True)]
        for axis, (place, near) in enumerate(zip(places, inside, strict=True)):
            wrong = lanes.spread(place != near) & lanes.active()
            if wrong.any():
                seen, extent = lanes.spread(place)[wrong][0], array.shape[axis]
                raise IndexError(f"reads {node.buffer.name} at {seen} of axis {axis}, whose extent is {extent}")
        return array[tuple(inside)]

    def _call(self, node: Any, lanes: Lanes) -> Any:
        name = node.op.name
        if name == "tirx.if_then_else":
            condition, yes, no = node.args
            return self._select(condition, yes, no, lanes)
        if name == "tl.infinity":
            return np.asarray(math.inf).astype(dtype_of(node))[()]
        if name not in _CALLS:
            raise NotImplementedError(f"the interpreter does not know the call {name}")
        return self._rounded(node, _CALLS[name](*(self.value(argument, lanes) for argument in node.args)))

    def _select(self, condition: Any, yes: Any, no: Any, lanes: Lanes) -> Any:
        """Both sides, each only where it is taken: the other may not be readable."""
        chosen = self.value(condition, lanes)
        if np.ndim(chosen) == 0:
            return self.value(yes if chosen else no, lanes)
        return np.where(chosen, self.value(yes, lanes.where(chosen)), self.value(no, lanes.where(~chosen)))

    @staticmethod
    def _rounded(node: Any, value: Any) -> Any:
        return np.asarray(value).astype(dtype_of(node))[()]
