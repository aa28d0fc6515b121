"""TileLang template of `multi_head_attention`; see the description in the folder above."""

import math

import tilelang.language as T

from regraft.backends.tvm.kernels._kernel import padded
from regraft.backends.tvm.kernels.cuda._blocks import BANK_GAP, multiply
from regraft.backends.tvm.kernels.multi_head_attention import broadcast_dims

_LOG2_E = 1 / math.log(2)


def template(problem, tiling):
    """Return the kernel as TileLang's program; batch, queries and keys dynamic."""
    extents = {name: T.dynamic(name) for name in ("batch", "queries", "keys")}
    batch, queries, keys = extents.values()
    heads, kv_heads, head, value = (problem.sizes[name] for name in ("heads", "kv_heads", "head", "value"))
    dtype, has, split = problem.storage, problem.has, problem.has("split")
    masks = [tuple(extents.get(dim, dim) for dim in broadcast_dims(problem, name)) for name in ("mask", "bias")]

    def shape(extent, count, width):
        return (batch, extent, count, width) if split else (batch, count, extent, width)

    @T.prim_func
    def attention(
        q: T.Tensor(shape(queries, heads, head), dtype),
        k: T.Tensor(shape(keys, kv_heads, head), dtype),
        v: T.Tensor(shape(keys, kv_heads, value), dtype),
        mask: T.Tensor(masks[0], "bool"),
        bias: T.Tensor(masks[1], dtype),
        y: T.Tensor(shape(queries, heads, value), dtype),
    ):
        _attention_kernel(
            q,
            k,
            v,
            mask if has("mask") else None,
            bias if has("bias") else None,
            y,
            (batch, queries, keys, heads, kv_heads, head, value),
            tiling.tiles,
            dtype,
            (split, has("causal"), problem.dtype == "float32"),
            float(problem.options.get("scale", 1.0)) * _LOG2_E,
            ([has(f"mask_{axis}") for axis in _AXES], [has(f"bias_{axis}") for axis in _AXES]),
        )

    return attention


_AXES = ("batch", "heads", "queries")
_BY_ROWS = T.GemmWarpPolicy.FullRow
"""A warp owns whole rows of scores, so that they stay in its registers as an operand of the second product."""


@T.macro
def _attention_kernel(q, k, v, mask, bias, y, sizes, tiles, dtype, flags, scale, full):
    rows, columns = tiles["rows"], tiles["columns"]
    split, causal, simt = flags
    gap = BANK_GAP if simt else 0
    width, wide = padded(sizes[5]), padded(sizes[6])
    grid = (T.ceildiv(sizes[1], rows), sizes[3], sizes[0])
    with T.Kernel(*grid, threads=tiles["threads"]) as (owner, head, item):
        qs = T.alloc_shared((rows, width + gap), dtype)
        ks = T.alloc_shared((columns, width + gap), dtype)
        vs = T.alloc_shared((columns, wide + gap), dtype)
        scores = T.alloc_fragment((rows, columns), "float32")
        total = T.alloc_fragment((rows, wide), "float32")
        high = T.alloc_fragment((rows,), "float32")
        earlier = T.alloc_fragment((rows,), "float32")
        shrink = T.alloc_fragment((rows,), "float32")
        part = T.alloc_fragment((rows,), "float32")
        weight = T.alloc_fragment((rows,), "float32")
        group = head // (sizes[3] // sizes[4])
        _load(q, item, head, owner * rows, qs, rows, width, split)
        T.fill(high, -T.infinity("float32"))
        T.clear(weight)
        T.clear(total)
        tiles_of_keys = T.ceildiv(sizes[2], columns)
        steps = T.min(tiles_of_keys, T.ceildiv((owner + 1) * rows, columns)) if causal else tiles_of_keys
        for step in T.Pipelined(steps, num_stages=tiles["stages"]):
            _load(k, item, group, step * columns, ks, columns, width, split)
            _load(v, item, group, step * columns, vs, columns, wide, split)
            T.clear(scores)
            multiply(qs, ks, scores, rows, columns, width, simt, policy=_BY_ROWS)
            place = (item, head, owner * rows, step * columns)
            _masked(scores, mask, bias, place, sizes, (rows, columns), causal, scale, full)
            T.copy(high, earlier)
            T.reduce_max(scores, high, dim=1, clear=False)
            for i in T.Parallel(rows):  # a query that has seen nothing yet keeps -inf, but subtracts 0
                part[i] = T.if_then_else(high[i] == -T.infinity("float32"), T.float32(0), high[i])
                shrink[i] = T.exp2(earlier[i] - part[i])
            for i, j in T.Parallel(rows, columns):
                scores[i, j] = T.exp2(scores[i, j] - part[i])
            T.reduce_sum(scores, part, dim=1)
            for i in T.Parallel(rows):
                weight[i] = weight[i] * shrink[i] + part[i]
            for i, j in T.Parallel(rows, wide):
                total[i, j] *= shrink[i]
            _add_values(scores, vs, total, rows, columns, wide, dtype, simt)
        for i, j in T.Parallel(rows, wide):
            total[i, j] = T.if_then_else(weight[i] == 0.0, T.float32(0), total[i, j] / weight[i])
        if split:
            T.copy(total, y[item, owner * rows : owner * rows + rows, head, 0:wide])
        else:
            T.copy(total, y[item, head, owner * rows : owner * rows + rows, 0:wide])


@T.macro
def _load(source, item, head, row, tile, rows, width, split):
    """Rows of one head, zeros beyond its width."""
    if split:
        T.copy(source[item, row : row + rows, head, 0:width], tile[0:rows, 0:width])
    else:
        T.copy(source[item, head, row : row + rows, 0:width], tile[0:rows, 0:width])


@T.macro
def _masked(scores, mask, bias, place, sizes, tile, causal, scale, full):
    """scores = scale · scores + bias in powers of two, -inf where a query must not look."""
    item, head, row, column = place
    mask_full, bias_full = full
    for i, j in T.Parallel(tile[0], tile[1]):
        scores[i, j] = T.if_then_else(column + j < sizes[2], scores[i, j] * T.float32(scale), -T.infinity("float32"))
    if causal:
        for i, j in T.Parallel(tile[0], tile[1]):
            scores[i, j] = T.if_then_else(column + j <= row + i, scores[i, j], -T.infinity("float32"))
    if bias is not None:
        for i, j in T.Parallel(tile[0], tile[1]):
            inside = (row + i < sizes[1]) and (column + j < sizes[2])
            scores[i, j] += T.if_then_else(
                inside,
                T.cast(_element(bias, bias_full, item, head, row + i, column + j), "float32") * T.float32(_LOG2_E),
                T.float32(0),
            )
    if mask is not None:
        for i, j in T.Parallel(tile[0], tile[1]):
            inside = (row + i < sizes[1]) and (column + j < sizes[2])
            scores[i, j] = T.if_then_else(
                T.if_then_else(inside, _element(mask, mask_full, item, head, row + i, column + j), False),
                scores[i, j],
                -T.infinity("float32"),
            )


def _element(source, full, item, head, row, column):
    """An element of the mask or the bias, whose extents that are not full are 1."""
    return source[item if full[0] else 0, head if full[1] else 0, row if full[2] else 0, column]


@T.macro
def _add_values(scores, vs, total, rows, columns, wide, dtype, simt):
    """total += scores · v."""
    if simt:
        ss = T.alloc_shared((rows, columns), dtype)
        T.copy(scores, ss)
        for key in T.serial(columns):
            for i, j in T.Parallel(rows, wide):
                total[i, j] += ss[i, key] * vs[key, j]
    else:
        rounded = T.alloc_fragment((rows, columns), dtype)
        T.copy(scores, rounded)
        T.gemm(rounded, vs, total, policy=_BY_ROWS)
