"""CUDA kernels of `int8_outlier_linear`: those of `int8_linear`, and a few columns of x in floating point beside them.

    y = Q(x ∘ inliers) · (weight · scale)ᵀ + x[outliers] · outlier_weightᵀ + bias

Columns that are no inliers are left out before a row's range is taken. The outliers are gathered and multiplied where
the integer sums are scaled, so y is written once. Q is that of `int8_linear`'s kernel: one step a row.
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
    rows_of,
)
from regraft.backends.tvm.kernels.int8_linear import SPACE, default_of, refusal
from regraft.backends.tvm.kernels.int8_linear import use as use_of_product

_FEW_COLUMNS: Final = 32


def problem_of(shapes: Shapes, attributes: Mapping[str, Value], dtype: str) -> Problem:
    """Return the problem that a call of the op is."""
    (outer, inner), few = shapes["weight"], shapes["outliers"][0]
    options = {"bias": int("bias" in shapes), "per_row": attributes["per_row"]}
    sizes = {"in_features": inner, "out_features": outer, "outliers": few}
    return Problem(dtype, sizes, options, rows_of(shapes))


def arguments(problem: Problem, tiling: Tiling) -> tuple[Argument, ...]:
    """Return what a built kernel takes."""
    del tiling
    inner, outer, dtype = problem.sizes["in_features"], problem.sizes["out_features"], problem.storage
    few = problem.sizes["outliers"]
    return (
        Argument("x", ("rows", inner), dtype),
        Argument("weight", (outer, inner), "int8"),
        Argument("scale", (outer,), "float32"),
        Argument("inliers", (inner,), "bool"),
        Argument("outliers", (few,), "int64"),
        Argument("outlier_weight", (outer, few), dtype),
        Argument("bias", (outer,), dtype, present=problem.has("bias")),
        Argument("y", ("rows", outer), dtype, "out"),
        Argument("codes", ("rows", inner), "int8", "scratch"),
        Argument("step", ("rows",), "float32", "scratch"),
    )


def use(problem: Problem, tiling: Tiling) -> Use:
    """Return what a block takes: that of the integer product, and tiles of the few columns."""
    product = use_of_product(problem, tiling)
    if tiling.variant == "decode":
        return product
    tiles = tiling.tiles
    few = problem.item_bytes * _FEW_COLUMNS * (tiles["rows"] + tiles["columns"])
    return Use(product.shared_bytes + few, 2 * product.accumulators, product.threads)


kernel: Final = Kernel(
    op="int8_outlier_linear",
    dtypes=("float16", "bfloat16", "float32"),
    sizes=("in_features", "out_features", "outliers"),
    options={"bias": (0, 1), "per_row": (0, 1)},
    variants=SPACE,
    problem=problem_of,
    arguments=arguments,
    default=lambda problem, arch: default_of(kernel, problem, arch),
    use=use,
    refusal=refusal,
    simt=lambda problem: False,
    template=f"{__package__}.cuda.int8_outlier_linear",
)
