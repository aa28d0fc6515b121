"""CUDA kernels of `shift_linear`: weights stay 4-bit codes in memory and are decoded in registers.

    y = (Q(x) · valuesᵀ) · scale + bias          codes: uint8 [out, ceil(terms · in / 2)], scale: float32 [out]

A code is a sign and an exponent: ±64 >> exponent, or zero. With `terms` 1 a byte has the codes of two inputs that are
half a row apart, so a tile of bytes is multiplied by two tiles of x; with 2, both terms of one input. Values are
integers up to 96, exact in every dtype, so the scale is taken behind the sum.

`activations` 0: x in floating point. 2: x is rounded to codes of its own, one step a row, as in `int8_linear`, and the
product is one of integers. 1, one step for all of x, is refused.

- rows: tensor cores.
- decode: for few rows; the codes are read once, at the speed of the memory.
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
from regraft.numerics.power_of_two import packed_width

_FEW_ROWS: Final = 16
_FLOATING, _PER_ROW = 0, 2

_SPACE: Final = {
    "rows": {
        "rows": (32, 64, 128),
        "columns": (64, 128),
        "depth": (32, 64, 128),
        "stages": (1, 2, 3),
        "threads": (128, 256),
    },
    "decode": {"rows": (1, 2, 4, 8), "columns": (4, 8, 16), "depth": (128, 256, 512), "threads": (64, 128)},
}


def is_integer(problem: Problem) -> bool:
    """Return whether x is rounded to codes."""
    return problem.options.get("activations", _FLOATING) == _PER_ROW


def terms_of(problem: Problem) -> int:
    """Return the number of terms of a weight, 1 unless said."""
    return int(problem.options.get("terms", 1))


def problem_of(shapes: Shapes, attributes: Mapping[str, Value], dtype: str) -> Problem:
    """Return the problem that a call of the op is."""
    sizes = {"in_features": int(attributes["in_features"]), "out_features": shapes["codes"][0]}
    options = {"terms": attributes["terms"], "activations": attributes["activations"], "bias": int("bias" in shapes)}
    return Problem(dtype, sizes, options, rows_of(shapes))


def arguments(problem: Problem, tiling: Tiling) -> tuple[Argument, ...]:
    """Return what a built kernel takes."""
    del tiling
    inner, outer, dtype = problem.sizes["in_features"], problem.sizes["out_features"], problem.storage
    found = (
        Argument("x", ("rows", inner), dtype),
        Argument("codes", (outer, packed_width(inner, terms_of(problem))), "uint8"),
        Argument("scale", (outer,), "float32"),
        Argument("bias", (outer,), dtype, present=problem.has("bias")),
        Argument("y", ("rows", outer), dtype, "out"),
    )
    if not is_integer(problem):
        return found
    return (
        *found,
        Argument("rounded", ("rows", inner), "int8", "scratch"),
        Argument("step", ("rows",), "float32", "scratch"),
    )


def default(problem: Problem, arch: str) -> Tiling:
    """Return tiles: for few rows the memory-bound variant."""
    if problem.rows <= _FEW_ROWS:
        rows = min(8, 1 << (problem.rows - 1).bit_length())
        return Tiling("decode", {"rows": rows, "columns": max(4, 8 // rows), "depth": 256, "threads": 64})
    tiles = {"rows": 64, "columns": 128, "depth": 64, "stages": 2, "threads": 128}
    if problem.item_bytes == 4 and not is_integer(problem):
        tiles |= {"columns": 64, "depth": 32}
    return first_fitting(kernel, problem, arch, [Tiling("rows", tiles)])


def use(problem: Problem, tiling: Tiling) -> Use:
    """Return what a block takes: x and codes in stages, decoded weights once, each twice where a byte is two inputs."""
    tiles = tiling.tiles
    rows, columns, depth, threads = (tiles[name] for name in ("rows", "columns", "depth", "threads"))
    if tiling.variant == "decode":
        return Use(0, rows * columns * depth, threads)
    item, halves = (1 if is_integer(problem) else problem.item_bytes), 3 - terms_of(problem)
    staged = tiles["stages"] * depth * (halves * item * rows + columns)
    return Use(staged + halves * item * columns * depth, rows * columns, threads)


kernel: Final = Kernel(
    op="shift_linear",
    dtypes=("float16", "bfloat16", "float32"),
    sizes=("in_features", "out_features"),
    options={"bias": (0, 1), "terms": (1, 2), "activations": (_FLOATING, _PER_ROW)},
    variants=_SPACE,
    problem=problem_of,
    arguments=arguments,
    default=default,
    use=use,
    simt=lambda problem: problem.dtype == "float32" and not is_integer(problem),
    template=f"{__package__}.cuda.shift_linear",
)
