"""Parts of templates that multiply 8-bit integers: rows to codes, and what becomes of integer sums."""

import tilelang.language as T

from regraft.backends.tvm.kernels.cuda._blocks import add_bias, multiply
from regraft.backends.tvm.kernels.int8_linear import QUANTIZED_DEPTH, QUANTIZED_ROWS

FEW_COLUMNS = 32
"""Columns in floating point that are multiplied at a time."""


@T.macro
def quantize_kernel(x, inliers, codes, step, rows, inner):
    """A kernel of its own: each row of x to codes and the step between them; zeros where a column is no inlier."""
    with T.Kernel(T.ceildiv(rows, QUANTIZED_ROWS), threads=128) as owner:
        xs = T.alloc_fragment((QUANTIZED_ROWS, QUANTIZED_DEPTH), x.dtype)
        wide = T.alloc_fragment((QUANTIZED_ROWS, QUANTIZED_DEPTH), "float32")
        high = T.alloc_fragment((QUANTIZED_ROWS,), "float32")
        low = T.alloc_fragment((QUANTIZED_ROWS,), "float32")
        T.clear(high)  # zeros, as behind the end of a row: they change neither extremum that counts
        T.clear(low)
        for k in T.serial(T.ceildiv(inner, QUANTIZED_DEPTH)):
            T.copy(x[owner * QUANTIZED_ROWS, k * QUANTIZED_DEPTH], xs)
            _masked(xs, wide, inliers, k * QUANTIZED_DEPTH, inner)
            T.reduce_max(wide, high, dim=1, clear=False)
            T.reduce_min(wide, low, dim=1, clear=False)
        for i in T.Parallel(QUANTIZED_ROWS):
            high[i] = T.max(high[i], low[i] * T.float32(-127 / 128))
            high[i] = T.if_then_else(high[i] == 0.0, T.float32(1), high[i])
        for k in T.serial(T.ceildiv(inner, QUANTIZED_DEPTH)):
            T.copy(x[owner * QUANTIZED_ROWS, k * QUANTIZED_DEPTH], xs)
            _masked(xs, wide, inliers, k * QUANTIZED_DEPTH, inner)
            for i, j in T.Parallel(QUANTIZED_ROWS, QUANTIZED_DEPTH):
                code = T.nearbyint(wide[i, j] / high[i] * T.float32(127))
                if owner * QUANTIZED_ROWS + i < rows and k * QUANTIZED_DEPTH + j < inner:
                    codes[owner * QUANTIZED_ROWS + i, k * QUANTIZED_DEPTH + j] = T.cast(
                        T.min(T.max(code, T.float32(-128)), T.float32(127)), "int8"
                    )
        for i in T.Parallel(QUANTIZED_ROWS):
            if owner * QUANTIZED_ROWS + i < rows:
                step[owner * QUANTIZED_ROWS + i] = high[i] / T.float32(127)


@T.macro
def _masked(xs, wide, inliers, column, inner):
    """wide = xs, zeros where a column is no inlier."""
    if inliers is None:
        T.copy(xs, wide)
    else:
        for i, j in T.Parallel(QUANTIZED_ROWS, QUANTIZED_DEPTH):
            kept = T.if_then_else(column + j < inner, inliers[column + j], False)
            wide[i, j] = T.if_then_else(kept, T.cast(xs[i, j], "float32"), T.float32(0))


@T.macro
def product_kernel(codes, weight, step, scale, few, bias, y, sizes, tiles):
    """y = codes · weightᵀ · step · scale + few columns in floating point + bias; sizes are (rows, out, in)."""
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
        T.clear(result)
        if few is not None:
            _add_columns(few[0], few[1], few[2], result, owner * rows, place * columns, rows, columns, sizes)
        store_scaled(total, result, step, scale, bias, y, owner * rows, place * columns, rows, columns, sizes)


@T.macro
def _add_columns(x, places, weight, result, row, column, rows, columns, sizes):
    """result += x[:, places] · weightᵀ, some columns at a time."""
    gathered = T.alloc_shared((rows, FEW_COLUMNS), x.dtype)
    ws = T.alloc_shared((columns, FEW_COLUMNS), x.dtype)
    for step in T.serial(T.ceildiv(places.shape[0], FEW_COLUMNS)):
        for i, j in T.Parallel(rows, FEW_COLUMNS):
            inside = row + i < sizes[0] and step * FEW_COLUMNS + j < places.shape[0]
            gathered[i, j] = T.if_then_else(inside, x[row + i, places[step * FEW_COLUMNS + j]], T.cast(0, x.dtype))
        T.copy(weight[column, step * FEW_COLUMNS], ws)
        multiply(gathered, ws, result, rows, columns, FEW_COLUMNS, x.dtype == "float32")


@T.macro
def few_rows_kernel(codes, weight, step, scale, few, bias, y, sizes, tiles):
    """The same for few rows: the weights are read once."""
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
        T.clear(result)
        if few is not None:
            _add_each(few[0], few[1], few[2], result, owner * rows, place * columns, rows, columns, sizes)
        store_scaled(total, result, step, scale, bias, y, owner * rows, place * columns, rows, columns, sizes)


@T.macro
def _add_each(x, places, weight, result, row, column, rows, columns, sizes):
    """result += x[:, places] · weightᵀ, one column after the other."""
    for c in T.serial(places.shape[0]):
        for i, j in T.Parallel(rows, columns):
            inside = (row + i < sizes[0]) and (column + j < sizes[1])
            result[i, j] += T.if_then_else(
                inside,
                T.cast(x[row + i, places[c]], "float32") * T.cast(weight[column + j, c], "float32"),
                T.float32(0),
            )


@T.macro
def store_scaled(total, result, step, scale, bias, y, row, column, rows, columns, sizes):
    """y[row :, column :] = result + total · step · scale + bias; sizes are (rows, out)."""
    for i, j in T.Parallel(rows, columns):
        inside = (row + i < sizes[0]) and (column + j < sizes[1])
        result[i, j] += T.cast(total[i, j], "float32") * T.if_then_else(
            inside, step[row + i] * scale[column + j], T.float32(0)
        )
    add_bias(result, bias, column, rows, columns, sizes[1])
    T.copy(result, y[row : row + rows, column : column + columns])
