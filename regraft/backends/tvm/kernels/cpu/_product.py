"""Products of matrices: a block of rows and columns at a time whose sums stay in registers.

    y[row, column] = Σ_k a[row, k] · w[k, column]

The weight is packed in panels of as many columns as a block has, [panels, k, columns], so that it is read in order; the
other operand is read number by number, from wherever the kernel says that it lies, so that permutations cost nothing.
What is left of the rows is done in blocks of half, a quarter, ... of the height.
"""

from collections.abc import Callable
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
Finish = Callable[[Place, Any], Any]
"""(where, sum) -> result."""


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


def multiply_add(a: Callable[[Any, Any], Any], weight: Any, block: Block, depth: Any, first: Any = 0) -> Step:
    """Return the step of a floating-point product.

    Args:
        a: (row, k) -> number.
        weight: buffer of one dim, packed.
        block: of sums.
        depth: of a panel in the buffer.
        first: place of the first panel in the buffer.
    """

    def step(total: Any, place: Place, k: Any) -> Any:
        begin = first + (place.panel * depth + k) * block.columns + place.vector * block.lanes
        return total + spread(a(place.row, k), block.lanes) * load(weight, [begin], block.lanes)

    return step


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
    depth: Any,
    step: Step,
    finish: Finish | None,
    result: Result,
) -> None:
    """Write a whole product, side by side over panels and chunks of rows."""

    def body(panel: Any, first: Any, count: Any) -> None:
        panel_product(block, panel, first, count, depth, step, finish, result)

    over_tasks(rows, row_chunk, block.panels(columns), body)


def panel_product(
    block: Block, panel: Any, first: Any, rows: Any, depth: Any, step: Step, finish: Finish | None, result: Result
) -> None:
    """Write the results of one panel for rows from `first` on."""

    def as_it_is(place: Place, value: Any) -> Any:
        del place
        return value

    def part(size: int, begin: Any) -> None:
        _block_product(block, size, panel, first + begin, depth, step, finish or as_it_is, result)

    with each(rows // block.rows) as whole:
        part(block.rows, whole * block.rows)
    size = block.rows // 2
    while size:
        with when(index(rows) % (2 * size) >= size):
            part(size, rows // (2 * size) * (2 * size))
        size //= 2


def _block_product(
    block: Block, rows: int, panel: Any, first: Any, depth: Any, step: Step, finish: Finish | None, result: Result
) -> None:
    sums = registers(rows * block.columns, block.dtype)
    cells = [(row, vector) for row in range(rows) for vector in range(block.vectors)]

    def place(row: int, vector: int) -> Place:
        return Place(first + row, panel, vector, panel * block.columns + vector * block.lanes)

    def at(row: int, vector: int) -> list[Any]:
        return [row * block.columns + vector * block.lanes]

    for cell in cells:
        store(sums, spread(number(0, block.dtype), block.lanes), at(*cell), block.lanes)
    with each(depth) as k:
        for cell in cells:
            total = load(sums, at(*cell), block.lanes)
            store(sums, step(total, place(*cell), k), at(*cell), block.lanes)

    def whole() -> None:
        for cell in cells:
            spot = place(*cell)
            value = finish(spot, load(sums, at(*cell), block.lanes))
            store(result.buffer, value, result.at(spot.row, spot.column), block.lanes)

    def ragged() -> None:
        edge = registers(rows * block.columns, result.buffer.dtype)
        for cell in cells:
            value = finish(place(*cell), load(sums, at(*cell), block.lanes))
            store(edge, value, at(*cell), block.lanes)
        left = least(result.columns - panel * block.columns, block.columns)
        with each(rows) as row, each(left) as column:
            spot = result.at(first + row, panel * block.columns + column)
            store(result.buffer, load(edge, [row * block.columns + column], 1), spot, 1)

    if not result.dense:
        ragged()
    elif isinstance(result.columns, int) and result.columns % block.columns == 0:
        whole()
    else:
        either((panel + 1) * block.columns <= result.columns, whole, ragged)
