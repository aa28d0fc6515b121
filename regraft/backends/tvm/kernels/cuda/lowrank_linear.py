"""TileLang templates of `lowrank_linear`; see the description in the folder above."""

import tilelang.language as T

from regraft.backends.tvm.kernels._kernel import padded
from regraft.backends.tvm.kernels.cuda._blocks import (
    BANK_GAP,
    few_rows_kernel,
    load,
    matrix_kernel,
    multiply,
    store_with_bias,
)


def template(problem, tiling):
    """Return the kernel as TileLang's program, rows dynamic."""
    rows = T.dynamic("rows")
    inner, rank, outer = (problem.sizes[name] for name in ("in_features", "rank", "out_features"))
    dtype, simt, has_bias = problem.storage, problem.dtype == "float32", problem.has("bias")
    sizes = (rows, outer, inner, rank)
    if tiling.variant == "fused":

        @T.prim_func
        def fused(
            x: T.Tensor((rows, inner), dtype),
            down: T.Tensor((rank, inner), dtype),
            up: T.Tensor((outer, rank), dtype),
            bias: T.Tensor((outer,), dtype),
            y: T.Tensor((rows, outer), dtype),
        ):
            _fused_kernel(x, down, up, bias if has_bias else None, y, sizes, tiling.tiles, dtype, simt)

        return fused

    @T.prim_func
    def two(
        x: T.Tensor((rows, inner), dtype),
        down: T.Tensor((rank, inner), dtype),
        up: T.Tensor((outer, rank), dtype),
        bias: T.Tensor((outer,), dtype),
        y: T.Tensor((rows, outer), dtype),
        p: T.Tensor((rows, rank), dtype),
    ):
        if tiling.variant == "two":
            matrix_kernel(x, down, None, p, (rows, rank, inner), tiling.tiles, dtype, simt)
            matrix_kernel(p, up, bias if has_bias else None, y, (rows, outer, rank), tiling.tiles, dtype, simt)
        else:
            few_rows_kernel(x, down, None, p, (rows, rank, inner), tiling.tiles)
            few_rows_kernel(p, up, bias if has_bias else None, y, (rows, outer, rank), tiling.tiles)

    return two


@T.macro
def _fused_kernel(x, down, up, bias, y, sizes, tiles, dtype, simt):
    rows, columns, depth, split = tiles["rows"], tiles["columns"], tiles["depth"], tiles["split"]
    ranks = padded(sizes[3])
    parts = -(-sizes[1] // columns)
    share = -(-parts // split)
    with T.Kernel(T.ceildiv(sizes[0], rows), split, threads=tiles["threads"]) as (owner, piece):
        gap = BANK_GAP if simt else 0
        xs = T.alloc_shared((rows, depth + gap), dtype)
        ds = T.alloc_shared((ranks, depth + gap), dtype)
        us = T.alloc_shared((columns, ranks + gap), dtype)
        ps = T.alloc_shared((rows, ranks + gap), dtype)
        inner = T.alloc_fragment((rows, ranks), "float32")
        total = T.alloc_fragment((rows, columns), "float32")
        T.clear(inner)
        for k in T.Pipelined(T.ceildiv(sizes[2], depth), num_stages=tiles["stages"]):
            load(x, owner * rows, k * depth, xs, rows, depth)
            load(down, 0, k * depth, ds, ranks, depth)
            multiply(xs, ds, inner, rows, ranks, depth, simt)
        T.copy(inner, ps[0:rows, 0:ranks])
        for step in T.Pipelined(share, num_stages=tiles["stages"]):
            column = (piece * share + step) * columns
            load(up, column, 0, us, columns, ranks)
            T.clear(total)
            multiply(ps, us, total, rows, columns, ranks, simt)
            store_with_bias(total, bias, y, owner * rows, column, rows, columns, sizes[1])
