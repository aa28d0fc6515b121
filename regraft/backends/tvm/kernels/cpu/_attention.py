"""Attention as a program: keys and values are packed, then chunks of queries see them in blocks, by an online softmax.

    m' = max(m, max_j s_j)     l' = l · e^(m - m') + Σ_j e^(s_j - m')     o' = o · e^(m - m') + Σ_j e^(s_j - m') · v_j

so that scores exist for one chunk of queries and one block of keys only. A query that sees nothing has l = 0, and gives
0.

Source: Milakov & Gimelshein 2018, arXiv:1805.02867; by blocks: Dao et al. 2022, arXiv:2205.14135.
"""

# TVM has no types, so that those of expressions are unknown.
# pyright: reportUnknownLambdaType=false

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from regraft.backends.tvm.kernels.cpu._elementary import Elementary
from regraft.backends.tvm.kernels.cpu._ir import (
    along,
    ceil_div,
    each,
    either,
    in_parallel,
    least,
    load,
    most,
    number,
    registers,
    scratch,
    spread,
    store,
    tirx,
)
from regraft.backends.tvm.kernels.cpu._product import Block, Place, Result, multiply_add, panel_product

Element = Callable[[Any, Any, Any, Any], Any]
"""(batch, head, row, place in the head) -> number."""

_HIDDEN: Final = float("-inf")


@dataclass(frozen=True)
class Offsets:
    """What is added to scores, or hides them, and how it is broadcast to [batch, heads, queries, keys].

    Attributes:
        buffer: of one dim; uint8 for a mask (0 hides), float32 for numbers.
        strides: int64, of the four dims.
    """

    buffer: Any
    strides: tuple[Any, Any, Any, Any]

    def row(self, batch: Any, head: Any, query: Any) -> Any:
        """Return the place of a row's first element."""
        return batch * self.strides[0] + head * self.strides[1] + query * self.strides[2]


@dataclass(frozen=True)
class Sizes:
    """Extents: batch, queries and keys are known at run time."""

    batch: Any
    queries: Any
    keys: Any
    heads: int
    kv_heads: int
    head: int
    value: int


@dataclass(frozen=True)
class Attention:
    """Attention of split heads.

    Attributes:
        sizes: extents.
        q, k, v: numbers, from wherever they lie.
        y: (batch, head, query, place) -> place of the result; its last dim has a head's values side by side.
        result: buffer of the result.
        scale: of scores.
        causal: whether query i sees keys up to i only.
        offsets: masks and numbers.
        block: of sums.
        query_chunk: queries of a task.
        key_block: keys of one step; whole panels.
    """

    sizes: Sizes
    q: Element
    k: Element
    v: Element
    y: Callable[[Any, Any, Any, Any], tuple[Any, ...]]
    result: Any
    scale: float
    causal: bool
    offsets: tuple[Offsets, ...]
    block: Block
    query_chunk: int
    key_block: int

    def write(self) -> None:
        """Write the program."""
        sizes = self.sizes
        keys, values = self._packed_keys(), self._packed_values()
        chunks = ceil_div(sizes.queries, self.query_chunk)
        with in_parallel(sizes.batch * sizes.heads * chunks) as task:
            batch, head = task // (chunks * sizes.heads), (task // chunks) % sizes.heads
            first = (task % chunks) * self.query_chunk
            rows = least(sizes.queries - first, self.query_chunk)
            _Task(self, (batch, head), first, rows, (keys, values)).write()

    @property
    def value_width(self) -> int:
        """Of whole panels of values."""
        return self.block.size(self.sizes.value)

    def group(self, batch: Any, head: Any) -> Any:
        """Return the number of the keys and values that a query head reads."""
        return batch * self.sizes.kv_heads + head // (self.sizes.heads // self.sizes.kv_heads)

    def _packed_keys(self) -> Any:
        """[batch · kv_heads, panels of keys, head, keys of a panel]; zeros behind the last key."""
        sizes, columns = self.sizes, self.block.columns
        panels = ceil_div(sizes.keys, columns)
        packed = scratch(sizes.batch * sizes.kv_heads * panels * sizes.head * columns, "float32")
        with (
            in_parallel(sizes.batch * sizes.kv_heads * panels) as task,
            each(columns) as column,
            each(sizes.head) as at,
        ):
            group, key = task // panels, (task % panels) * columns + column
            place = (task * sizes.head + at) * columns + column
            batch, head = group // sizes.kv_heads, group % sizes.kv_heads

            def copy() -> None:
                store(packed, self.k(batch, head, key, at), [place], 1)

            either(key < sizes.keys, copy, lambda: store(packed, number(0, "float32"), [place], 1))
        return packed

    def _packed_values(self) -> Any:
        """[batch · kv_heads, panels of values, keys, values of a panel]; zeros behind the last value."""
        sizes, columns = self.sizes, self.block.columns
        panels = self.block.panels(sizes.value)
        packed = scratch(sizes.batch * sizes.kv_heads * panels * sizes.keys * columns, "float32")
        with in_parallel(sizes.batch * sizes.kv_heads) as group, each(sizes.keys) as key:
            batch, head = group // sizes.kv_heads, group % sizes.kv_heads
            for panel in range(panels):
                begin = ((group * panels + panel) * sizes.keys + key) * columns
                there = min(columns, sizes.value - panel * columns)
                with each(there) as column:
                    store(packed, self.v(batch, head, key, panel * columns + column), [begin + column], 1)
                if there < columns:
                    with each(columns - there) as rest:
                        store(packed, number(0, "float32"), [begin + there + rest], 1)
        return packed


class _Task:
    """A chunk of queries of one head."""

    def __init__(self, layer: Attention, where: tuple[Any, Any], first: Any, rows: Any, packed: Any) -> None:
        self.layer, self.where, self.first, self.rows = layer, where, first, rows
        self.keys, self.values = packed
        chunk = layer.query_chunk
        self.scores = scratch(chunk * layer.key_block, "float32")
        self.sums = scratch(chunk * layer.value_width, "float32")
        self.highest, self.total, self.decay = (scratch(chunk, "float32") for _ in range(3))

    def write(self) -> None:
        layer = self.layer
        self._clear()
        seen = layer.sizes.keys
        if layer.causal:
            seen = least(seen, self.first + self.rows)
        with each(ceil_div(seen, layer.key_block)) as block:
            start = block * layer.key_block
            count = least(layer.sizes.keys - start, layer.key_block)
            self._score(start, count)
            with each(self.rows) as row:
                self._weigh(row, start, count)
            self._add(start, count)
        with each(self.rows) as row:
            self._finish(row)

    def _clear(self) -> None:
        width = self.layer.value_width
        with each(self.rows) as row:
            store(self.highest, number(_HIDDEN, "float32"), [row], 1)
            store(self.total, number(0, "float32"), [row], 1)

            def clear(at: Any, lanes: int) -> None:
                store(self.sums, spread(number(0, "float32"), lanes), [row * width + at], lanes)

            along(width, self.layer.block.lanes, clear)

    def _score(self, start: Any, count: Any) -> None:
        """Scaled scores of the block, what lies behind `count` included."""
        layer, block = self.layer, self.layer.block
        sizes, columns = layer.sizes, block.columns
        panels = ceil_div(sizes.keys, columns)
        begin = (layer.group(*self.where) * panels * columns + start) * sizes.head
        part = multiply_add(
            lambda row, d: layer.q(*self.where, self.first + row, d), self.keys, block, sizes.head, begin
        )
        scale = spread(number(layer.scale, "float32"), block.lanes)
        result = Result(self.scores, lambda row, key: (row * layer.key_block + key,), layer.key_block)
        with each(ceil_div(count, columns)) as panel:
            panel_product(block, panel, 0, self.rows, [part], lambda place, value: value * scale, result)

    def _weigh(self, row: Any, start: Any, count: Any) -> None:
        """Scores of a row become weights; its largest score and its sum go on."""
        layer, lanes = self.layer, self.layer.block.lanes
        math, base = Elementary(lanes), row * layer.key_block
        visible = count if not layer.causal else most(least(self.first + row + 1 - start, count), 0)
        for offsets in layer.offsets:
            self._offset(offsets, row, start, visible)
        vectors = ceil_div(count, lanes)
        with each(vectors * lanes - visible) as rest:
            store(self.scores, number(_HIDDEN, "float32"), [base + visible + rest], 1)
        most_of = registers(lanes, "float32")
        store(most_of, math.constant(_HIDDEN), [0], lanes)
        with each(vectors) as vector:
            found = tirx.max(load(most_of, [0], lanes), load(self.scores, [base + vector * lanes], lanes))
            store(most_of, found, [0], lanes)
        _folded(most_of, lanes, tirx.max)
        new = tirx.max(self.highest[row], most_of[0])
        # Where nothing is seen yet, any finite number gives weights of 0.
        safe = registers(1, "float32")
        store(safe, tirx.Select(new == number(_HIDDEN, "float32"), number(0, "float32"), new), [0], 1)
        one = Elementary(1)
        store(self.decay, one.exp(self.highest[row] - safe[0]), [row], 1)
        summed = registers(lanes, "float32")
        store(summed, math.constant(0), [0], lanes)
        with each(vectors) as vector:
            at = [base + vector * lanes]
            weight = math.kept(math.exp(load(self.scores, at, lanes) - spread(safe[0], lanes)))
            store(self.scores, weight, at, lanes)
            store(summed, load(summed, [0], lanes) + weight, [0], lanes)
        _folded(summed, lanes, lambda a, b: a + b)
        store(self.total, self.total[row] * self.decay[row] + summed[0], [row], 1)
        store(self.highest, tirx.max(self.highest[row], most_of[0]), [row], 1)

    def _offset(self, offsets: Offsets, row: Any, start: Any, visible: Any) -> None:
        """Add to the scores of a row, or hide them; keys side by side in memory are read as vectors."""
        layer, lanes = self.layer, self.layer.block.lanes
        begin = offsets.row(*self.where, self.first + row)
        stride, base = offsets.strides[3], row * layer.key_block

        def part(key: Any, count: int, step: Any) -> None:
            found = load(offsets.buffer, [begin + (start + key) * step], count)
            score = load(self.scores, [base + key], count)
            if offsets.buffer.dtype == "uint8":
                hidden = spread(number(_HIDDEN, "float32"), count)
                value = tirx.Select(found != spread(number(0, "uint8"), count), score, hidden)
            else:
                value = score + found
            store(self.scores, value, [base + key], count)

        def side_by_side() -> None:
            with each(visible // lanes) as vector:
                part(vector * lanes, lanes, 1)
            with each(visible % lanes) as rest:
                part(visible // lanes * lanes + rest, 1, 1)

        def one_by_one() -> None:
            with each(visible) as key:
                part(key, 1, stride)

        either(stride == 1, side_by_side, one_by_one)

    def _add(self, start: Any, count: Any) -> None:
        layer, block = self.layer, self.layer.block
        sizes, width = layer.sizes, layer.value_width
        panels = block.panels(sizes.value)
        begin = (layer.group(*self.where) * panels * sizes.keys + start) * block.columns
        part = multiply_add(
            lambda row, k: self.scores[row * layer.key_block + k], self.values, block, sizes.keys, begin, count
        )

        def finish(place: Place, value: Any) -> Any:
            before = load(self.sums, [place.row * width + place.column], block.lanes)
            return before * spread(self.decay[place.row], block.lanes) + value

        result = Result(self.sums, lambda row, column: (row * width + column,), width)
        with each(panels) as panel:
            panel_product(block, panel, 0, self.rows, [part], finish, result)

    def _finish(self, row: Any) -> None:
        factor = registers(1, "float32")
        nothing = self.total[row] == number(0, "float32")
        one, zero = number(1, "float32"), number(0, "float32")
        store(factor, tirx.Select(nothing, zero, one / tirx.Select(nothing, one, self.total[row])), [0], 1)

        def copy(at: Any, lanes: int) -> None:
            value = load(self.sums, [row * self.layer.value_width + at], lanes) * spread(factor[0], lanes)
            store(self.layer.result, value, self.layer.y(*self.where, self.first + row, at), lanes)

        along(self.layer.sizes.value, self.layer.block.lanes, copy)


def _folded(vector: Any, lanes: int, combine: Callable[[Any, Any], Any]) -> None:
    """Combine all lanes of registers in the first one."""
    while lanes > 1:
        lanes //= 2
        store(vector, combine(load(vector, [0], lanes), load(vector, [lanes], lanes)), [0], lanes)
