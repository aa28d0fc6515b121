"""CUDA kernels of `lowrank_linear`: both products in one kernel, in two kernels, or for few rows.

    p = x · downᵀ          y = p · upᵀ + bias          x: [rows, in], down: [rank, in], up: [out, rank]

- fused: a block owns rows; p never leaves the chip. With `split` > 1 that many blocks share the output columns of the
  same rows, each with a p of its own, so that few rows still fill the GPU.
- two: a kernel each; p goes through memory. For ranks whose p does not fit on chip.
- decode: for few rows; both products read the weights once, at the speed of the memory.
"""

from collections.abc import Mapping
from typing import Final

from regraft.backends.tvm.kernels._kernel import (
    Argument,
    Kernel,
    Problem,
    Shapes,
    Tiling,
    Use,
    Value,
    ceil_div,
    padded,
    rows_of,
)

_FEW_ROWS: Final = 16
_FILLED: Final = 132
"""Blocks that fill a large GPU."""

_SPACE: Final = {
    "fused": {
        "rows": (32, 64, 128),
        "columns": (64, 128, 256),
        "depth": (32, 64, 128),
        "stages": (1, 2, 3, 4),
        "threads": (128, 256),
        "split": (1, 2, 4, 8, 16),
    },
    "two": {
        "rows": (32, 64, 128),
        "columns": (64, 128, 256),
        "depth": (32, 64, 128),
        "stages": (1, 2, 3, 4),
        "threads": (128, 256),
    },
    "decode": {"rows": (1, 2, 4, 8), "columns": (4, 8, 16), "depth": (128, 256, 512), "threads": (64, 128)},
}


def problem_of(shapes: Shapes, attributes: Mapping[str, Value], dtype: str) -> Problem:
    """Return the problem that a call of the op is."""
    del attributes
    (rank, inner), outer = shapes["down"], shapes["up"][0]
    sizes = {"in_features": inner, "rank": rank, "out_features": outer}
    return Problem(dtype, sizes, {"bias": int("bias" in shapes)}, rows_of(shapes))


def arguments(problem: Problem, tiling: Tiling) -> tuple[Argument, ...]:
    """Return what a built kernel takes."""
    sizes, dtype = problem.sizes, problem.storage
    inner, rank, outer = sizes["in_features"], sizes["rank"], sizes["out_features"]
    found = (
        Argument("x", ("rows", inner), dtype),
        Argument("down", (rank, inner), dtype),
        Argument("up", (outer, rank), dtype),
        Argument("bias", (outer,), dtype, present=problem.has("bias")),
        Argument("y", ("rows", outer), dtype, "out"),
    )
    return found if tiling.variant == "fused" else (*found, Argument("p", ("rows", rank), dtype, "scratch"))


def default(problem: Problem, arch: str) -> Tiling:
    """Return tiles: for few rows the memory-bound variant, else one kernel where p fits on chip, else two."""
    if problem.rows <= _FEW_ROWS:
        rows = min(8, 1 << (problem.rows - 1).bit_length())
        return Tiling("decode", {"rows": rows, "columns": max(4, 16 // rows), "depth": 256, "threads": 64})
    depth = 128 // problem.item_bytes
    columns = 64 if problem.dtype == "float32" else 128
    rows = 64 if problem.rows <= 64 * _FILLED or problem.item_bytes == 4 else 128
    threads = 256 if rows == 128 or problem.item_bytes == 4 else 128
    tiles = {"rows": rows, "columns": columns, "depth": depth, "stages": 2, "threads": threads}
    smaller = ({}, {"columns": 64}, {"columns": 64, "depth": 32}, {"columns": 64, "depth": 32, "rows": 32})
    for change in smaller:
        cut = {**tiles, **change}
        fused = Tiling("fused", {**cut, "split": _split(problem, cut["rows"], cut["columns"])})
        if kernel.fits(problem, fused, arch) is None:
            return fused
    return Tiling("two", tiles)


def _split(problem: Problem, rows: int, columns: int) -> int:
    """Blocks for the same rows: until the GPU is full, there are no more columns, or p costs more than the rest."""
    owners, parts = ceil_div(problem.rows, rows), ceil_div(problem.sizes["out_features"], columns)
    split = 1
    while split < 16 and 2 * split * owners <= _FILLED and 2 * split <= parts:
        split *= 2
    return split


def use(problem: Problem, tiling: Tiling) -> Use:
    """Return what a block takes: tiles of the operands in stages, p twice (accumulated, then as an operand)."""
    tiles, item = tiling.tiles, problem.item_bytes
    rows, columns, depth, threads = (tiles[name] for name in ("rows", "columns", "depth", "threads"))
    if tiling.variant == "decode":
        return Use(0, rows * columns * depth, threads)
    stages = tiles["stages"]
    if tiling.variant == "two":
        return Use(stages * item * depth * (rows + columns), rows * columns, threads)
    rank = padded(problem.sizes["rank"])
    down = stages * item * depth * (rows + rank)
    up = stages * item * columns * rank  # beside the others on sm_90a; on sm_80 it may take the place of `down`
    return Use(down + up + item * rows * rank, rows * (columns + rank), threads)


kernel: Final = Kernel(
    op="lowrank_linear",
    dtypes=("float16", "bfloat16", "float32", "tf32"),
    sizes=("in_features", "rank", "out_features"),
    options={"bias": (0, 1)},
    variants=_SPACE,
    problem=problem_of,
    arguments=arguments,
    default=default,
    use=use,
    template=f"{__package__}.cuda.lowrank_linear",
)
