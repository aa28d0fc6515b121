"""Parts that templates share: products of tiles, and products of few rows with a matrix."""

import tilelang.language as T

BANK_GAP = 4
"""Numbers behind each row of a float32 tile, so that rows do not begin in the same bank of shared memory."""


@T.macro
def load(source, row, column, tile, rows, columns):
    """tile[:rows, :columns] = source[row :, column :], zeros beyond the source."""
    T.copy(source[row : row + rows, column : column + columns], tile[0:rows, 0:columns])


@T.macro
def multiply(a, b, total, rows, columns, depth, simt, policy=T.GemmWarpPolicy.Square):
    """total[rows, columns] += a[rows, depth] · b[columns, depth]ᵀ; `simt`: in plain float32, without tensor cores."""
    if simt:
        for k in T.serial(depth):
            for i, j in T.Parallel(rows, columns):
                total[i, j] += a[i, k] * b[j, k]
    else:
        T.gemm(a, b, total, transpose_B=True, policy=policy)


@T.macro
def add_bias(total, bias, column, rows, columns, extent):
    """total[:, j] += bias[column + j], where that is below the extent; nothing without a bias."""
    if bias is not None:
        for i, j in T.Parallel(rows, columns):
            total[i, j] += T.if_then_else(column + j < extent, T.cast(bias[column + j], "float32"), 0.0)


@T.macro
def store_with_bias(total, bias, y, row, column, rows, columns, extent):
    """y[row :, column :] = total + bias, inside of y, whose last extent is given."""
    add_bias(total, bias, column, rows, columns, extent)
    T.copy(total, y[row : row + rows, column : column + columns])


@T.macro
def matrix_kernel(x, weight, bias, y, sizes, tiles, dtype, simt):
    """y = x · weightᵀ + bias: a kernel of its own; sizes are (rows, out, in), tiles those of a variant."""
    rows, columns, depth = tiles["rows"], tiles["columns"], tiles["depth"]
    with T.Kernel(T.ceildiv(sizes[0], rows), T.ceildiv(sizes[1], columns), threads=tiles["threads"]) as (owner, place):
        gap = BANK_GAP if simt else 0
        xs = T.alloc_shared((rows, depth + gap), dtype)
        ws = T.alloc_shared((columns, depth + gap), dtype)
        total = T.alloc_fragment((rows, columns), "float32")
        T.clear(total)
        for k in T.Pipelined(T.ceildiv(sizes[2], depth), num_stages=tiles["stages"]):
            load(x, owner * rows, k * depth, xs, rows, depth)
            load(weight, place * columns, k * depth, ws, columns, depth)
            multiply(xs, ws, total, rows, columns, depth, simt)
        store_with_bias(total, bias, y, owner * rows, place * columns, rows, columns, sizes[1])


@T.macro
def few_rows_kernel(x, weight, bias, y, sizes, tiles):
    """y = x · weightᵀ + bias for few rows: a kernel of its own whose blocks read their part of the weight once."""
    rows, columns, depth = tiles["rows"], tiles["columns"], tiles["depth"]
    with T.Kernel(T.ceildiv(sizes[0], rows), T.ceildiv(sizes[1], columns), threads=tiles["threads"]) as (owner, place):
        ws = T.alloc_fragment((columns, depth), x.dtype)
        total = T.alloc_fragment((rows, columns, depth), "float32")
        sums = T.alloc_fragment((rows, columns), "float32")
        T.clear(total)
        for k in T.serial(T.ceildiv(sizes[2], depth)):
            T.copy(weight[place * columns, k * depth], ws)
            for i, j, d in T.Parallel(rows, columns, depth):
                inside = (owner * rows + i < sizes[0]) and (k * depth + d < sizes[2])
                value = T.if_then_else(inside, T.cast(x[owner * rows + i, k * depth + d], "float32"), T.float32(0))
                total[i, j, d] += value * T.cast(ws[j, d], "float32")
        T.reduce_sum(total, sums, dim=2)
        store_with_bias(sums, bias, y, owner * rows, place * columns, rows, columns, sizes[1])
