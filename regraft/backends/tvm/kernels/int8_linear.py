"""CUDA kernels of `int8_linear` with one step a row: rows to codes, an integer product, and scales and bias behind it.

    size  = max(max(x), -min(x) · 127/128), 1 for a row of zeros         of each row of x: [rows, in]
    codes = round(x · 127 / size), int8 in [-128, 127]
    y     = (codes · weightᵀ) · (size / 127) · scale + bias              weight: int8 [out, in], scale: float32 [out]

This is the op's Q where rows of both signs span its shared range, which is then that of one row: from -128/127 to 1.
Where they do not, the op's step is finer than size / 127, which the op announces as its largest; here rows never depend
on each other. One step for all rows (`per_row=0`) would need all of x before the first code, and is refused.

- rows: int8 tensor cores.
- decode: for few rows; the weights are read once, at the speed of the memory.
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
    first_fitting,
    rows_of,
)

FEW_ROWS: Final = 16
QUANTIZED_ROWS: Final = 4
"""Rows that one block turns to codes, and how many of their numbers at a time."""
QUANTIZED_DEPTH: Final = 512

SPACE: Final = {
    "rows": {
        "rows": (32, 64, 128),
        "columns": (64, 128, 256),
        "depth": (64, 128),
        "stages": (1, 2, 3, 4),
        "threads": (128, 256),
    },
    "decode": {"rows": (1, 2, 4, 8), "columns": (4, 8, 16), "depth": (256, 512, 1024), "threads": (64, 128)},
}


def problem_of(shapes: Shapes, attributes: Mapping[str, Value], dtype: str) -> Problem:
    """Return the problem that a call of the op is."""
    outer, inner = shapes["weight"]
    options = {"bias": int("bias" in shapes), "per_row": attributes["per_row"]}
    return Problem(dtype, {"in_features": inner, "out_features": outer}, options, rows_of(shapes))


def arguments(problem: Problem, tiling: Tiling) -> tuple[Argument, ...]:
    """Return what a built kernel takes."""
    del tiling
    inner, outer, dtype = problem.sizes["in_features"], problem.sizes["out_features"], problem.storage
    return (
        Argument("x", ("rows", inner), dtype),
        Argument("weight", (outer, inner), "int8"),
        Argument("scale", (outer,), "float32"),
        Argument("bias", (outer,), dtype, present=problem.has("bias")),
        Argument("y", ("rows", outer), dtype, "out"),
        Argument("codes", ("rows", inner), "int8", "scratch"),
        Argument("step", ("rows",), "float32", "scratch"),
    )


def refusal(problem: Problem, tiling: Tiling) -> str | None:
    """Return that one step for all rows is not computed, or None."""
    del tiling
    return None if problem.has("per_row") else "computes one step a row (per_row=1), not one for all of x"


def default(problem: Problem, arch: str) -> Tiling:
    """Return tiles: for few rows the memory-bound variant."""
    return default_of(kernel, problem, arch)


def default_of(kernel: Kernel, problem: Problem, arch: str) -> Tiling:
    """Return the tiles of a kernel that multiplies codes."""
    if problem.rows <= FEW_ROWS:
        rows = min(8, 1 << (problem.rows - 1).bit_length())
        return Tiling(
            "decode", {"rows": rows, "columns": max(4, 8 // rows), "depth": 256 if rows == 8 else 512, "threads": 64}
        )
    tiles = {"rows": 64, "columns": 128, "depth": 128, "stages": 3, "threads": 128}
    if problem.rows > 4096:
        tiles |= {"rows": 128, "threads": 256}
    return first_fitting(kernel, problem, arch, [Tiling("rows", tiles), Tiling("rows", {**tiles, "stages": 2})])


def use(problem: Problem, tiling: Tiling) -> Use:
    """Return what a block of the product takes: tiles of codes and weights in stages; sums twice, in both types."""
    del problem
    tiles = tiling.tiles
    rows, columns, depth, threads = (tiles[name] for name in ("rows", "columns", "depth", "threads"))
    if tiling.variant == "decode":
        return Use(0, rows * columns * depth, threads)
    return Use(tiles["stages"] * depth * (rows + columns), rows * columns, threads)


kernel: Final = Kernel(
    op="int8_linear",
    dtypes=("float16", "bfloat16", "float32"),
    sizes=("in_features", "out_features"),
    options={"bias": (0, 1), "per_row": (0, 1)},
    variants=SPACE,
    problem=problem_of,
    arguments=arguments,
    default=default,
    use=use,
    refusal=refusal,
    simt=lambda problem: False,
    template=f"{__package__}.cuda.int8_linear",
)
