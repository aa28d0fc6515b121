"""TileLang templates of `monarch_linear`; see the description in the folder above."""

import tilelang.language as T

from regraft.backends.tvm.kernels.cuda._blocks import BANK_GAP
from regraft.backends.tvm.kernels.monarch_linear import cut_of


def template(problem, tiling):
    """Return the kernels as TileLang's program, rows dynamic."""
    rows = T.dynamic("rows")
    cut, rank, dtype = cut_of(problem), problem.sizes["block_rank"], problem.storage
    has_bias, simt = problem.has("bias"), problem.dtype == "float32"
    inner, outer = cut.out_blocks * rank, cut.in_blocks * rank
    tiles, decode = tiling.tiles, tiling.variant == "decode"

    @T.prim_func
    def monarch(
        x: T.Tensor((rows, cut.in_features), dtype),
        right: T.Tensor((cut.in_blocks, cut.width, inner), dtype),
        left: T.Tensor((cut.out_blocks, outer, cut.height), dtype),
        bias: T.Tensor((cut.out_features,), dtype),
        y: T.Tensor((rows, cut.out_features), dtype),
        h: T.Tensor((rows, cut.out_blocks, outer), dtype),
    ):
        with T.Kernel(
            T.ceildiv(rows, tiles["rows"]), T.ceildiv(inner, tiles["columns"]), cut.in_blocks, threads=tiles["threads"]
        ) as (owner, place, run):
            total = T.alloc_fragment((tiles["rows"], tiles["columns"]), "float32")
            row, column = owner * tiles["rows"], place * tiles["columns"]
            if decode:
                _few_rows(x, right, run, row, column, total, rows, _features(cut, run), cut.width, tiles)
            else:
                _product(x, right, run, row, column, total, rows, cut, tiles, dtype, simt)
            for i, j in T.Parallel(tiles["rows"], tiles["columns"]):
                if row + i < rows and column + j < inner:
                    h[row + i, (column + j) // rank, run * rank + (column + j) % rank] = T.cast(total[i, j], dtype)
        with T.Kernel(
            T.ceildiv(rows, tiles["rows"]),
            T.ceildiv(cut.height, tiles["columns"]),
            cut.out_blocks,
            threads=tiles["threads"],
        ) as (owner, place, group):
            total = T.alloc_fragment((tiles["rows"], tiles["columns"]), "float32")
            row, column = owner * tiles["rows"], place * tiles["columns"]
            if decode:
                _few_rows(h, left, group, row, column, total, rows, None, outer, tiles)
            else:
                _product(h, left, group, row, column, total, rows, None, tiles, dtype, simt)
            _store(total, bias if has_bias else None, y, row, column, group, rows, cut, tiles, dtype)

    return monarch


def _features(cut, run):
    """Where a run's features begin, how far they are apart, and how many features there are."""
    return (run, cut.in_blocks, cut.in_features) if cut.in_strided else (run * cut.width, 1, cut.in_features)


@T.macro
def _product(source, blocks, block, row, column, total, rows, cut, tiles, dtype, simt):
    """total = source · blocks[block] for a tile; the source is x, cut in runs, or h, which has the groups apart."""
    high, wide, depth = tiles["rows"], tiles["columns"], tiles["depth"]
    xs = T.alloc_shared((high, depth + (BANK_GAP if simt else 0)), dtype)
    ws = T.alloc_shared((depth, wide), dtype)
    T.clear(total)
    for k in T.Pipelined(T.ceildiv(blocks.shape[1], depth), num_stages=_stages(cut, tiles)):
        if cut is None:
            T.copy(source[row : row + high, block, k * depth : k * depth + depth], xs[0:high, 0:depth])
        elif cut.in_strided:
            for i, d in T.Parallel(high, depth):
                feature = (k * depth + d) * cut.in_blocks + block
                inside = row + i < rows and feature < cut.in_features
                xs[i, d] = T.if_then_else(inside, source[row + i, feature], T.cast(0, dtype))
        else:  # what is read of the next run meets the zeros behind this block
            start = block * cut.width + k * depth
            T.copy(source[row : row + high, start : start + depth], xs[0:high, 0:depth])
        T.copy(blocks[block, k * depth : k * depth + depth, column : column + wide], ws)
        if simt:
            for d in T.serial(depth):
                for i, j in T.Parallel(high, wide):
                    total[i, j] += xs[i, d] * ws[d, j]
        else:
            T.gemm(xs, ws, total)


def _stages(cut, tiles):
    """Strided runs come element by element, not by asynchronous copies that could be waited for later."""
    return 0 if cut is not None and cut.in_strided else tiles["stages"]


@T.macro
def _few_rows(source, blocks, block, row, column, total, rows, features, extent, tiles):
    """total = source · blocks[block] for few rows: each number of the block is read once."""
    high, wide, depth = tiles["rows"], tiles["columns"], tiles["depth"]
    ws = T.alloc_fragment((depth, wide), blocks.dtype)
    parts = T.alloc_fragment((high, depth, wide), "float32")
    T.clear(parts)
    for k in T.serial(T.ceildiv(extent, depth)):
        T.copy(blocks[block, k * depth : k * depth + depth, column : column + wide], ws)
        for i, d, j in T.Parallel(high, depth, wide):
            parts[i, d, j] += _element(source, block, row + i, k * depth + d, rows, features, extent) * T.cast(
                ws[d, j], "float32"
            )
    T.reduce_sum(parts, total, dim=1)


def _element(source, block, row, place, rows, features, extent):
    """A number of the source, zero beyond the rows and beyond the run."""
    if features is None:
        return T.if_then_else(
            (row < rows) & (place < extent), T.cast(source[row, block, place], "float32"), T.float32(0)
        )
    start, distance, count = features
    feature = start + place * distance
    inside = (row < rows) & (place < extent) & (feature < count)
    return T.if_then_else(inside, T.cast(source[row, feature], "float32"), T.float32(0))


@T.macro
def _store(total, bias, y, row, column, group, rows, cut, tiles, dtype):
    for i, j in T.Parallel(tiles["rows"], tiles["columns"]):
        feature = (column + j) * cut.out_blocks + group if cut.out_strided else group * cut.height + column + j
        if row + i < rows and column + j < cut.height and feature < cut.out_features:
            if bias is not None:
                y[row + i, feature] = T.cast(total[i, j] + T.cast(bias[feature], "float32"), dtype)
            else:
                y[row + i, feature] = T.cast(total[i, j], dtype)
