"""What products of 8-bit integers share: activations rounded when they run, and sums of four products a step.

    y[row, column] = (Σ_k codes[row, k] · w[column, k] - zero · Σ_k w[column, k]) · (step · scale[column]) · size[row]

Steps, zero and sizes are those of the op, in the same order of roundings. With AVX-512 VNNI, four neighbouring k are
one instruction, and weights are packed as [panels, k / 4, columns, 4]; else as [panels, k, columns]. What the packing
adds to the depth are zero weights.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from regraft.backends.tvm.kernels.cpu._host import Host
from regraft.backends.tvm.kernels.cpu._ir import (
    T,
    along,
    ceil_div,
    each,
    in_parallel,
    load,
    number,
    registers,
    scratch,
    spread,
    store,
    tirx,
)
from regraft.backends.tvm.kernels.cpu._product import Block, Part, Place

GROUP: Final = 4
"""Products that one instruction adds up."""
_DOT: Final = "llvm.x86.avx512.vpdpbusd.512"


def integer_block(rows: int, vectors: int, host: Host) -> Block:
    """Return a block of 32-bit sums."""
    return Block(rows, vectors, host.lanes(32), "int32")


def group_of(host: Host) -> int:
    """Return how many products one step adds up."""
    return GROUP if host.has_vnni else 1


def arranged(matrix: Tensor, block: Block, group: int, fill: int = 0) -> Tensor:
    """Return bytes [out, in] as the product reads them, [panels, steps, vectors, lanes * group]."""
    out, inner = matrix.shape
    padded = matrix.new_full((block.panels(out) * block.columns, -(-inner // group) * group), fill)
    padded[:out, :inner] = matrix
    steps = padded.shape[1] // group
    by_step = padded.view(-1, block.columns, steps, group).transpose(1, 2).contiguous()
    return by_step.view(-1, steps, block.vectors, block.lanes * group)


@dataclass(frozen=True)
class Codes:
    """Rounded activations.

    Attributes:
        buffer: uint8, [rows, stride] flat.
        stride: a multiple of four.
        step: float32 of one element.
        zero: int32 of one element.
        size: [rows]; None when all rows have one step.
    """

    buffer: Any
    stride: int
    step: Any
    zero: Any
    size: Any


def quantized(rows: Any, width: int, value: Callable[[Any, Any, int], Any], lanes: int, *, per_row: bool) -> Codes:
    """Round activations to 256 values, side by side over rows.

    Args:
        rows: how many.
        width: numbers a row.
        value: (row, first place, lanes) -> float32 vector.
        lanes: in a vector.
        per_row: whether each row is divided by its size first; see `regraft.ops._int8`.
    """
    stride = ceil_div(width, GROUP) * GROUP
    codes = Codes(
        scratch(rows * stride, "uint8"),
        stride,
        scratch(1, "float32"),
        scratch(1, "int32"),
        scratch(rows, "float32") if per_row else None,
    )
    low, high = scratch(rows, "float32"), scratch(rows, "float32")
    with in_parallel(rows) as row:
        _range_of_row(row, width, value, lanes, (low, high, codes.size))
    _range_of_all(rows, (low, high), codes)
    with in_parallel(rows) as row:
        _round_row(row, width, value, lanes, codes)
    return codes


def _range_of_row(row: Any, width: int, value: Callable[[Any, Any, int], Any], lanes: int, out: Any) -> None:
    """The least and the largest number of a row, divided by its size, and the size."""
    lows, highs = registers(lanes, "float32"), registers(lanes, "float32")
    store(lows, spread(number(float("inf"), "float32"), lanes), [0], lanes)
    store(highs, spread(number(float("-inf"), "float32"), lanes), [0], lanes)

    def seen(place: Any, count: int) -> None:
        found = value(row, place, count)
        store(lows, tirx.min(load(lows, [0], count), found), [0], count)
        store(highs, tirx.max(load(highs, [0], count), found), [0], count)

    along(width, lanes, seen)
    with each(lanes - 1) as lane:
        store(lows, tirx.min(load(lows, [0], 1), load(lows, [lane + 1], 1)), [0], 1)
        store(highs, tirx.max(load(highs, [0], 1), load(highs, [lane + 1], 1)), [0], 1)
    low, high, size = out
    store(low, load(lows, [0], 1), [row], 1)
    store(high, load(highs, [0], 1), [row], 1)
    if size is not None:
        largest = tirx.max(high[row], low[row] * number(-127 / 128, "float32"))
        store(size, tirx.Select(largest == 0, number(1, "float32"), largest), [row], 1)
        store(low, low[row] / size[row], [row], 1)
        store(high, high[row] / size[row], [row], 1)


def _range_of_all(rows: Any, ranges: tuple[Any, Any], codes: Codes) -> None:
    """The step and the zero of all rows, whose range includes 0."""
    low, high = registers(1, "float32"), registers(1, "float32")
    nothing = number(0, "float32")
    store(low, nothing, [0], 1)
    store(high, nothing, [0], 1)
    with each(rows) as row:
        store(low, tirx.min(low[0], ranges[0][row]), [0], 1)
        store(high, tirx.max(high[0], ranges[1][row]), [0], 1)
    step = (high[0] - low[0]) / number(255, "float32")
    store(codes.step, tirx.Select(step == 0, number(1, "float32"), step), [0], 1)
    zero = tirx.nearbyint((nothing - low[0]) / codes.step[0])
    store(codes.zero, tirx.Cast("int32", _clamped(zero, 1)), [0], 1)


def _round_row(row: Any, width: int, value: Callable[[Any, Any, int], Any], lanes: int, codes: Codes) -> None:
    zero = tirx.Cast("float32", codes.zero[0])

    def rounded(place: Any, count: int) -> None:
        found = value(row, place, count)
        if codes.size is not None:
            found = found / spread(codes.size[row], count)
        found = tirx.nearbyint(found / spread(codes.step[0], count)) + spread(zero, count)
        kept = tirx.Cast(vector_of("int32", count), _clamped(found, count))
        store(codes.buffer, tirx.Cast(vector_of("uint8", count), kept), [row * codes.stride + place], count)

    along(width, lanes, rounded)


def _clamped(value: Any, lanes: int) -> Any:
    low, high = (spread(number(bound, "float32"), lanes) for bound in (0, 255))
    return tirx.max(tirx.min(value, high), low)


def vector_of(dtype: str, lanes: int) -> str:
    """Return the name of a vector's type."""
    return f"{dtype}x{lanes}" if lanes > 1 else dtype


def integer_product(codes: Codes, weight: Callable[[Place, Any], Any], steps: int, block: Block, group: int) -> Part:
    """Return the product of codes and int8 weights.

    Args:
        codes: rounded activations.
        weight: (where, step) -> int8 vector, as `arranged`.
        steps: over the depth.
        block: of 32-bit sums.
        group: products a step.
    """
    lanes = block.lanes

    def step(total: Any, place: Place, k: Any) -> Any:
        values = weight(place, k)
        at = place.row * codes.stride + k * group
        if group == 1:
            code = tirx.Cast("int32", load(codes.buffer, [at], 1))
            return total + spread(code, lanes) * tirx.Cast(vector_of("int32", lanes), values)
        four = T.reinterpret("int32", load(codes.buffer, [at], group))
        bytes_ = T.reinterpret(f"uint8x{lanes * group}", spread(four, lanes))
        return T.call_llvm_pure_intrin(vector_of("int32", lanes), _DOT, total, bytes_, values)

    return Part(steps, step, "int32")


def scaled(codes: Codes, sums: Any, scale: Any, block: Block) -> Callable[[Place, Any], Any]:
    """Return (where, integer sum) -> float32 result, without a bias.

    Args:
        codes: rounded activations.
        sums: int32, of the weights of each column, padded.
        scale: float32, of each column, padded.
        block: of sums.
    """
    lanes = block.lanes

    def finish(place: Place, total: Any) -> Any:
        missing = spread(codes.zero[0], lanes) * load(sums, [place.column], lanes)
        whole = tirx.Cast(vector_of("float32", lanes), total - missing)
        value = whole * (spread(codes.step[0], lanes) * load(scale, [place.column], lanes))
        return value if codes.size is None else value * spread(codes.size[place.row], lanes)

    return finish


def padded_sums(weight: Tensor, block: Block) -> Tensor:
    """Return the sum of each column's weights, int32, with zeros up to the end of the last panel."""
    found = torch.zeros(block.size(weight.shape[0]), dtype=torch.int32)
    found[: weight.shape[0]] = weight.sum(dim=1, dtype=torch.int32)
    return found
