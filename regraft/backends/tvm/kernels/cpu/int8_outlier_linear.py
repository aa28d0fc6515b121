"""CPU kernel of `int8_outlier_linear`: both products of a block of results while it is in registers."""

from typing import Final

from regraft.backends.tvm.kernels.cpu._floating import TILES, default_tiles
from regraft.backends.tvm.kernels.cpu._host import Host
from regraft.backends.tvm.kernels.cpu._int8_layer import IntegerLayer, Outliers, plain_weights
from regraft.backends.tvm.kernels.cpu._integer import integer_block
from regraft.backends.tvm.kernels.cpu._kernel import CpuKernel, Operands, Plan, Tiles


def plan(given: Operands, tiles: Tiles, host: Host) -> Plan | str:
    """Return a plan, or why the kernel does not fit."""
    if given.dtype("scale", "bias", "outlier_weight") != "float32":
        return "activations, scale, outlier_weight and bias must all be float32"
    weight, columns = given.constants["weight"], given.constants["outliers"]
    if not bool(((columns >= 0) & (columns < weight.shape[1])).all()):
        return f"outliers must be places from 0 to {weight.shape[1] - 1}"
    block = integer_block(tiles["block_rows"], tiles["block_vectors"], host)
    outliers = Outliers(given.constants["inliers"], columns, given.constants["outlier_weight"])
    layer = IntegerLayer(
        plain_weights(weight, block, host),
        given.constants["scale"],
        given.constants.get("bias"),
        bool(given.attributes["per_row"]),
        outliers,
    )
    return layer.plan(block, tiles["row_chunk"], host)


kernel: Final = CpuKernel("int8_outlier_linear", ("x",), TILES, default_tiles, plan)
