"""CPU kernel of `shift_linear`: the weights stay in 4 bits a term in memory, and are decoded in registers.

With quantized activations the codes become int8 by one look-up in a register (AVX-512), and the product is that of
`int8_linear`. With activations in floating point they become float32 by shifts; the scale multiplies the sum.
"""

# TVM has no types, so that those of expressions are unknown.
# pyright: reportUnknownLambdaType=false

from collections.abc import Mapping
from typing import Any, Final

from regraft.backends.tvm.kernels.cpu._codes import arranged_codes, as_floats, code_weights, codes_reader
from regraft.backends.tvm.kernels.cpu._floating import TILES, block_of, default_tiles, padded_vector
from regraft.backends.tvm.kernels.cpu._host import Host
from regraft.backends.tvm.kernels.cpu._int8_layer import IntegerLayer
from regraft.backends.tvm.kernels.cpu._integer import integer_block
from regraft.backends.tvm.kernels.cpu._ir import Function, by_work, function, load, spread
from regraft.backends.tvm.kernels.cpu._kernel import CpuKernel, Operands, Plan, Tiles, as_rows, in_rows, with_columns
from regraft.backends.tvm.kernels.cpu._product import Part, Place, Result, product

_PER_ROW: Final = 2
_FLOATING: Final = 0


def plan(given: Operands, tiles: Tiles, host: Host) -> Plan | str:
    """Return a plan, or why the kernel does not fit."""
    if given.dtype("scale", "bias") != "float32":
        return "activations, scale and bias must all be float32"
    terms, width = int(given.attributes["terms"]), int(given.attributes["in_features"])
    activations = int(given.attributes["activations"])
    if activations == _FLOATING:
        return _floating_plan(given, (terms, width), tiles, host)
    block = integer_block(tiles["block_rows"], tiles["block_vectors"], host)
    weights = code_weights(given.constants["codes"], terms, width, block, host)
    bias = given.constants.get("bias")
    layer = IntegerLayer(weights, given.constants["scale"], bias, per_row=activations == _PER_ROW)
    return layer.plan(block, tiles["row_chunk"], host)


def _floating_plan(given: Operands, sizes: tuple[int, int], tiles: Tiles, host: Host) -> Plan:
    block = block_of(tiles, host, "float32")
    codes, scale = given.constants["codes"], given.constants["scale"]
    (terms, width), columns = sizes, codes.shape[0]
    packed = (
        arranged_codes(codes, terms, width, block, 1),
        padded_vector(scale, columns, block),
        padded_vector(given.constants.get("bias"), columns, block),
    )

    def write(f: Function) -> None:
        rows = f.symbol("rows")
        x = f.parameter("x", ("rows", width), "float32")
        weight = f.parameter("codes", packed[0].shape, "uint8")
        factor, offset = (f.parameter(name, (block.size(columns),), "float32") for name in ("scale", "bias"))
        y = f.parameter("y", ("rows", columns), "float32")
        read = codes_reader(weight, terms, width, block, 1)(lambda bytes_: as_floats(bytes_, block.lanes))

        def step(total: Any, place: Place, k: Any) -> Any:
            return total + spread(x[place.row, k], block.lanes) * read(place, k)

        def finish(place: Place, total: Any) -> Any:
            return total * load(factor, [place.column], block.lanes) + load(offset, [place.column], block.lanes)

        result = Result(y, lambda row, column: (row, column), columns)
        parts = [Part(width, step, "float32")]
        by_work(
            rows * (width * columns), lambda: product(block, rows, tiles["row_chunk"], columns, parts, finish, result)
        )

    problem = {"width": width, "columns": columns, "terms": terms, "activations": "float32"}
    return Plan(problem, packed, lambda: function(write), as_rows(width), with_columns(columns), in_rows)


_TILES: Final[Mapping[str, tuple[int, ...]]] = {**TILES, "block_vectors": (2, 4)}
"""Vectors come in pairs."""

kernel: Final = CpuKernel("shift_linear", ("x",), _TILES, default_tiles, plan)
