"""TileLang template of `lowrank_mlp`; see the description in the folder above."""

import tilelang.language as T

from regraft.backends.tvm.kernels._kernel import padded
from regraft.backends.tvm.kernels.cuda._activation import activate
from regraft.backends.tvm.kernels.cuda._blocks import BANK_GAP, add_bias, load, multiply


def template(problem, tiling):
    """Return the kernel as TileLang's program, rows dynamic."""
    rows = T.dynamic("rows")
    sizes, dtype, has = problem.sizes, problem.storage, problem.has
    inner, hidden, outer = sizes["in_features"], sizes["hidden"], sizes["out_features"]
    in_rank, gate_rank, out_rank = sizes["in_rank"], sizes["gate_rank"], sizes["out_rank"]

    @T.prim_func
    def mlp(
        x: T.Tensor((rows, inner), dtype),
        in_up: T.Tensor((hidden, in_rank), dtype),
        out_down: T.Tensor((out_rank, hidden), dtype),
        in_down: T.Tensor((in_rank, inner), dtype),
        out_up: T.Tensor((outer, out_rank), dtype),
        in_bias: T.Tensor((hidden,), dtype),
        out_bias: T.Tensor((outer,), dtype),
        gate_down: T.Tensor((gate_rank, inner), dtype),
        gate_up: T.Tensor((hidden, gate_rank), dtype),
        gate_bias: T.Tensor((hidden,), dtype),
        residual: T.Tensor((rows, outer), dtype),
        y: T.Tensor((rows, outer), dtype),
    ):
        _mlp_kernel(
            x,
            (None if has("dense_in") else in_down, in_up, in_bias if has("in_bias") else None, in_rank),
            (None if has("dense_gate") else gate_down, gate_up, gate_bias if has("gate_bias") else None, gate_rank)
            if has("gate")
            else None,
            out_down,
            None if has("dense_out") else out_up,
            out_bias if has("out_bias") else None,
            residual if has("residual") else None,
            y,
            (rows, outer, inner, hidden, out_rank),
            tiling.tiles,
            dtype,
            problem.dtype == "float32",
            problem.options.get("activation", "gelu"),
        )

    return mlp


@T.macro
def _mlp_kernel(x, inward, gate, out_down, out_up, out_bias, residual, y, sizes, tiles, dtype, simt, activation):
    rows, wide, stages = tiles["rows"], tiles["hidden"], tiles["stages"]
    out_ranks, gap = padded(sizes[4]), BANK_GAP if simt else 0
    in_ranks = padded(inward[3])
    gate_ranks = padded(gate[3]) if gate is not None else 16
    with T.Kernel(T.ceildiv(sizes[0], rows), threads=tiles["threads"]) as owner:
        ps = T.alloc_shared((rows, in_ranks + gap), dtype)
        gs = T.alloc_shared((rows, gate_ranks + gap), dtype)
        ts = T.alloc_shared((rows, wide + gap), dtype)
        ds = T.alloc_shared((out_ranks, wide + gap), dtype)
        first = T.alloc_fragment((rows, wide), "float32")
        opened = T.alloc_fragment((rows, wide), "float32")
        total = T.alloc_fragment((rows, out_ranks), "float32")
        if inward[0] is not None:
            _thin(x, inward[0], ps, owner * rows, sizes[2], in_ranks, tiles, dtype, simt)
        if gate is not None and gate[0] is not None:
            _thin(x, gate[0], gs, owner * rows, sizes[2], gate_ranks, tiles, dtype, simt)
        T.clear(total)
        for d in T.Pipelined(T.ceildiv(sizes[3], wide), num_stages=stages if inward[0] is not None else 0):
            _branch(x, ps, inward, first, owner * rows, d * wide, sizes[2], in_ranks, tiles, dtype, simt)
            add_bias(first, inward[2], d * wide, rows, wide, sizes[3])
            if gate is not None:
                _branch(x, gs, gate, opened, owner * rows, d * wide, sizes[2], gate_ranks, tiles, dtype, simt)
                add_bias(opened, gate[2], d * wide, rows, wide, sizes[3])
                for i, j in T.Parallel(rows, wide):
                    first[i, j] = activate(opened[i, j], activation) * first[i, j]
            else:
                for i, j in T.Parallel(rows, wide):
                    first[i, j] = activate(first[i, j], activation)
            T.copy(first, ts[0:rows, 0:wide])
            load(out_down, 0, d * wide, ds, out_ranks, wide)
            multiply(ts, ds, total, rows, out_ranks, wide, simt)
        if out_up is None:
            _store(total, out_bias, residual, y, owner * rows, 0, rows, out_ranks, sizes)
        else:
            _outward(total, out_up, out_bias, residual, y, owner * rows, out_ranks, sizes, tiles, dtype, simt)


@T.macro
def _thin(x, down, ps, row, inner, ranks, tiles, dtype, simt):
    """ps = x · downᵀ for the rows of the block."""
    rows, depth, gap = tiles["rows"], tiles["depth"], BANK_GAP if simt else 0
    xs = T.alloc_shared((rows, depth + gap), dtype)
    ws = T.alloc_shared((ranks, depth + gap), dtype)
    thin = T.alloc_fragment((rows, ranks), "float32")
    T.clear(thin)
    for k in T.Pipelined(T.ceildiv(inner, depth), num_stages=tiles["stages"]):
        load(x, row, k * depth, xs, rows, depth)
        load(down, 0, k * depth, ws, ranks, depth)
        multiply(xs, ws, thin, rows, ranks, depth, simt)
    T.copy(thin, ps[0:rows, 0:ranks])


@T.macro
def _branch(x, ps, layer, result, row, column, inner, ranks, tiles, dtype, simt):
    """result = p · up_dᵀ, or x · up_dᵀ where the layer is dense."""
    rows, wide, depth, gap = tiles["rows"], tiles["hidden"], tiles["depth"], BANK_GAP if simt else 0
    T.clear(result)
    if layer[0] is not None:
        us = T.alloc_shared((wide, ranks + gap), dtype)
        load(layer[1], column, 0, us, wide, ranks)
        multiply(ps, us, result, rows, wide, ranks, simt)
    else:
        xs = T.alloc_shared((rows, depth + gap), dtype)
        ws = T.alloc_shared((wide, depth + gap), dtype)
        for k in T.Pipelined(T.ceildiv(inner, depth), num_stages=tiles["stages"]):
            load(x, row, k * depth, xs, rows, depth)
            load(layer[1], column, k * depth, ws, wide, depth)
            multiply(xs, ws, result, rows, wide, depth, simt)


@T.macro
def _outward(total, out_up, out_bias, residual, y, row, out_ranks, sizes, tiles, dtype, simt):
    """y = s · out_upᵀ + out_bias + residual."""
    rows, columns, gap = tiles["rows"], tiles["columns"], BANK_GAP if simt else 0
    ss = T.alloc_shared((rows, out_ranks + gap), dtype)
    us = T.alloc_shared((columns, out_ranks + gap), dtype)
    result = T.alloc_fragment((rows, columns), "float32")
    T.copy(total, ss[0:rows, 0:out_ranks])
    for step in T.Pipelined(T.ceildiv(sizes[1], columns), num_stages=tiles["stages"]):
        load(out_up, step * columns, 0, us, columns, out_ranks)
        T.clear(result)
        multiply(ss, us, result, rows, columns, out_ranks, simt)
        _store(result, out_bias, residual, y, row, step * columns, rows, columns, sizes)


@T.macro
def _store(result, out_bias, residual, y, row, column, rows, columns, sizes):
    add_bias(result, out_bias, column, rows, columns, sizes[1])
    if residual is not None:
        for i, j in T.Parallel(rows, columns):
            result[i, j] += T.if_then_else(
                (row + i < sizes[0]) and (column + j < sizes[1]), T.cast(residual[row + i, column + j], "float32"), 0.0
            )
    T.copy(result, y[row : row + rows, column : column + columns])
