"""CPU kernel of `lowrank_mlp`: a task owns rows and walks the hidden width, so that nothing of full width exists.

    p = x · in_downᵀ; for each block d of the hidden width: h = act(p · in_up_dᵀ + in_bias_d); s += h · out_down_dᵀ

h is [rows of a task, hidden_block], in the cache. For few rows several tasks share them, each with blocks and a sum of
its own.
"""

# TVM has no types, so that those of expressions are unknown.
# pyright: reportUnknownLambdaType=false

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from torch import Tensor

from regraft.backends.tvm.kernels.cpu._elementary import Elementary
from regraft.backends.tvm.kernels.cpu._floating import TILES, block_of, default_tiles, packed, padded_vector, plus
from regraft.backends.tvm.kernels.cpu._host import Host, threads
from regraft.backends.tvm.kernels.cpu._ir import (
    Function,
    along,
    by_work,
    ceil_div,
    each,
    function,
    in_parallel,
    index,
    least,
    load,
    most,
    number,
    scratch,
    spread,
    store,
)
from regraft.backends.tvm.kernels.cpu._kernel import CpuKernel, Operands, Plan, Tiles, as_rows, in_rows, with_columns
from regraft.backends.tvm.kernels.cpu._product import (
    Block,
    Place,
    Result,
    multiply_add,
    panel_product,
    product,
)

_FACTORS: Final = ("in_up", "out_down", "in_down", "out_up", "gate_down", "gate_up")
_BIASES: Final = ("in_bias", "out_bias", "gate_bias")


def plan(given: Operands, tiles: Tiles, host: Host) -> Plan | str:
    """Return a plan, or why the kernel does not fit."""
    if given.dtype(*_FACTORS, *_BIASES) != "float32":
        return "activations, factors and biases must all be float32"
    block = block_of(tiles, host, "float32")
    sizes = {name: tuple(given.constants[name].shape) for name in _FACTORS if name in given.constants}
    layer = _Layer(sizes, str(given.attributes["activation"]), "residual" in given.activations, block, tiles)
    tensors = layer.tensors(given.constants)
    columns = layer.out

    def write(f: Function) -> None:
        x = f.parameter("x", ("rows", layer.width), "float32")
        residual = f.parameter("residual", ("rows", columns), "float32") if layer.residual else None
        buffers = {name: f.parameter(name, tensor.shape, "float32") for name, tensor in tensors.items()}
        y = f.parameter("y", ("rows", columns), "float32")
        rows, parameters = f.symbol("rows"), sum(height * width for height, width in sizes.values())
        by_work(rows * parameters, lambda: layer.write(rows, x, residual, buffers, y))

    problem = {"sizes": sizes, "activation": layer.activation, "residual": layer.residual, "threads": threads()}
    shape = with_columns(columns)
    return Plan(problem, tuple(tensors.values()), lambda: function(write), as_rows(layer.width), shape, in_rows)


@dataclass(frozen=True)
class _Layer:
    """The layer as a program. Sizes: of the factors that there are."""

    sizes: Mapping[str, tuple[int, ...]]
    activation: str
    residual: bool
    block: Block
    tiles: Tiles

    @property
    def width(self) -> int:
        return self.sizes.get("in_down", self.sizes["in_up"])[1]

    @property
    def hidden(self) -> int:
        return self.sizes["in_up"][0]

    @property
    def summed(self) -> int:
        """Width of s."""
        return self.sizes["out_down"][0]

    @property
    def out(self) -> int:
        return self.sizes.get("out_up", self.sizes["out_down"])[0]

    @property
    def stride(self) -> int:
        """Of a row of s: whole panels."""
        return self.block.size(self.summed)

    def tensors(self, constants: Mapping[str, Tensor]) -> dict[str, Tensor]:
        found = {name: packed(constants[name], self.block) for name in self.sizes}
        widths = {"in_bias": self.hidden, "gate_bias": self.hidden, "out_bias": self.out}
        used = widths if "gate_up" in self.sizes else {"in_bias": self.hidden, "out_bias": self.out}
        return found | {name: padded_vector(constants.get(name), width, self.block) for name, width in used.items()}

    def write(self, rows: Any, x: Any, residual: Any, buffers: Mapping[str, Any], y: Any) -> None:
        sources = {label: self._source(rows, x, buffers, label) for label in ("in", "gate") if f"{label}_up" in buffers}
        chunk, blocks = self.tiles["row_chunk"], ceil_div(self.hidden, self.tiles["hidden_block"])
        chunks = ceil_div(rows, chunk)
        shares = most(least(index(threads()) // chunks, blocks), 1)
        s = scratch(shares * rows * self.stride, "float32")
        with in_parallel(shares * chunks) as task:
            share, first = task // chunks, (task % chunks) * chunk
            count = least(rows - first, chunk)
            self._clear(s, share * rows + first, count)
            h = {label: scratch(chunk * self.tiles["hidden_block"], "float32") for label in sources}
            begin, end = (share * blocks) // shares, ((share + 1) * blocks) // shares
            with each(end - begin) as step:
                self._hidden(sources, buffers, begin + step, (first, count), h)
                self._add(h["in"], buffers["out_down"], begin + step, (first, count), s, share * rows)
        self._finish(rows, (s, shares), residual, buffers, y)

    def _source(self, rows: Any, x: Any, buffers: Mapping[str, Any], label: str) -> tuple[Any, int]:
        """What is multiplied into the hidden width, as (row, k) -> number, and its width."""
        down = buffers.get(f"{label}_down")
        if down is None:
            return (lambda row, k: x[row, k]), self.width
        rank = self.sizes[f"{label}_down"][0]
        p = scratch(rows * rank, "float32")
        part = multiply_add(lambda row, k: x[row, k], down, self.block, self.width)
        result = Result(p, lambda row, column: (row * rank + column,), rank)
        product(self.block, rows, self.tiles["row_chunk"], rank, [part], None, result)
        return (lambda row, k: p[row * rank + k]), rank

    def _clear(self, s: Any, first: Any, count: Any) -> None:
        with each(count) as row:

            def clear(at: Any, n: int) -> None:
                store(s, spread(number(0, "float32"), n), [(first + row) * self.stride + at], n)

            along(self.stride, self.block.lanes, clear)

    def _hidden(self, sources: Any, buffers: Mapping[str, Any], which: Any, rows: Any, h: Mapping[str, Any]) -> None:
        """A block of the hidden width, in h["in"]."""
        block, size = self.block, self.tiles["hidden_block"]
        first, count = rows
        panels = size // block.columns
        there = least(block.panels(self.hidden) - which * panels, panels)
        for label, (source, rank) in sources.items():
            part = multiply_add(source, buffers[f"{label}_up"], block, rank)
            at = self._in_block(first, which)
            result = Result(h[label], at, block.size(self.hidden))
            bias = plus(buffers[f"{label}_bias"], block)
            with each(there) as panel:
                panel_product(block, which * panels + panel, first, count, [part], bias, result)
        with each(count) as row, each(there * block.vectors) as vector:
            self._activate(h, [row * size + vector * block.lanes])

    def _in_block(self, first: Any, which: Any) -> Any:
        size = self.tiles["hidden_block"]
        return lambda row, column: ((row - first) * size + column - which * size,)

    def _activate(self, h: Mapping[str, Any], at: list[Any]) -> None:
        lanes = self.block.lanes
        activate = Elementary(lanes).activation(self.activation)
        inner = load(h["in"], at, lanes)
        store(h["in"], activate(load(h["gate"], at, lanes)) * inner if "gate" in h else activate(inner), at, lanes)

    def _add(self, h: Any, weight: Any, which: Any, rows: Any, s: Any, offset: Any) -> None:
        """s += h · out_down of the block."""
        block, size = self.block, self.tiles["hidden_block"]
        first, count = rows
        depth = least(self.hidden - which * size, size)
        begin = which * size * block.columns
        part = multiply_add(lambda row, k: h[(row - first) * size + k], weight, block, self.hidden, begin, depth)

        def at(row: Any, column: Any) -> tuple[Any]:
            return ((offset + row) * self.stride + column,)

        def finish(place: Place, value: Any) -> Any:
            return value + load(s, at(place.row, place.column), block.lanes)

        result = Result(s, at, self.stride)
        with each(block.panels(self.summed)) as panel:
            panel_product(block, panel, first, count, [part], finish, result)

    def _finish(self, rows: Any, sums: Any, residual: Any, buffers: Mapping[str, Any], y: Any) -> None:
        s, shares = sums
        lanes = self.block.lanes
        with in_parallel(rows) as row, each(shares - 1) as share:

            def gather(at: Any, n: int) -> None:
                other = load(s, [((share + 1) * rows + row) * self.stride + at], n)
                store(s, load(s, [row * self.stride + at], n) + other, [row * self.stride + at], n)

            along(self.stride, lanes, gather)
        if "out_up" in buffers:
            part = multiply_add(lambda row, k: s[row * self.stride + k], buffers["out_up"], self.block, self.summed)
            result = Result(y, lambda row, column: (row, column), self.out)
            bias = plus(buffers["out_bias"], self.block)
            product(self.block, rows, self.tiles["row_chunk"], self.out, [part], bias, result)
        if residual is None and "out_up" in buffers:
            return
        with in_parallel(rows) as row:

            def last(at: Any, n: int) -> None:
                value = load(y, [row, at], n) if "out_up" in buffers else load(s, [row * self.stride + at], n)
                value = value if "out_up" in buffers else value + load(buffers["out_bias"], [at], n)
                store(y, value if residual is None else value + load(residual, [row, at], n), [row, at], n)

            along(self.out, lanes, last)


_TILES: Final[Mapping[str, tuple[int, ...]]] = {**TILES, "hidden_block": (128, 64, 256, 512)}

kernel: Final = CpuKernel(
    "lowrank_mlp", ("x", "residual"), _TILES, lambda host: {**default_tiles(host), "hidden_block": 128}, plan
)
