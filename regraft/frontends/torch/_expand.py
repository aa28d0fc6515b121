"""Writes structured ops that are chains of linear layers out as these layers."""

# torch has no public name for the schema of an operator.
# pyright: reportPrivateUsage=false

from collections.abc import Collection
from typing import Any

import torch
from torch import fx

from regraft.frontends.torch._program import Program
from regraft.frontends.torch.library import torch_op
from regraft.ops import Op, get_op


def expand(program: Program, ops: Collection[str]) -> None:
    """Turn every node of these ops into linear layers, the last one in the node's own place."""
    targets: dict[Any, Op] = {torch_op(name): get_op(name) for name in ops if get_op(name).chain}
    for node in list(program.graph.nodes):
        if node.op == "call_function" and node.target in targets:
            _expand_node(program, node, targets[node.target])
    program.changed()


def _expand_node(program: Program, node: fx.Node, op: Op) -> None:
    operands: dict[str, Any] = dict(zip((operand.name for operand in op.operands), node.args, strict=False))
    x = operands[op.operands[0].name]
    *inner, last = op.chain
    for weight in inner:
        x = _linear(program, node, x, operands[weight])
    bias = operands.get("bias")
    node.target = torch.ops.aten.linear.default
    node.args = (x, operands[last]) if bias is None else (x, operands[last], bias)


def _linear(program: Program, before: fx.Node, x: fx.Node, weight: fx.Node) -> fx.Node:
    with program.graph.inserting_before(before):
        layer = program.graph.call_function(torch.ops.aten.linear.default, (x, weight))
    layer.meta = {key: value for key, value in before.meta.items() if key not in ("val", "tensor_meta")}
    given: list[Any] = [x.meta.get("val"), weight.meta.get("val")]
    mode: Any = next((found for value in given if (found := getattr(value, "fake_mode", None)) is not None), None)
    if mode is not None:
        with mode:
            layer.meta["val"] = torch.nn.functional.linear(*given)
    program.index[layer.name] = layer
    return layer
