"""Short spellings of TVM's tensor-level programs: functions, loops and vectors."""

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final

from regraft.backends.tvm._compat import module

T: Final[Any] = module("tvm.tirx.script.builder")
tirx: Final[Any] = module("tvm.tirx")
_IRBuilder: Final[Any] = module("tvm.script.ir_builder").IRBuilder

NAME: Final = "main"
LITTLE: Final = 8_000_000
"""Multiply-adds below which a kernel does not wake the other threads; see `by_work`."""
_ALONE: Final[ContextVar[bool]] = ContextVar("alone", default=False)


def function(body: Callable[["Function"], None]) -> Any:
    """Return the program that `body` writes."""
    with _IRBuilder() as builder:
        with T.prim_func(s_tir=True):
            T.func_name(NAME)
            T.func_attr({"global_symbol": NAME, "tirx.noalias": True})
            body(Function())
        return builder.get()


class Function:
    """The parameters of a function that is being written."""

    def __init__(self) -> None:
        self._symbols: dict[str, Any] = {}

    def symbol(self, name: str) -> Any:
        """Return the extent of that name, which the parameters tell at run time."""
        return self._symbols.setdefault(name, tirx.Var(name, "int64"))

    def number(self, name: str) -> Any:
        """Return a parameter that is an int64 number."""
        return T.arg(name, tirx.Var(name, "int64"))

    def parameter(self, name: str, shape: Sequence[Any], dtype: str) -> Any:
        """Return a parameter: a dense buffer whose extents are numbers or names."""
        extents = [self.symbol(extent) if isinstance(extent, str) else extent for extent in shape]
        return T.match_buffer(T.arg(name, tirx.Var(name, "handle")), extents, dtype)


def scratch(extent: Any, dtype: str) -> Any:
    """Return a buffer of one dim, which lives as long as the block that it is made in."""
    return T.alloc_buffer((extent,), dtype, layout=None)


def registers(extent: int, dtype: str) -> Any:
    """Return a small buffer of one dim that is read and written at places known to the compiler."""
    return T.alloc_buffer((extent,), dtype, scope="local", layout=None)


def number(value: float, dtype: str) -> Any:
    """Return a constant."""
    return tirx.const(value, dtype)


def index(value: Any) -> Any:
    """Return an int64 expression."""
    return tirx.IntImm("int64", value) if isinstance(value, int) else value


def ceil_div(value: Any, by: int) -> Any:
    """Return the quotient, rounded up."""
    return -(-value // by) if isinstance(value, int) else tirx.floordiv(value + (by - 1), index(by))


def least(one: Any, other: Any) -> Any:
    """Return the smaller one."""
    return min(one, other) if isinstance(one, int) and isinstance(other, int) else tirx.min(index(one), index(other))


def most(one: Any, other: Any) -> Any:
    """Return the larger one."""
    return max(one, other) if isinstance(one, int) and isinstance(other, int) else tirx.max(index(one), index(other))


def spread(value: Any, lanes: int) -> Any:
    """Return a vector of one value."""
    return T.broadcast(value, lanes) if lanes > 1 else value


def places(first: Any, lanes: int) -> Any:
    """Return neighbouring places."""
    return T.ramp(index(first), 1, lanes) if lanes > 1 else first


def load(buffer: Any, at: Sequence[Any], lanes: int) -> Any:
    """Return neighbours along the last dim, beginning at a place."""
    return tirx.BufferLoad(buffer, [*(index(place) for place in at[:-1]), places(index(at[-1]), lanes)])


def store(buffer: Any, value: Any, at: Sequence[Any], lanes: int) -> None:
    """Write neighbours along the last dim, beginning at a place."""
    T.buffer_store(buffer, value, [*(index(place) for place in at[:-1]), places(index(at[-1]), lanes)])


@contextmanager
def when(condition: Any) -> Generator[None]:
    """Run what is inside only when the condition holds."""
    with T.If(condition), T.Then():
        yield


def either(condition: Any, yes: Callable[[], None], no: Callable[[], None]) -> None:
    """Run one of two."""
    with T.If(condition):
        with T.Then():
            yes()
        with T.Else():
            no()


def each(extent: Any) -> Any:
    """Return a loop, entered by `with`, over places from 0."""
    return T.serial(index(0), index(extent))


def in_parallel(extent: Any) -> Any:
    """Return a loop, entered by `with`, whose rounds run side by side; not in a program for little work."""
    return each(extent) if _ALONE.get() else T.parallel(index(0), index(extent))


def by_work(multiply_adds: Any, write: Callable[[], None]) -> None:
    """Write a program twice: for little work on the thread that calls, else side by side.

    Waking threads costs some ten microseconds, and milliseconds where those of torch wait for work on their core.
    """

    def alone() -> None:
        before = _ALONE.set(True)
        try:
            write()
        finally:
            _ALONE.reset(before)

    either(multiply_adds <= index(LITTLE), alone, write)


def along(extent: int, lanes: int, body: Callable[[Any, int], None]) -> None:
    """Run `body(place, lanes)` over an extent: whole vectors, and one by one what is left."""
    whole = extent // lanes
    if whole:
        with each(whole) as step:
            body(step * lanes, lanes)
    if extent % lanes:
        with each(extent % lanes) as rest:
            body(rest + whole * lanes, 1)
