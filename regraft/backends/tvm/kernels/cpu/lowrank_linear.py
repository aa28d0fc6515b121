"""CPU kernel of `lowrank_linear`: both products in one function, each side by side over panels and rows.

    p = x · downᵀ          y = p · upᵀ + bias          x: [rows, in], down: [rank, in], up: [out, rank]

p, [rows, rank], is the one buffer between them.
"""

# TVM has no types, so that those of expressions are unknown.
# pyright: reportUnknownLambdaType=false

from typing import Final

from regraft.backends.tvm.kernels.cpu._floating import TILES, block_of, default_tiles, packed, padded_vector, plus
from regraft.backends.tvm.kernels.cpu._host import Host
from regraft.backends.tvm.kernels.cpu._ir import Function, by_work, function, scratch
from regraft.backends.tvm.kernels.cpu._kernel import CpuKernel, Operands, Plan, Tiles, as_rows, in_rows, with_columns
from regraft.backends.tvm.kernels.cpu._product import Result, multiply_add, product


def plan(given: Operands, tiles: Tiles, host: Host) -> Plan | str:
    """Return a plan, or why the kernel does not fit."""
    dtype = given.dtype("down", "up", "bias")
    if dtype is None:
        return "activations and factors must all be float32, or all float64"
    down, up, bias = given.constants["down"], given.constants["up"], given.constants.get("bias")
    (rank, width), columns = down.shape, up.shape[0]
    block = block_of(tiles, host, dtype)
    thin, wide = block.fitted(rank), block.fitted(columns)

    def write(f: Function) -> None:
        rows = f.symbol("rows")
        x = f.parameter("x", ("rows", width), dtype)
        first = f.parameter("down", (thin.size(rank, width),), dtype)
        second = f.parameter("up", (wide.size(columns, rank),), dtype)
        offsets = f.parameter("bias", (wide.size(columns),), dtype)
        y = f.parameter("y", ("rows", columns), dtype)

        def both() -> None:
            p = scratch(rows * rank, dtype)
            part = multiply_add(lambda row, k: x[row, k], first, thin, width)
            to_p = Result(p, lambda row, column: (row * rank + column,), rank)
            product(thin, rows, tiles["row_chunk"], rank, [part], None, to_p)
            part = multiply_add(lambda row, k: p[row * rank + k], second, wide, rank)
            to_y = Result(y, lambda row, column: (row, column), columns)
            product(wide, rows, tiles["row_chunk"], columns, [part], plus(offsets, wide), to_y)

        by_work(rows * (rank * (width + columns)), both)

    return Plan(
        {"width": width, "rank": rank, "columns": columns, "dtype": dtype},
        (packed(down, thin), packed(up, wide), padded_vector(bias, columns, wide)),
        lambda: function(write),
        as_rows(width),
        with_columns(columns),
        in_rows,
    )


kernel: Final = CpuKernel("lowrank_linear", ("x",), TILES, default_tiles, plan)
