"""CPU kernel of `lowrank_linear`: both products in one function, each side by side over panels and rows.

    p = x · downᵀ          y = p · upᵀ + bias          x: [rows, in], down: [rank, in], up: [out, rank]

p, [rows, rank], is the one buffer between them.
"""

from typing import Any, Final

from regraft.backends.tvm.kernels.cpu._floating import TILES, block_of, default_tiles, packed, padded_vector
from regraft.backends.tvm.kernels.cpu._host import Host
from regraft.backends.tvm.kernels.cpu._ir import Function, function, load, scratch
from regraft.backends.tvm.kernels.cpu._kernel import CpuKernel, Operands, Plan, Tiles, as_rows, with_columns
from regraft.backends.tvm.kernels.cpu._product import Block, Place, Result, multiply_add, over_tasks, panel_product


def plan(given: Operands, tiles: Tiles, host: Host) -> Plan | str:
    """Return a plan, or why the kernel does not fit."""
    dtype = given.dtype("down", "up", "bias")
    if dtype is None:
        return "activations and factors must all be float32, or all float64"
    down, up, bias = given.constants["down"], given.constants["up"], given.constants.get("bias")
    (rank, width), columns = down.shape, up.shape[0]
    block = block_of(tiles, host, dtype)

    def program() -> Any:
        return function(lambda f: _write(f, block, (width, rank, columns), tiles["row_chunk"]))

    return Plan(
        {"width": width, "rank": rank, "columns": columns, "dtype": dtype},
        (packed(down, block), packed(up, block), padded_vector(bias, columns, block, up)),
        program,
        as_rows(width),
        with_columns(columns),
        columns,
    )


def _write(f: Function, block: Block, sizes: tuple[int, int, int], chunk: int) -> None:
    width, rank, columns = sizes
    rows, dtype = f.symbol("rows"), block.dtype
    x = f.parameter("x", ("rows", width), dtype)
    down = f.parameter("down", (block.panels(rank) * block.columns * width,), dtype)
    up = f.parameter("up", (block.panels(columns) * block.columns * rank,), dtype)
    bias = f.parameter("bias", (block.panels(columns) * block.columns,), dtype)
    y = f.parameter("y", ("rows", columns), dtype)
    p = scratch(rows * rank, dtype)

    first = multiply_add(lambda row, k: x[row, k], down, block, width)
    thin = Result(p, lambda row, column: (row * rank + column,), rank)
    over_tasks(
        rows,
        chunk,
        block.panels(rank),
        lambda panel, begin, count: panel_product(block, panel, begin, count, width, first, _as_it_is, thin),
    )

    def with_bias(place: Place, value: Any) -> Any:
        return value + load(bias, [place.column], block.lanes)

    second = multiply_add(lambda row, k: p[row * rank + k], up, block, rank)
    wide = Result(y, lambda row, column: (row, column), columns)
    over_tasks(
        rows,
        chunk,
        block.panels(columns),
        lambda panel, begin, count: panel_product(block, panel, begin, count, rank, second, with_bias, wide),
    )


def _as_it_is(place: Place, value: Any) -> Any:
    del place
    return value


kernel: Final = CpuKernel("lowrank_linear", ("x",), TILES, default_tiles, plan)
