"""Operators that TVM's importer has not, rounds otherwise than torch, or reads outside of their operands with.

Each function takes the block builder and the operator's arguments as Relax values. An index outside its table reads
NaN, or 0 where the table holds no floating-point numbers: never memory beyond it.
"""

# TVM has no types, so that those of what it calls are unknown.
# pyright: reportUnknownLambdaType=false

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from regraft.backends.tvm._compat import module
from regraft.backends.tvm._layers import convolution, is_half, layer_norm

relax: Final[Any] = module("tvm.relax")
te: Final[Any] = module("tvm.te")
tirx: Final[Any] = module("tvm.tirx")


def _round(builder: Any, x: Any, *, decimals: int = 0) -> Any:
    """Halves to even, where TVM's own operator rounds them away from zero."""
    power = 10.0**decimals

    def compute(x: Any) -> Any:
        return te.compute(x.shape, lambda *place: tirx.nearbyint(x(*place) * power) / power, name="round_half_even")

    return builder.emit_te(compute, x)


def _embedding(builder: Any, table: Any, indices: Any, *_: Any, **__: Any) -> Any:
    def embedding(table: Any, indices: Any) -> Any:  # the name is that of the kernel, in CUDA source, too
        return _taken(table, indices, 0, negative=False)

    return builder.emit_te(embedding, table, indices)


def _index_select(builder: Any, x: Any, axis: int, indices: Any) -> Any:
    def select(x: Any, indices: Any) -> Any:
        return _taken(x, indices, axis % len(x.shape), negative=False)

    return builder.emit_te(select, x, indices)


def _taken(x: Any, indices: Any, axis: int, *, negative: bool) -> Any:
    """The slices of x at indices of any rank, in the place of its axis."""
    rank = len(indices.shape)
    shape = [*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]]

    def element(*place: Any) -> Any:
        index = indices(*place[axis : axis + rank])
        return _read(x, place[:axis], [index], place[axis + rank :], negative=negative)

    return te.compute(shape, element, name="take")


def _gather(builder: Any, x: Any, axis: int, indices: Any, **_: Any) -> Any:
    def compute(x: Any, indices: Any) -> Any:
        at = axis % len(x.shape)

        def element(*place: Any) -> Any:
            return _read(x, place[:at], [indices(*place)], place[at + 1 :], negative=False)

        return te.compute(indices.shape, element, name="gather")

    return builder.emit_te(compute, x, indices)


def _index(builder: Any, x: Any, indices: Sequence[Any]) -> Any:
    """Indexing by tensors that are broadcast together, in adjacent dims or in dims that move to the front."""
    used = [place for place, index in enumerate(indices) if index is not None]
    tensors = [indices[place] for place in used]
    adjacent = used == list(range(used[0], used[-1] + 1))

    def compute(x: Any, *tensors: Any) -> Any:
        common = _broadcast([tensor.shape for tensor in tensors])
        kept = [place for place in range(len(x.shape)) if place not in used]
        front = used[0] if adjacent else 0
        shape = [*(x.shape[at] for at in kept[:front]), *common, *(x.shape[at] for at in kept[front:])]

        def element(*place: Any) -> Any:
            inner = place[front : front + len(common)]
            others = iter([*place[:front], *place[front + len(common) :]])
            found = iter([_broadcast_read(tensor, inner) for tensor in tensors])
            return _read_mixed(x, [next(found) if at in used else next(others) for at in range(len(x.shape))], used)

        return te.compute(shape, element, name="index")

    return builder.emit_te(compute, x, *tensors)


def _broadcast(shapes: Sequence[Any]) -> list[Any]:
    rank = max(len(shape) for shape in shapes)
    aligned = [[1] * (rank - len(shape)) + list(shape) for shape in shapes]
    return [
        next((extent for extent in extents if not _is_one(extent)), extents[0])
        for extents in zip(*aligned, strict=True)
    ]


def _broadcast_read(tensor: Any, place: Sequence[Any]) -> Any:
    rank = len(tensor.shape)
    own = place[len(place) - rank :]
    return tensor(*(0 if _is_one(extent) else at for extent, at in zip(tensor.shape, own, strict=True)))


def _is_one(extent: Any) -> bool:
    return isinstance(extent, int | tirx.IntImm) and int(extent) == 1


def _read(x: Any, before: Sequence[Any], indices: Sequence[Any], after: Sequence[Any], *, negative: bool) -> Any:
    places = [*before, *indices, *after]
    return _read_mixed(x, places, range(len(before), len(before) + len(indices)), negative=negative)


def _read_mixed(x: Any, places: Sequence[Any], checked: Sequence[int], *, negative: bool = True) -> Any:
    """An element of x; the checked ones of its places may lie outside, and count from the end when negative."""
    safe, inside = list(places), tirx.IntImm("bool", 1)
    for at in checked:
        extent = tirx.Cast("int64", x.shape[at])
        index = tirx.Cast("int64", places[at])
        if negative:
            index = tirx.Select(index < 0, index + extent, index)
        inside = tirx.all(inside, index >= 0, index < extent)
        safe[at] = tirx.max(tirx.min(index, extent - 1), tirx.IntImm("int64", 0))
    outside = tirx.const(float("nan"), x.dtype) if "float" in x.dtype else tirx.Cast(x.dtype, tirx.IntImm("int32", 0))
    return tirx.Select(inside, x(*safe), outside)


def _select(builder: Any, x: Any, axis: int, index: Any) -> Any:
    """One slice, without its dim; an index below zero counts from the end, also of an extent that is not known yet."""

    def compute(x: Any) -> Any:
        at = axis % len(x.shape)
        place_of = _from_start(index, x.shape[at])
        shape = [*x.shape[:at], *x.shape[at + 1 :]]
        return te.compute(shape, lambda *place: x(*place[:at], place_of, *place[at:]), name="select")

    return builder.emit_te(compute, x)


def _slice(builder: Any, x: Any, axis: int = 0, start: Any = None, stop: Any = None, step: int = 1) -> Any:
    at = axis % x.struct_info.ndim
    extent = x.struct_info.shape[at]
    if start in (None, 0) and step == 1 and (stop is None or (isinstance(stop, int) and stop >= sys.maxsize)):
        return x
    begin = _from_start(0 if start is None else start, extent)
    end = extent if stop is None or (isinstance(stop, int) and stop >= sys.maxsize) else _from_start(stop, extent)
    return builder.emit(relax.op.strided_slice(x, [at], [begin], [end], [step]))


def _from_start(index: Any, extent: Any) -> Any:
    if isinstance(index, int) and index < 0:
        return tirx.max(extent + index, tirx.IntImm("int64", 0))
    return index


def _scatter(builder: Any, x: Any, axis: int, indices: Any, source: Any) -> Any:
    return builder.emit(relax.op.scatter_elements(x, indices, source, axis=axis))


def _scatter_reduce(builder: Any, x: Any, axis: int, indices: Any, source: Any, reduce: str, **_: Any) -> Any:
    reduction = {"sum": "add", "prod": "mul", "amax": "max", "amin": "min"}[reduce]
    return builder.emit(relax.op.scatter_elements(x, indices, source, axis=axis, reduction=reduction))


def _cumsum(builder: Any, x: Any, axis: int, dtype: Any = None) -> Any:
    """Sums of integers and booleans are int64, as in torch."""
    own = x.struct_info.dtype
    wanted = str(dtype).removeprefix("torch.") if dtype is not None else own if "float" in own else "int64"
    return builder.emit(relax.op.cumsum(x if own == wanted else relax.op.astype(x, wanted), axis=axis, dtype=wanted))


def _extremum(reduce: Callable[..., Any], lowest: float, better: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    """Of infinities it is infinite, and of NaN it is NaN, as in torch; TVM's own begin at a finite number."""

    def joined(one: Any, other: Any) -> Any:
        return tirx.Select(tirx.any(better(one, other), tirx.isnan(one)), one, other)

    reducer = te.comm_reducer(joined, lambda dtype: tirx.const(lowest, dtype), name="extremum")

    def lower(builder: Any, x: Any, axes: Sequence[int] = (), keepdim: bool = False) -> Any:
        if "float" not in x.struct_info.dtype:
            return builder.emit(reduce(x, axis=list(axes) or None, keepdims=keepdim))
        rank = x.struct_info.ndim
        over = sorted(axis % rank for axis in axes) or list(range(rank))

        def compute(x: Any) -> Any:
            inner = {axis: te.reduce_axis((0, x.shape[axis]), name=f"k{axis}") for axis in over}
            shape = [1 if axis in inner else x.shape[axis] for axis in range(rank) if keepdim or axis not in inner]

            def element(*place: Any) -> Any:
                outer = iter(at for axis, at in enumerate(place) if not (keepdim and axis in inner))
                at = [inner[axis] if axis in inner else next(outer) for axis in range(rank)]
                return reducer(x(*at), axis=list(inner.values()))

            return te.compute(shape, element, name="extremum")

        if not is_half(x.struct_info.dtype):
            return builder.emit_te(compute, x)
        wide = builder.emit_te(compute, builder.emit(relax.op.astype(x, "float32")))
        return builder.emit(relax.op.astype(wide, x.struct_info.dtype))

    return lower


def _view(builder: Any, x: Any, shape: Sequence[Any]) -> Any:
    """TVM's importer fails where it compares extents that are products."""
    return builder.emit(relax.op.reshape(x, list(shape)))


def _linear_integer(builder: Any, codes: Any, weight: Any, zero_point: Any) -> Any:
    """[..., in] · [out, in]ᵀ in 32-bit integers."""

    def compute(codes: Any, weight: Any, zero_point: Any) -> Any:
        inner = te.reduce_axis((0, weight.shape[1]), name="k")

        def element(*place: Any) -> Any:
            factor = _int32(codes(*place[:-1], inner)) - _int32(zero_point())
            return te.sum(factor * _int32(weight(place[-1], inner)), axis=inner)

        return te.compute([*codes.shape[:-1], weight.shape[0]], element, name="linear_integer")

    return builder.emit_te(compute, codes, weight, zero_point)


def _matmul_integer(builder: Any, codes: Any, weight: Any, zero_point: Any) -> Any:
    """[blocks, rows, in] · [blocks, in, out] in 32-bit integers."""

    def compute(codes: Any, weight: Any, zero_point: Any) -> Any:
        inner = te.reduce_axis((0, weight.shape[1]), name="k")

        def element(block: Any, row: Any, column: Any) -> Any:
            factor = _int32(codes(block, row, inner)) - _int32(zero_point())
            return te.sum(factor * _int32(weight(block, inner, column)), axis=inner)

        return te.compute([*codes.shape[:-1], weight.shape[2]], element, name="matmul_integer")

    return builder.emit_te(compute, codes, weight, zero_point)


def _addmm(builder: Any, bias: Any, a: Any, b: Any, *, beta: float = 1, alpha: float = 1) -> Any:
    """Products of 16-bit floats are summed in float32, as in torch; TVM's importer then adds a bias of another type."""
    product = builder.emit(relax.op.matmul(a, b, out_dtype="float32" if is_half(a.struct_info.dtype) else None))
    wide = builder.emit(relax.op.astype(bias, "float32")) if is_half(a.struct_info.dtype) else bias
    scaled = [
        x if factor == 1 else builder.emit(relax.op.multiply(x, relax.const(factor, x.struct_info.dtype)))
        for x, factor in ((wide, beta), (product, alpha))
    ]
    total = builder.emit(relax.op.add(*scaled))
    return builder.emit(relax.op.astype(total, a.struct_info.dtype)) if is_half(a.struct_info.dtype) else total


def _product(builder: Any, a: Any, b: Any) -> Any:
    """Summed in float32 when the operands are 16-bit floats, as in torch."""
    if not is_half(a.struct_info.dtype):
        return builder.emit(relax.op.matmul(a, b))
    return builder.emit(relax.op.astype(builder.emit(relax.op.matmul(a, b, out_dtype="float32")), a.struct_info.dtype))


def _int32(x: Any) -> Any:
    return x.astype("int32")


LOWERINGS: Final[Mapping[str, Callable[..., Any]]] = {
    "addmm.default": _addmm,
    "amax.default": _extremum(relax.op.max, float("-inf"), lambda one, other: one >= other),
    "amin.default": _extremum(relax.op.min, float("inf"), lambda one, other: one <= other),
    "bmm.default": _product,
    "convolution.default": convolution,
    "cumsum.default": _cumsum,
    "embedding.default": _embedding,
    "gather.default": _gather,
    "index.Tensor": _index,
    "index_select.default": _index_select,
    "linear_integer.default": _linear_integer,
    "matmul_integer.default": _matmul_integer,
    "mm.default": _product,
    "native_layer_norm.default": layer_norm,
    "round.default": _round,
    "round.decimals": _round,
    "scatter.src": _scatter,
    "scatter_reduce.two": _scatter_reduce,
    "select.int": _select,
    "slice.Tensor": _slice,
    "view.default": _view,
}
"""By the names of torch's operators, as TVM's importer spells them."""
