"""CUDA kernels of `monarch_linear`: two products of blocks, each permutation folded into the addresses of a store.

    h[:, b, a · ρ + r] = (x[:, run a] · right[a])[:, b · ρ + r]        right: [in_blocks, width, out_blocks · ρ]
    y[:, group b]      = h[:, b] · left[b] + bias                      left: [out_blocks, in_blocks · ρ, height]

h is written in the order in which it is read, [rows, out_blocks, in_blocks · ρ], and y in its final one: no copy puts
anything in order. Strided runs and groups are read and written where they lie.

- rows: tensor cores.
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
from regraft.errors import ShapeError
from regraft.numerics.partition import Partition

_FEW_ROWS: Final = 16
_SIZES: Final = ("in_features", "out_features", "in_blocks", "out_blocks", "block_rank")

_SPACE: Final = {
    "rows": {
        "rows": (32, 64, 128),
        "columns": (32, 64, 128),
        "depth": (32, 64, 128),
        "stages": (1, 2, 3),
        "threads": (128, 256),
    },
    "decode": {"rows": (1, 2, 4, 8), "columns": (64, 128, 256), "depth": (4, 8, 16), "threads": (64, 128)},
}


def cut_of(problem: Problem) -> Partition:
    """Return how the weight is cut; raises ShapeError when there are more blocks than features."""
    sizes, has = problem.sizes, problem.has
    counts = (sizes["in_features"], sizes["out_features"], sizes["in_blocks"], sizes["out_blocks"])
    return Partition(*counts, has("in_strided"), has("out_strided"))


def problem_of(shapes: Shapes, attributes: Mapping[str, Value], dtype: str) -> Problem:
    """Return the problem that a call of the op is."""
    sizes = {name: int(attributes[name]) for name in _SIZES}
    strided = {name: attributes.get(name, 0) for name in ("in_strided", "out_strided")}
    return Problem(dtype, sizes, {"bias": int("bias" in shapes), **strided}, rows_of(shapes))


def arguments(problem: Problem, tiling: Tiling) -> tuple[Argument, ...]:
    """Return what a built kernel takes."""
    del tiling
    cut, rank, dtype = cut_of(problem), problem.sizes["block_rank"], problem.storage
    return (
        Argument("x", ("rows", cut.in_features), dtype),
        Argument("right", (cut.in_blocks, cut.width, cut.out_blocks * rank), dtype),
        Argument("left", (cut.out_blocks, cut.in_blocks * rank, cut.height), dtype),
        Argument("bias", (cut.out_features,), dtype, present=problem.has("bias")),
        Argument("y", ("rows", cut.out_features), dtype, "out"),
        Argument("h", ("rows", cut.out_blocks, cut.in_blocks * rank), dtype, "scratch"),
    )


def refusal(problem: Problem, tiling: Tiling) -> str | None:
    """Return why the weight cannot be cut this way, or None."""
    del tiling
    try:
        cut_of(problem)
    except ShapeError as error:
        return str(error)
    return None


def default(problem: Problem, arch: str) -> Tiling:
    """Return tiles: for few rows the memory-bound variant; no wider than the blocks."""
    if problem.rows <= _FEW_ROWS:
        rows = min(8, 1 << (problem.rows - 1).bit_length())
        return Tiling("decode", {"rows": rows, "columns": 64, "depth": 8, "threads": 64})
    sizes = problem.sizes
    widest = max(sizes["out_blocks"] * sizes["block_rank"], -(-sizes["out_features"] // sizes["out_blocks"]))
    tiles = {"rows": 64, "columns": 128, "depth": 32, "stages": 2, "threads": 128}
    if problem.item_bytes == 4 or widest <= 64:
        tiles["columns"] = 64
    return first_fitting(kernel, problem, arch, [Tiling("rows", tiles)])


def use(problem: Problem, tiling: Tiling) -> Use:
    """Return what a block takes: tiles of both operands in stages."""
    tiles = tiling.tiles
    rows, columns, depth, threads = (tiles[name] for name in ("rows", "columns", "depth", "threads"))
    if tiling.variant == "decode":
        return Use(0, rows * columns * depth, threads)
    return Use(tiles["stages"] * problem.item_bytes * depth * (rows + columns), rows * columns, threads)


kernel: Final = Kernel(
    op="monarch_linear",
    dtypes=("float16", "bfloat16", "float32"),
    sizes=_SIZES,
    options={"bias": (0, 1), "in_strided": (0, 1), "out_strided": (0, 1)},
    variants=_SPACE,
    problem=problem_of,
    arguments=arguments,
    default=default,
    use=use,
    refusal=refusal,
    template=f"{__package__}.cuda.monarch_linear",
)
