"""TileLang templates of `shift_linear`; see the description in the folder above."""

import tilelang.language as T

from regraft.backends.tvm.kernels.cuda._blocks import BANK_GAP, add_bias, load, multiply
from regraft.backends.tvm.kernels.cuda._integers import quantize_kernel, store_scaled
from regraft.backends.tvm.kernels.shift_linear import is_integer, terms_of
from regraft.numerics.power_of_two import LARGEST, ZERO_CODE, packed_width


def template(problem, tiling):
    """Return the kernels as TileLang's program, rows dynamic."""
    rows = T.dynamic("rows")
    inner, outer, dtype = problem.sizes["in_features"], problem.sizes["out_features"], problem.storage
    terms, has_bias, decode = terms_of(problem), problem.has("bias"), tiling.variant == "decode"
    width = packed_width(inner, terms)
    sizes, tiles, simt = (rows, outer, inner, width), tiling.tiles, problem.dtype == "float32"

    if is_integer(problem):

        @T.prim_func
        def integer(
            x: T.Tensor((rows, inner), dtype),
            codes: T.Tensor((outer, width), "uint8"),
            scale: T.Tensor((outer,), "float32"),
            bias: T.Tensor((outer,), dtype),
            y: T.Tensor((rows, outer), dtype),
            rounded: T.Tensor((rows, inner), "int8"),
            step: T.Tensor((rows,), "float32"),
        ):
            quantize_kernel(x, None, rounded, step, rows, inner)
            if decode:
                _few_rows_kernel(
                    rounded, codes, step, scale, bias if has_bias else None, y, sizes, terms, tiles, "int32"
                )
            else:
                _product_kernel(
                    rounded, codes, step, scale, bias if has_bias else None, y, sizes, terms, tiles, "int8", False
                )

        return integer

    @T.prim_func
    def floating(
        x: T.Tensor((rows, inner), dtype),
        codes: T.Tensor((outer, width), "uint8"),
        scale: T.Tensor((outer,), "float32"),
        bias: T.Tensor((outer,), dtype),
        y: T.Tensor((rows, outer), dtype),
    ):
        if decode:
            _few_rows_kernel(x, codes, None, scale, bias if has_bias else None, y, sizes, terms, tiles, "float32")
        else:
            _product_kernel(x, codes, None, scale, bias if has_bias else None, y, sizes, terms, tiles, dtype, simt)

    return floating


@T.macro
def _product_kernel(x, codes, step, scale, bias, y, sizes, terms, tiles, dtype, simt):
    rows, columns, depth, gap = tiles["rows"], tiles["columns"], tiles["depth"], BANK_GAP if simt else 0
    sums = "float32" if step is None else "int32"
    with T.Kernel(T.ceildiv(sizes[0], rows), T.ceildiv(sizes[1], columns), threads=tiles["threads"]) as (owner, place):
        xs = T.alloc_shared((rows, depth + gap), dtype)
        later = T.alloc_shared((rows, depth + gap), dtype)
        cs = T.alloc_shared((columns, depth), "uint8")
        ws = T.alloc_shared((columns, depth + gap), dtype)
        us = T.alloc_shared((columns, depth + gap), dtype)
        total = T.alloc_fragment((rows, columns), sums)
        result = T.alloc_fragment((rows, columns), "float32")
        T.clear(total)
        for k in T.Pipelined(T.ceildiv(sizes[3], depth), num_stages=tiles["stages"]):
            load(x, owner * rows, k * depth, xs, rows, depth)
            T.copy(codes[place * columns, k * depth], cs)
            if terms == 2:
                for i, j in T.Parallel(columns, depth):
                    both = _value(cs[i, j]) + _value(T.shift_right(cs[i, j], 4))
                    ws[i, j] = T.cast(T.if_then_else(k * depth + j < sizes[3], both, 0), dtype)
                multiply(xs, ws, total, rows, columns, depth, simt)
            else:
                load(x, owner * rows, sizes[3] + k * depth, later, rows, depth)
                for i, j in T.Parallel(columns, depth):
                    ws[i, j] = T.cast(T.if_then_else(k * depth + j < sizes[3], _value(cs[i, j]), 0), dtype)
                    us[i, j] = T.cast(_value(T.shift_right(cs[i, j], 4)), dtype)
                multiply(xs, ws, total, rows, columns, depth, simt)
                multiply(later, us, total, rows, columns, depth, simt)
        _store(total, result, step, scale, bias, y, owner * rows, place * columns, rows, columns, sizes)


@T.macro
def _few_rows_kernel(x, codes, step, scale, bias, y, sizes, terms, tiles, sums):
    rows, columns, depth = tiles["rows"], tiles["columns"], tiles["depth"]
    with T.Kernel(T.ceildiv(sizes[0], rows), T.ceildiv(sizes[1], columns), threads=tiles["threads"]) as (owner, place):
        cs = T.alloc_fragment((columns, depth), "uint8")
        parts = T.alloc_fragment((rows, columns, depth), sums)
        total = T.alloc_fragment((rows, columns), sums)
        result = T.alloc_fragment((rows, columns), "float32")
        T.clear(parts)
        for k in T.serial(T.ceildiv(sizes[3], depth)):
            T.copy(codes[place * columns, k * depth], cs)
            for i, j, d in T.Parallel(rows, columns, depth):
                first = _input(x, owner * rows + i, k * depth + d, sizes, sizes[3], sums)
                lower, upper = _value(cs[j, d]), _value(T.shift_right(cs[j, d], 4))
                if terms == 2:
                    parts[i, j, d] += first * T.cast(lower + upper, sums)
                else:
                    second = _input(x, owner * rows + i, sizes[3] + k * depth + d, sizes, sizes[2], sums)
                    parts[i, j, d] += first * T.cast(lower, sums) + second * T.cast(upper, sums)
        T.reduce_sum(parts, total, dim=2)
        _store(total, result, step, scale, bias, y, owner * rows, place * columns, rows, columns, sizes)


def _value(code):
    """What a byte's lower four bits stand for, int32."""
    number = T.cast(code, "int32")
    exponent = T.bitwise_and(number, 7)
    magnitude = T.if_then_else(exponent == ZERO_CODE, 0, T.shift_right(LARGEST, exponent))
    return T.if_then_else(T.bitwise_and(number, 8) == 0, magnitude, 0 - magnitude)


def _input(x, row, column, sizes, end, sums):
    """A number of x, zero beyond its rows and beyond the column `end`."""
    zero = T.float32(0) if sums == "float32" else T.int32(0)
    return T.if_then_else((row < sizes[0]) & (column < end), T.cast(x[row, column], sums), zero)


@T.macro
def _store(total, result, step, scale, bias, y, row, column, rows, columns, sizes):
    T.clear(result)
    if step is not None:
        store_scaled(total, result, step, scale, bias, y, row, column, rows, columns, sizes)
    else:
        for i, j in T.Parallel(rows, columns):
            result[i, j] = total[i, j] * T.if_then_else(column + j < sizes[1], scale[column + j], T.float32(0))
        add_bias(result, bias, column, rows, columns, sizes[1])
        T.copy(result, y[row : row + rows, column : column + columns])
