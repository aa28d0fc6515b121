"""TileLang templates of `int8_linear`; see the description in the folder above."""

import tilelang.language as T

from regraft.backends.tvm.kernels.cuda._integers import quantize_kernel, store_scaled


def template(problem, tiling):
    """Return the kernels as TileLang's program, rows dynamic."""
    rows = T.dynamic("rows")
    inner, outer, dtype = problem.sizes["in_features"], problem.sizes["out_features"], problem.storage
    has_bias, sizes, tiles = problem.has("bias"), (rows, outer, inner), tiling.tiles

    @T.prim_func
    def int8_linear(
        x: T.Tensor((rows, inner), dtype),
        weight: T.Tensor((outer, inner), "int8"),
        scale: T.Tensor((outer,), "float32"),
        bias: T.Tensor((outer,), dtype),
        y: T.Tensor((rows, outer), dtype),
        codes: T.Tensor((rows, inner), "int8"),
        step: T.Tensor((rows,), "float32"),
    ):
        quantize_kernel(x, codes, step, rows, inner)
        if tiling.variant == "decode":
            _few_rows_kernel(codes, weight, step, scale, bias if has_bias else None, y, sizes, tiles)
        else:
            _product_kernel(codes, weight, step, scale, bias if has_bias else None, y, sizes, tiles)

    return int8_linear


@T.macro
def _product_kernel(codes, weight, step, scale, bias, y, sizes, tiles):
    rows, columns, depth = tiles["rows"], tiles["columns"], tiles["depth"]
    with T.Kernel(T.ceildiv(sizes[0], rows), T.ceildiv(sizes[1], columns), threads=tiles["threads"]) as (owner, place):
        xs = T.alloc_shared((rows, depth), "int8")
        ws = T.alloc_shared((columns, depth), "int8")
        total = T.alloc_fragment((rows, columns), "int32")
        result = T.alloc_fragment((rows, columns), "float32")
        T.clear(total)
        for k in T.Pipelined(T.ceildiv(sizes[2], depth), num_stages=tiles["stages"]):
            T.copy(codes[owner * rows, k * depth], xs)
            T.copy(weight[place * columns, k * depth], ws)
            T.gemm(xs, ws, total, transpose_B=True)
        store_scaled(total, result, step, scale, bias, y, owner * rows, place * columns, rows, columns, sizes)


@T.macro
def _few_rows_kernel(codes, weight, step, scale, bias, y, sizes, tiles):
    rows, columns, depth = tiles["rows"], tiles["columns"], tiles["depth"]
    with T.Kernel(T.ceildiv(sizes[0], rows), T.ceildiv(sizes[1], columns), threads=tiles["threads"]) as (owner, place):
        ws = T.alloc_fragment((columns, depth), "int8")
        parts = T.alloc_fragment((rows, columns, depth), "int32")
        total = T.alloc_fragment((rows, columns), "int32")
        result = T.alloc_fragment((rows, columns), "float32")
        T.clear(parts)
        for k in T.serial(T.ceildiv(sizes[2], depth)):
            T.copy(weight[place * columns, k * depth], ws)
            for i, j, d in T.Parallel(rows, columns, depth):
                inside = (owner * rows + i < sizes[0]) and (k * depth + d < sizes[2])
                code = T.if_then_else(inside, T.cast(codes[owner * rows + i, k * depth + d], "int32"), 0)
                parts[i, j, d] += code * T.cast(ws[j, d], "int32")
        T.reduce_sum(parts, total, dim=2)
        store_scaled(total, result, step, scale, bias, y, owner * rows, place * columns, rows, columns, sizes)
