"""CPU kernel of `int8_linear`: rows rounded side by side, then an integer product with VNNI where there is one."""

from typing import Final

from regraft.backends.tvm.kernels.cpu._floating import TILES, default_tiles
from regraft.backends.tvm.kernels.cpu._host import Host
from regraft.backends.tvm.kernels.cpu._int8_layer import IntegerLayer, plain_weights
from regraft.backends.tvm.kernels.cpu._integer import integer_block
from regraft.backends.tvm.kernels.cpu._kernel import CpuKernel, Operands, Plan, Tiles


def plan(given: Operands, tiles: Tiles, host: Host) -> Plan | str:
    """Return a plan, or why the kernel does not fit."""
    if given.dtype("scale", "bias") != "float32":
        return "activations, scale and bias must all be float32"
    block = integer_block(tiles["block_rows"], tiles["block_vectors"], host)
    weights = plain_weights(given.constants["weight"], block, host)
    per_row = bool(given.attributes["per_row"])
    layer = IntegerLayer(weights, given.constants["scale"], given.constants.get("bias"), per_row)
    return layer.plan(block, tiles["row_chunk"], host)


kernel: Final = CpuKernel("int8_linear", ("x",), TILES, default_tiles, plan)
