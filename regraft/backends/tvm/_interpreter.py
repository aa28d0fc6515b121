"""Runs a TileLang program on numpy arrays, block by block: what a template computes, without a GPU.

It takes the program before TileLang lowers it, that is, the same one that becomes CUDA. Buffers on the chip start as
NaN, so that reading what nothing wrote shows; every store rounds to the buffer's dtype; an access outside of a buffer
is an error, except where TileLang guards a copy of global memory (zeros come in, nothing goes out); two iterations of a
parallel loop that write the same place are an error. What it does not know is an error, never skipped. It cannot see
what only a GPU has: layouts, missing barriers, asynchronous copies.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from regraft.backends.tvm._interpreter_tiles import TILE_OPERATIONS
from regraft.backends.tvm._interpreter_values import Lanes, Values, dtype_of

Array = NDArray[Any]
_SERIAL, _PARALLEL, _VECTORIZED, _UNROLLED, _THREAD = range(5)
_IGNORED: Final = {"tl.launch_threads", "threadblock_swizzle_pattern"}


def interpret(function: Any, arrays: Mapping[str, Array | None]) -> dict[str, Array]:
    """Run a program; return the arrays by name as they are afterwards.

    Args:
        function: a PrimFunc as `T.prim_func` makes it.
        arrays: by name of the parameter; None for one that the program must not touch.

    Raises:
        ValueError: when an array does not fit its parameter.
        IndexError: when the program leaves a buffer.
        NotImplementedError: for a statement, call or expression that it does not know.
    """
    run = _Run()
    for parameter in function.params:
        buffer = function.buffer_map[parameter]
        run.values.declare(buffer, arrays[buffer.name])
    run.execute(function.body, Lanes())
    return {name: array for name, array in arrays.items() if array is not None}


class _Run:
    """The state of a run: values of variables, contents of buffers."""

    def __init__(self) -> None:
        self.values = Values()
        self._statements: dict[str, Callable[[Any, Lanes], None]] = {
            "SBlockRealize": self._block,
            "SeqStmt": self._sequence,
            "For": self._loop,
            "IfThenElse": self._branch,
            "BufferStore": self._store,
            "Bind": self._bind,
            "Evaluate": self._evaluate,
        }

    def execute(self, statement: Any, lanes: Lanes) -> None:
        kind = type(statement).__name__
        if kind not in self._statements:
            raise NotImplementedError(f"the interpreter does not know the statement {kind}: {statement}")
        self._statements[kind](statement, lanes)

    def _sequence(self, statement: Any, lanes: Lanes) -> None:
        for part in statement.seq:
            self.execute(part, lanes)

    def _block(self, statement: Any, lanes: Lanes) -> None:
        block = statement.block
        unknown = {str(name) for name in block.annotations} - _IGNORED
        if unknown or block.init is not None or block.match_buffers or statement.iter_values or lanes.depth:
            raise NotImplementedError(f"the interpreter does not know what is special about this block: {statement}")
        for buffer in block.alloc_buffers:
            self.values.allocate(buffer)
        self.execute(block.body, lanes)

    def _loop(self, statement: Any, lanes: Lanes) -> None:
        first = self.values.integer(statement.min, lanes)
        extent = self.values.integer(statement.extent, lanes)
        if statement.step is not None:
            raise NotImplementedError(f"the interpreter does not know loops with a step: {statement.loop_var}")
        if statement.kind == _PARALLEL or (statement.kind == _VECTORIZED and lanes.depth):
            inner = lanes.widened(extent)
            self.values.bind(statement.loop_var, first + np.arange(extent, dtype=np.int32), inner)
            self.execute(statement.body, inner)
            return
        if statement.kind == _THREAD and not str(statement.thread_binding.thread_tag).startswith("blockIdx"):
            raise NotImplementedError("the interpreter runs blocks, not single threads")
        for place in range(first, first + extent):
            self.values.bind_scalar(statement.loop_var, np.int32(place))
            self.execute(statement.body, lanes)

    def _branch(self, statement: Any, lanes: Lanes) -> None:
        condition = self.values.value(statement.condition, lanes)
        if np.ndim(condition) == 0:
            taken = statement.then_case if condition else statement.else_case
            if taken is not None:
                self.execute(taken, lanes)
            return
        self.execute(statement.then_case, lanes.where(condition))
        if statement.else_case is not None:
            self.execute(statement.else_case, lanes.where(~condition))

    def _bind(self, statement: Any, lanes: Lanes) -> None:
        call: Any = statement.value
        if type(call).__name__ == "Call" and call.op.name == "tl.launch_thread_idx":
            return  # unbound: to use the index of a thread is an error here
        self.values.bind_value(statement.var, self.values.value(call, lanes), lanes)

    def _store(self, statement: Any, lanes: Lanes) -> None:
        if statement.predicate is not None:
            raise NotImplementedError(f"the interpreter does not know stores with a predicate: {statement}")
        array = self.values.buffer(statement.buffer)
        places = [lanes.spread(self.values.value(index, lanes)) for index in statement.indices]
        value = lanes.spread(self.values.value(statement.value, lanes))
        active = lanes.active()
        chosen = tuple(place[active] for place in places)
        _check_places(statement.buffer, array, chosen)
        if len(chosen[0]) > 1:
            flat = np.ravel_multi_index(chosen, array.shape)
            if len(np.unique(flat)) < len(flat):
                raise IndexError(f"iterations of a parallel loop write the same element of {statement.buffer.name}")
        array[chosen] = value[active].astype(dtype_of(statement.buffer))

    def _evaluate(self, statement: Any, lanes: Lanes) -> None:
        call: Any = statement.value
        name = call.op.name if type(call).__name__ == "Call" else type(call).__name__
        if name not in TILE_OPERATIONS or lanes.depth:
            raise NotImplementedError(f"the interpreter does not know the call {name} here")
        TILE_OPERATIONS[name](self.values, call)


def _check_places(buffer: Any, array: Array, places: tuple[Array, ...]) -> None:
    for axis, (place, extent) in enumerate(zip(places, array.shape, strict=True)):
        wrong = place[(place < 0) | (place >= extent)]
        if wrong.size:
            raise IndexError(f"writes {buffer.name} at {wrong[0]} of axis {axis}, whose extent is {extent}")
