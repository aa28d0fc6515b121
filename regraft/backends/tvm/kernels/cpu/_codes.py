"""Weights in 4 bits a term, decoded in registers: a code is a sign (8) and e for 2^(6 - e), or 7 for zero.

One term: a byte holds the codes of two neighbouring vectors. Two terms: both terms of one weight, which are added.
"""

# TVM has no types, so that those of expressions are unknown.
# pyright: reportUnknownLambdaType=false

from collections.abc import Callable, Mapping
from typing import Any, Final

import torch
from torch import Tensor

from regraft.backends.tvm.kernels.cpu._host import Host
from regraft.backends.tvm.kernels.cpu._int8_layer import Weight, Weights
from regraft.backends.tvm.kernels.cpu._integer import arranged, group_of, vector_of
from regraft.backends.tvm.kernels.cpu._ir import T, load, number, spread, tirx
from regraft.backends.tvm.kernels.cpu._product import Block, Place
from regraft.numerics.power_of_two import TERM_VALUES, ZERO_CODE, unpack

_LOOK_UP: Final = "llvm.x86.avx512.pshuf.b.512"
_TABLE: Final = 64
"""Bytes of the table of all codes, once for each quarter of a register."""
_ONE: Final = 127 + 6
"""Exponent of a float32 for the code 0, 2^6."""
_MANTISSA: Final = 23


def code_weights(codes: Tensor, terms: int, width: int, block: Block, host: Host) -> Weights:
    """Return packed codes [out, bytes] as weights of an integer product.

    Args:
        codes: as `regraft.numerics.power_of_two.pack` lays them out.
        terms: 1 or 2.
        width: inputs.
        block: of 32-bit sums; an even number of vectors.
        host: how many products are one step.
    """
    group = group_of(host)
    packed = {"weight": arranged_codes(codes, terms, width, block, group)}
    if group > 1:
        packed["table"] = torch.tensor(TERM_VALUES, dtype=torch.int8).repeat(_TABLE // len(TERM_VALUES))

    def reader(buffers: Mapping[str, Any]) -> Weight:
        read = codes_reader(buffers["weight"], terms, -(-width // group), block, group)
        if group > 1:
            return read(lambda bytes_: _looked_up(buffers["table"], bytes_))
        return read(lambda bytes_: _shifted(bytes_, block.lanes))

    return Weights(unpack(codes, terms, width), packed, reader, f"{terms} terms")


def arranged_codes(codes: Tensor, terms: int, width: int, block: Block, group: int) -> Tensor:
    """Return bytes as they are read: of pairs of vectors for one term, else of each vector."""
    if terms == 2:
        return arranged(codes, block, group, ZERO_CODE * 17).flatten()
    lower, upper = codes & 15, codes >> 4
    found = arranged(torch.cat([lower, upper], dim=1)[:, :width], block, group, ZERO_CODE)
    return (found[:, :, 0::2] | (found[:, :, 1::2] << 4)).flatten()


def codes_reader(
    weight: Any, terms: int, steps: int, block: Block, group: int
) -> Callable[[Callable[[Any], Any]], Weight]:
    """Return what makes a reader of weights out of what decodes one code a byte; two terms are added."""
    width = block.lanes * group

    def with_decoder(decode: Callable[[Any], Any]) -> Weight:
        def read(place: Place, k: Any) -> Any:
            row = place.panel * steps + k
            if terms == 2:
                bytes_ = load(weight, [(row * block.vectors + place.vector) * width], width)
                return decode(_lower(bytes_, width)) + decode(_upper(bytes_, width))
            bytes_ = load(weight, [(row * (block.vectors // 2) + place.vector // 2) * width], width)
            return decode(_upper(bytes_, width) if place.vector % 2 else _lower(bytes_, width))

        return read

    return with_decoder


def as_floats(bytes_: Any, lanes: int) -> Any:
    """Return float32 values of one code a byte: its exponent and sign are put where those of a float are."""
    code = tirx.Cast(vector_of("int32", lanes), bytes_)
    exponent = code & spread(number(7, "int32"), lanes)
    sign = (code >> spread(number(3, "int32"), lanes)) << spread(number(31, "int32"), lanes)
    shifted = (spread(number(_ONE, "int32"), lanes) - exponent) << spread(number(_MANTISSA, "int32"), lanes)
    value = T.reinterpret(vector_of("float32", lanes), sign | shifted)
    return tirx.Select(
        exponent == spread(number(ZERO_CODE, "int32"), lanes), spread(number(0, "float32"), lanes), value
    )


def _lower(bytes_: Any, lanes: int) -> Any:
    return bytes_ & spread(number(15, "uint8"), lanes)


def _upper(bytes_: Any, lanes: int) -> Any:
    return bytes_ >> spread(number(4, "uint8"), lanes)


def _looked_up(table: Any, bytes_: Any) -> Any:
    codes = T.reinterpret(f"int8x{_TABLE}", bytes_)
    return T.call_llvm_pure_intrin(f"int8x{_TABLE}", _LOOK_UP, load(table, [0], _TABLE), codes)


def _shifted(bytes_: Any, lanes: int) -> Any:
    """Int32 values of one code a byte."""
    code = tirx.Cast(vector_of("int32", lanes), bytes_)
    exponent = code & spread(number(7, "int32"), lanes)
    size = spread(number(64, "int32"), lanes) >> exponent
    value = tirx.Select(code >= spread(number(8, "int32"), lanes), spread(number(0, "int32"), lanes) - size, size)
    return tirx.Select(exponent == spread(number(ZERO_CODE, "int32"), lanes), spread(number(0, "int32"), lanes), value)
