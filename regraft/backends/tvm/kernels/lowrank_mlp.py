"""CUDA kernel of `lowrank_mlp`: a block owns rows and walks the hidden width, of which nothing leaves the chip.

    p = x · in_downᵀ                                            x: [rows, in], in_down: [in_rank, in]
    s = Σ_d act(p · in_up_dᵀ + in_bias_d) · out_down_dᵀ         in_up: [hidden, in_rank], out_down: [out_rank, hidden]
    y = s · out_upᵀ + out_bias + residual                       out_up: [out, out_rank]

Gated, a tile of the hidden width is act(g · gate_up_dᵀ + gate_bias_d) · (p · in_up_dᵀ + in_bias_d), g = x · gate_downᵀ.
Nothing is computed twice. Dense layers in (`dense_in`, `dense_gate`) read x again for each tile of the hidden width; a
dense layer out (`dense_out`) holds all of y on the chip, which only a narrow one fits.

Source: the row-owner form of FlashSVD's feed-forward kernels (Shao et al. 2025, arXiv:2508.01506).
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
    padded,
    rows_of,
)
from regraft.graph.activation import FUNCTIONS

_SPACE: Final = {
    "rows": {
        "rows": (16, 32, 64, 128),
        "hidden": (32, 64, 128),
        "columns": (32, 64, 128),
        "depth": (32, 64, 128),
        "stages": (1, 2, 3),
        "threads": (128, 256),
    },
}


def problem_of(shapes: Shapes, attributes: Mapping[str, Value], dtype: str) -> Problem:
    """Return the problem that a call of the op is."""
    gate, out_rank = shapes.get("gate_up"), shapes["out_down"][0]
    sizes = {
        "in_features": shapes["x"][-1],
        "in_rank": shapes["in_up"][1],
        "gate_rank": 1 if gate is None else gate[1],
        "hidden": shapes["in_up"][0],
        "out_rank": out_rank,
        "out_features": shapes["out_up"][0] if "out_up" in shapes else out_rank,
    }
    options: dict[str, Value] = {"activation": attributes["activation"], "gate": int(gate is not None)}
    options |= {name: int(name in shapes) for name in ("in_bias", "gate_bias", "out_bias", "residual")}
    options |= {"dense_in": int("in_down" not in shapes), "dense_out": int("out_up" not in shapes)}
    options["dense_gate"] = int(gate is not None and "gate_down" not in shapes)
    return Problem(dtype, sizes, options, rows_of(shapes))


def arguments(problem: Problem, tiling: Tiling) -> tuple[Argument, ...]:
    """Return what a built kernel takes."""
    del tiling
    sizes, dtype, has = problem.sizes, problem.storage, problem.has
    inner, hidden, outer = sizes["in_features"], sizes["hidden"], sizes["out_features"]
    ranks = {name: sizes[f"{name}_rank"] for name in ("in", "gate", "out")}
    gate = has("gate")
    return (
        Argument("x", ("rows", inner), dtype),
        Argument("in_up", (hidden, ranks["in"]), dtype),
        Argument("out_down", (ranks["out"], hidden), dtype),
        Argument("in_down", (ranks["in"], inner), dtype, present=not has("dense_in")),
        Argument("out_up", (outer, ranks["out"]), dtype, present=not has("dense_out")),
        Argument("in_bias", (hidden,), dtype, present=has("in_bias")),
        Argument("out_bias", (outer,), dtype, present=has("out_bias")),
        Argument("gate_down", (ranks["gate"], inner), dtype, present=gate and not has("dense_gate")),
        Argument("gate_up", (hidden, ranks["gate"]), dtype, present=gate),
        Argument("gate_bias", (hidden,), dtype, present=gate and has("gate_bias")),
        Argument("residual", ("rows", outer), dtype, present=has("residual")),
        Argument("y", ("rows", outer), dtype, "out"),
    )


def refusal(problem: Problem, tiling: Tiling) -> str | None:
    """Return why the sizes and options do not go together, or None."""
    del tiling
    for name, width in (("in", "in_features"), ("gate", "in_features"), ("out", "out_features")):
        rank, full = problem.sizes[f"{name}_rank"], problem.sizes[width]
        if problem.has(f"dense_{name}") and rank != full:
            return f"a dense layer has {name}_rank = {width} = {full}; got {rank}"
    return None


def default(problem: Problem, arch: str) -> Tiling:
    """Return tiles: as many rows as fit with the ranks, fewer where rows are few."""
    tiles = {"rows": 64, "hidden": 64, "columns": 64, "depth": 128 // problem.item_bytes, "stages": 2, "threads": 256}
    smaller = (
        tiles,
        {**tiles, "depth": 32},
        {**tiles, "hidden": 32, "columns": 32, "depth": 32},
        {**tiles, "rows": 32, "threads": 128, "hidden": 32, "columns": 32, "depth": 32},
        {**tiles, "rows": 32, "threads": 128, "hidden": 32, "columns": 32, "depth": 32, "stages": 1},
    )
    few = smaller[3:] if problem.rows <= 32 and problem.item_bytes == 2 else smaller
    return first_fitting(kernel, problem, arch, [Tiling("rows", cut) for cut in few])


def use(problem: Problem, tiling: Tiling) -> Use:
    """Return what a block takes; tiles of the weights in stages, inner results once."""
    tiles, item, has = tiling.tiles, problem.item_bytes, problem.has
    rows, hidden, columns, stages = (tiles[name] for name in ("rows", "hidden", "columns", "stages"))
    out = padded(problem.sizes["out_rank"])
    branches = [_branch(problem, name, tiles) for name in (("in", "gate") if has("gate") else ("in",))]
    numbers = sum(shared for shared, _ in branches)
    numbers += rows * hidden + stages * out * hidden  # the activation, and what it is multiplied by
    numbers += 0 if has("dense_out") else rows * out + stages * columns * out
    first = max(rank for _, rank in branches)
    accumulators = rows * max(first, hidden * len(branches) + out, columns)
    return Use(item * numbers, accumulators, tiles["threads"])


def _branch(problem: Problem, name: str, tiles: Mapping[str, int]) -> tuple[int, int]:
    """Numbers in shared memory of a layer in, and the width of what it accumulates first."""
    rank = padded(problem.sizes[f"{name}_rank"])
    rows, hidden, depth, stages = (tiles[key] for key in ("rows", "hidden", "depth", "stages"))
    if problem.has(f"dense_{name}"):
        return stages * depth * (rows + hidden), 0
    return stages * depth * (rows + rank) + rows * rank + stages * hidden * rank, rank


kernel: Final = Kernel(
    op="lowrank_mlp",
    dtypes=("float16", "bfloat16", "float32", "tf32"),
    sizes=("in_features", "in_rank", "gate_rank", "hidden", "out_rank", "out_features"),
    options={
        "activation": tuple(FUNCTIONS),
        **dict.fromkeys(("gate", "dense_in", "dense_gate", "dense_out", "residual"), (0, 1)),
        **dict.fromkeys(("in_bias", "gate_bias", "out_bias"), (0, 1)),
    },
    variants=_SPACE,
    problem=problem_of,
    arguments=arguments,
    default=default,
    use=use,
    refusal=refusal,
    template=f"{__package__}.cuda.lowrank_mlp",
)
