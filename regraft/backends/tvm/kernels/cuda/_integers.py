"""Parts of templates that multiply 8-bit integers: rows to codes, and what becomes of integer sums."""

import tilelang.language as T

from regraft.backends.tvm.kernels.cuda._blocks import add_bias
from regraft.backends.tvm.kernels.int8_linear import QUANTIZED_DEPTH, QUANTIZED_ROWS


@T.macro
def quantize_kernel(x, codes, step, rows, inner):
    """A kernel of its own: each row of x to codes and the step between them."""
    with T.Kernel(T.ceildiv(rows, QUANTIZED_ROWS), threads=128) as owner:
        xs = T.alloc_fragment((QUANTIZED_ROWS, QUANTIZED_DEPTH), x.dtype)
        wide = T.alloc_fragment((QUANTIZED_ROWS, QUANTIZED_DEPTH), "float32")
        high = T.alloc_fragment((QUANTIZED_ROWS,), "float32")
        low = T.alloc_fragment((QUANTIZED_ROWS,), "float32")
        T.clear(high)  # zeros, as behind the end of a row: they change neither extremum that counts
        T.clear(low)
        for k in T.serial(T.ceildiv(inner, QUANTIZED_DEPTH)):
            T.copy(x[owner * QUANTIZED_ROWS, k * QUANTIZED_DEPTH], xs)
            T.copy(xs, wide)
            T.reduce_max(wide, high, dim=1, clear=False)
            T.reduce_min(wide, low, dim=1, clear=False)
        for i in T.Parallel(QUANTIZED_ROWS):
            high[i] = T.max(high[i], low[i] * T.float32(-127 / 128))
            high[i] = T.if_then_else(high[i] == 0.0, T.float32(1), high[i])
        for k in T.serial(T.ceildiv(inner, QUANTIZED_DEPTH)):
            T.copy(x[owner * QUANTIZED_ROWS, k * QUANTIZED_DEPTH], xs)
            for i, j in T.Parallel(QUANTIZED_ROWS, QUANTIZED_DEPTH):
                code = T.nearbyint(T.cast(xs[i, j], "float32") / high[i] * T.float32(127))
                if owner * QUANTIZED_ROWS + i < rows and k * QUANTIZED_DEPTH + j < inner:
                    codes[owner * QUANTIZED_ROWS + i, k * QUANTIZED_DEPTH + j] = T.cast(
                        T.min(T.max(code, T.float32(-128)), T.float32(127)), "int8"
                    )
        for i in T.Parallel(QUANTIZED_ROWS):
            if owner * QUANTIZED_ROWS + i < rows:
                step[owner * QUANTIZED_ROWS + i] = high[i] / T.float32(127)


@T.macro
def store_scaled(total, result, step, scale, bias, y, row, column, rows, columns, sizes):
    """y[row :, column :] = total · step · scale + bias; sizes are (rows, out)."""
    for i, j in T.Parallel(rows, columns):
        inside = (row + i < sizes[0]) and (column + j < sizes[1])
        result[i, j] = T.cast(total[i, j], "float32") * T.if_then_else(
            inside, step[row + i] * scale[column + j], T.float32(0)
        )
    add_bias(result, bias, column, rows, columns, sizes[1])
    T.copy(result, y[row : row + rows, column : column + columns])
