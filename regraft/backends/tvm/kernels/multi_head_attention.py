"""CUDA kernel of `multi_head_attention`: online softmax over tiles of keys; no score leaves the chip.

    y = softmax(scale · q · kᵀ + bias, where mask and not causally later) · v

Heads are an axis of their own: q is [batch, queries, heads, head] with `split`, the merged layout of the op as four
dims, else [batch, heads, queries, head]; k, v and y likewise. The head size is any number, a rank, too. `mask` and
`bias` are [batch or 1, heads or 1, queries or 1, keys]: the options `mask_batch`, `mask_heads`, `mask_queries` say
which are full. Query head h reads key and value head h // (heads / kv_heads). A query that sees nothing gives 0.

A block owns a tile of queries of one head and walks the keys; causal ones stop at the last key that its queries see.

Source: FlashAttention-2 (Dao 2023, arXiv:2307.08691).
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
)

_SPACE: Final = {
    "rows": {"rows": (16, 32, 64, 128), "columns": (32, 64, 128), "stages": (1, 2), "threads": (128, 256)},
}
_BROADCAST: Final = tuple(f"{name}_{axis}" for name in ("mask", "bias") for axis in ("batch", "heads", "queries"))


def problem_of(shapes: Shapes, attributes: Mapping[str, Value], dtype: str) -> Problem:
    """Return the problem that a call of the op is."""
    heads, kv_heads, split = (int(attributes[name]) for name in ("heads", "kv_heads", "split"))
    queries, head, value = shapes["q"][1 if split else 2], shapes["q"][-1], shapes["v"][-1]
    sizes = {"heads": heads, "kv_heads": kv_heads, "head": head, "value": value}
    if split:
        sizes |= {"head": head // heads, "value": value // kv_heads}
    options = {name: attributes[name] for name in ("split", "causal", "scale")}
    for name in ("mask", "bias"):
        options[name] = int(name in shapes)
        for axis, extent in zip(("batch", "heads", "queries"), shapes.get(name, ()), strict=False):
            options[f"{name}_{axis}"] = int(extent != 1)
    return Problem(dtype, sizes, options, max(1, queries))


def arguments(problem: Problem, tiling: Tiling) -> tuple[Argument, ...]:
    """Return what a built kernel takes."""
    del tiling
    sizes, dtype = problem.sizes, problem.storage
    heads, kv_heads, head, value = sizes["heads"], sizes["kv_heads"], sizes["head"], sizes["value"]

    def dims(extent: str, count: int, width: int) -> tuple[int | str, ...]:
        return ("batch", extent, count, width) if problem.has("split") else ("batch", count, extent, width)

    return (
        Argument("q", dims("queries", heads, head), dtype),
        Argument("k", dims("keys", kv_heads, head), dtype),
        Argument("v", dims("keys", kv_heads, value), dtype),
        Argument("mask", broadcast_dims(problem, "mask"), "bool", present=problem.has("mask")),
        Argument("bias", broadcast_dims(problem, "bias"), dtype, present=problem.has("bias")),
        Argument("y", dims("queries", heads, value), dtype, "out"),
    )


def broadcast_dims(problem: Problem, name: str) -> tuple[int | str, ...]:
    """Return the extents of the mask or the bias."""
    full = [problem.has(f"{name}_{axis}") for axis in ("batch", "heads", "queries")]
    return (
        "batch" if full[0] else 1,
        problem.sizes["heads"] if full[1] else 1,
        "queries" if full[2] else 1,
        "keys",
    )


def refusal(problem: Problem, tiling: Tiling) -> str | None:
    """Return why the heads cannot be grouped, or None."""
    del tiling
    heads, kv_heads = problem.sizes["heads"], problem.sizes["kv_heads"]
    return None if heads % kv_heads == 0 else f"heads must be a multiple of kv_heads; got {heads} and {kv_heads}"


def default(problem: Problem, arch: str) -> Tiling:
    """Return tiles: as many queries as fit with the head size, and as there are."""
    # With an extent that is known when it runs, TileLang cannot pipeline two stages for sm_80.
    stages = 2 if arch == "sm_90a" and problem.item_bytes == 2 else 1
    large = {"rows": 128, "columns": 64, "stages": stages, "threads": 256}
    usual = {**large, "rows": 64, "threads": 128}
    narrow = {**usual, "columns": 32, "stages": 1}
    candidates = [usual, {**usual, "columns": 32}, narrow, {**narrow, "rows": 32}, {**narrow, "rows": 16}]
    if problem.dtype == "float32":
        candidates = candidates[3:]
    if problem.rows >= 1024 and problem.item_bytes == 2:
        candidates.insert(0, large)
    return first_fitting(kernel, problem, arch, [Tiling("rows", tiles) for tiles in candidates])


def use(problem: Problem, tiling: Tiling) -> Use:
    """Return what a block takes: queries once, keys and values in stages; scores in both types, and the sum."""
    tiles, item = tiling.tiles, problem.item_bytes
    rows, columns, head, value = tiles["rows"], tiles["columns"], *_widths(problem)
    numbers = rows * head + tiles["stages"] * columns * (head + value)
    accumulators = rows * (columns + columns // 2 + value)
    if problem.dtype == "float32":  # threads hold scores and sums of different rows
        numbers, accumulators = numbers + rows * columns, 2 * accumulators
    return Use(item * numbers, accumulators, tiles["threads"])


def _widths(problem: Problem) -> tuple[int, int]:
    return padded(problem.sizes["head"]), padded(problem.sizes["value"])


kernel: Final = Kernel(
    op="multi_head_attention",
    dtypes=("float16", "bfloat16", "float32"),
    sizes=("heads", "kv_heads", "head", "value"),
    options={
        **dict.fromkeys(("split", "causal", "mask", "bias", *_BROADCAST), (0, 1)),
        "scale": (),
    },
    variants=_SPACE,
    problem=problem_of,
    arguments=arguments,
    default=default,
    use=use,
    refusal=refusal,
    template=f"{__package__}.cuda.multi_head_attention",
)
