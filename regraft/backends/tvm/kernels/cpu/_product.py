"""Products of matrices: a block of rows and columns at a time whose sums stay in registers.

    y[row, column] = Σ_k a[row, k] · w[k, column]

The weight is packed in panels of as many columns as a block has, [panels, k, columns], so that it is read in order; the
other operand is read number by number, from wherever the kernel says that it lies, so that permutations cost nothing.
What is left of the rows is done in blocks of half, a quarter, ... of the height.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from regraft.backends.tvm.kernels.cpu._ir import (
    ceil_div,
    each,
    either,
    in_parallel,
    index,
    least,
    load,
    number,
    registers,
    spread,
    store,
    when,
)

_SHORTEST: Final = 4


@dataclass(frozen=True)
class Block:
    """The block of sums that stays in registers.

    Attributes:
        rows: a power of two.
        vectors: of columns.
        lanes: numbers in a vector.
        dtype: of the sums.
    """

    rows: int
    vectors: int
    lanes: int
    dtype: str

    @property
    def columns(self) -> int:
        """Columns of a panel."""
        return self.vectors * self.lanes

    def fitted(self, columns: int) -> "Block":
        """Return a block that is not much wider than so many columns; its vectors have 4 numbers or more."""
        lanes = self.lanes
        while lanes > _SHORTEST and 2 * columns <= lanes:
            lanes //= 2
        return replace(self, lanes=lanes, vectors=min(self.vectors, -(-columns // lanes)))

    def panels(self, columns: int) -> int:
        """Return how many panels hold so many columns."""
        return -(-columns // self.columns)

    def size(self, columns: int, depth: int = 1) -> int:
        """Return how many numbers the panels of so many columns hold."""
        return self.panels(columns) * self.columns * depth


@dataclass(frozen=True)
class Place:
    """A vector of results.

    Attributes:
        row: of the result.
        panel: number of the panel.
        vector: number of the vector in the panel.
        column: of its first result, counted from the first panel.
    """

    row: Any
    panel: Any
    vector: int
    column: Any


Step = Callable[[Any, Place, Any], Any]
"""(sum so far, where, k) -> sum."""
Finish = Callable[..., Any]
"""(where, sum of each part) -> result."""


@dataclass(frozen=True)
class Part:
    """One of the sums over k that a result is made of.

    Attributes:
        depth: how many steps.
        step: adds one.
        dtype: of the sum.
    """

    depth: Any
    step: Step
    dtype: str


@dataclass(frozen=True)
class Result:
    """Where results go.

    Attributes:
        buffer: any number of dims.
        at: (row, column) -> place in the buffer.
        columns: how many there are; what a last panel has beyond them is dropped.
        dense: whether neighbouring columns are neighbours in the buffer.
    """

    buffer: Any
    at: Callable[[Any, Any], tuple[Any, ...]]
    columns: Any
    dense: bool = True


def multiply_add(
    a: Callable[[Any, Any], Any], weight: Any, block: Block, depth: Any, first: Any = 0, steps: Any = None
) -> Part:
    """Return a product of floating-point numbers.

    Args:
        a: (row, k) -> number.
        weight: buffer of one dim, packed.
        block: of sums.
        depth: of a panel in the buffer.
        first: place of the first panel in the buffer.
        steps: how many of the depth there are; all by default.
    """

    def step(total: Any, place: Place, k: Any) -> Any:
        begin = first + (place.panel * depth + k) * block.columns + place.vector * block.lanes
        return total + spread(a(place.row, k), block.lanes) * load(weight, [begin], block.lanes)

    return Part(depth if steps is None else steps, step, block.dtype)


def over_tasks(rows: Any, row_chunk: int, panels: int, body: Callable[[Any, Any, Any], None]) -> None:
    """Run `body(panel, first row, rows)` side by side over panels and chunks of rows."""
    chunks = ceil_div(rows, row_chunk)
    with in_parallel(chunks * panels) as task:
        first = (task % chunks) * row_chunk
        body(task // chunks, first, least(rows - first, row_chunk))


def product(
    block: Block,
    rows: Any,
    row_chunk: int,
    columns: int,
    parts: Sequence[Part],
    finish: Finish | None,
    result: Result,
) -> None:
    """Write a whole product, side by side over panels and chunks of rows."""

    def body(panel: Any, first: Any, count: Any) -> None:
        panel_product(block, panel, first, count, parts, finish, result)

    over_tasks(rows, row_chunk, block.panels(columns), body)


def panel_product(
    block: Block, panel: Any, first: Any, rows: Any, parts: Sequence[Part], finish: Finish | None, result: Result
) -> None:
    """Write the results of one panel for rows from `first` on."""

    def whole(size: int, begin: Any) -> None:
        _Tile(block, size, panel, first + begin, finish or _as_it_is).write(parts, result)

    with each(rows // block.rows) as step:
        whole(block.rows, step * block.rows)
    size = block.rows // 2
    while size:
        with when(index(rows) % (2 * size) >= size):
            whole(size, rows // (2 * size) * (2 * size))
        size //= 2


def _as_it_is(place: Place, value: Any) -> Any:
    del place
    return value


@dataclass(frozen=True)
class _Tile:
    """Rows of one panel whose sums are in registers."""

    block: Block
    rows: int
    panel: Any
    first: Any
    finish: Finish

    @property
    def cells(self) -> list[tuple[int, int]]:
        return [(row, vector) for row in range(self.rows) for vector in range(self.block.vectors)]

    def place(self, row: int, vector: int) -> Place:
        column = self.panel * self.block.columns + vector * self.block.lanes
        return Place(self.first + row, self.panel, vector, column)

    def at(self, row: int, vector: int) -> list[Any]:
        return [row * self.block.columns + vector * self.block.lanes]

    def write(self, parts: Sequence[Part], result: Result) -> None:
        block = self.block
        sums = [self._summed(part) for part in parts]

        def value(cell: tuple[int, int]) -> Any:
            return self.finish(self.place(*cell), *(load(each_sum, self.at(*cell), block.lanes) for each_sum in sums))

        def whole() -> None:
            for cell in self.cells:
                spot = self.place(*cell)
                store(result.buffer, value(cell), result.at(spot.row, spot.column), block.lanes)

        def ragged() -> None:
            edge = registers(self.rows * block.columns, result.buffer.dtype)
            for cell in self.cells:
                store(edge, value(cell), self.at(*cell), block.lanes)
            left = least(result.columns - self.panel * block.columns, block.columns)
            with each(self.rows) as row, each(left) as column:
                spot = result.at(self.first + row, self.panel * block.columns + column)
                store(result.buffer, load(edge, [row * block.columns + column], 1), spot, 1)

        if not result.dense:
            ragged()
        elif isinstance(result.columns, int) and result.columns % block.columns == 0:
            whole()
        else:
            either((self.panel + 1) * block.columns <= result.columns, whole, ragged)

    def _summed(self, part: Part) -> Any:
        lanes = self.block.lanes
        sums = registers(self.rows * self.block.columns, part.dtype)
        for cell in self.cells:
            store(sums, spread(number(0, part.dtype), lanes), self.at(*cell), lanes)
        with each(part.depth) as k:
            for cell in self.cells:
                total = load(sums, self.at(*cell), lanes)
                store(sums, part.step(total, self.place(*cell), k), self.at(*cell), lanes)
        return sums
