"""CPU kernel of a dense linear layer with constant weights, for whole graphs."""

# TVM has no types, so that those of expressions are unknown.
# pyright: reportUnknownLambdaType=false

from typing import Final

from regraft.backends.tvm.kernels.cpu._floating import TILES, block_of, default_tiles, packed, padded_vector, plus
from regraft.backends.tvm.kernels.cpu._host import Host
from regraft.backends.tvm.kernels.cpu._ir import Function, by_work, function
from regraft.backends.tvm.kernels.cpu._kernel import CpuKernel, Operands, Plan, Tiles, as_rows, in_rows, with_columns
from regraft.backends.tvm.kernels.cpu._product import Result, multiply_add, product


def plan(given: Operands, tiles: Tiles, host: Host) -> Plan | str:
    """Return a plan, or why the kernel does not fit."""
    dtype = given.dtype("weight", "bias")
    if dtype is None:
        return "activations and weights must all be float32, or all float64"
    weight, bias = given.constants["weight"], given.constants.get("bias")
    columns, width = weight.shape
    block = block_of(tiles, host, dtype).fitted(columns)

    def write(f: Function) -> None:
        rows = f.symbol("rows")
        x = f.parameter("x", ("rows", width), dtype)
        panels = f.parameter("weight", (block.size(columns, width),), dtype)
        offsets = f.parameter("bias", (block.size(columns),), dtype)
        y = f.parameter("y", ("rows", columns), dtype)
        part = multiply_add(lambda row, k: x[row, k], panels, block, width)
        result = Result(y, lambda row, column: (row, column), columns)
        finish = plus(offsets, block)
        by_work(
            rows * (width * columns),
            lambda: product(block, rows, tiles["row_chunk"], columns, [part], finish, result),
        )

    return Plan(
        {"width": width, "columns": columns, "dtype": dtype},
        (packed(weight, block), padded_vector(bias, columns, block)),
        lambda: function(write),
        as_rows(width),
        with_columns(columns),
        in_rows,
    )


kernel: Final = CpuKernel("linear", ("x",), TILES, default_tiles, plan)
