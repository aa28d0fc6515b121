"""Calls of kernels in a program: which nodes have one, and how it takes their place.

A kernel is one opaque operator (see `_operator`). Its weights are buffers of the module, packed as it reads them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, fx

from regraft.backends.tvm._composed import COMPOSITIONS, ComposedCode
from regraft.backends.tvm._expected import Expected, expected_extents
from regraft.backends.tvm._maker import CpuMaker, Made, Maker, Varying
from regraft.backends.tvm._operator import Code, code_of
from regraft.backends.tvm.kernels.cpu import Compiled
from regraft.graph import Graph, Node, Value
from regraft.ops import Op, all_ops

__all__ = ["Call", "Compiled", "apply_calls", "call_of", "planned_calls", "traced_call"]

_MATRIX: Final = 2


@dataclass(frozen=True)
class Call:
    """A node of the program that a kernel computes, and the keys of what varies."""

    node: Node
    kernel: Made
    activations: tuple[str, ...]


def planned_calls(graph: Graph, maker: Maker) -> list[Call]:
    """Return the calls of kernels for a whole graph of either kind: of structured ops, and of dense linear layers."""
    expected = expected_extents(graph)
    planned = [_planned(graph, node, maker, expected) for node in graph.nodes()]
    return [call for call in planned if isinstance(call, Call)]


def _planned(graph: Graph, node: Node, maker: Maker, expected: Expected) -> Call | str:
    if node.op in all_ops():
        return call_of(graph, node, all_ops()[node.op], maker, expected)
    if not maker.dense:
        return "dense layers have no kernel"
    if node.native == "aten.linear.default":
        return _call(graph, node, "linear", _named(node), {}, maker, expected)
    plain = node.native == "Gemm" and (node.attributes.get("alpha", 1.0), node.attributes.get("beta", 1.0)) == (1, 1)
    if node.native == "MatMul" or (plain and not node.attributes.get("transA", 0)):
        turned = () if node.attributes.get("transB", 0) else ("weight",)
        return _call(graph, node, "linear", _named(node), {}, maker, expected, turned)
    return "no kernel computes it"


def _named(node: Node) -> dict[str, Value | None]:
    """The operands of a dense linear layer."""
    names: tuple[str, ...] = ("x", "weight", "bias")
    return dict(zip(names, node.inputs, strict=False))


def call_of(
    graph: Graph, node: Node, op: Op, maker: Maker | None = None, expected: Expected | None = None
) -> Call | str:
    """Return the call of a structured op's kernel, or why there is none."""
    values = {operand.name: value for operand, value in zip(op.operands, node.inputs, strict=False)}
    attributes = {name: node.attributes[name] for name in op.attributes if name in node.attributes}
    turned = op.linear_weights if graph.kind == "onnx" else ()
    known = expected_extents(graph) if expected is None else expected
    return _call(graph, node, op.name, values, attributes, maker or CpuMaker(), known, turned)


def _call(
    graph: Graph,
    node: Node,
    op: str,
    values: Mapping[str, Value | None],
    attributes: Mapping[str, Any],
    maker: Maker,
    expected: Expected,
    turned: Sequence[str] = (),
) -> Call | str:
    """The call, or why there is none; `turned` weights are stored transposed."""
    composition = COMPOSITIONS.get(op)
    if composition is None and not maker.has(op):
        return "no kernel computes it"
    may_vary = maker.may_vary(op) if composition is None else composition.activations
    constants: dict[str, Tensor] = {}
    varying: dict[str, Value] = {}
    for name, value in values.items():
        if value is None:
            continue
        constant = None if may_vary is not None and name in may_vary else graph.constant(value)
        if constant is not None:
            constants[name] = constant.t() if name in turned and constant.dim() == _MATRIX else constant
        elif may_vary is None or name in may_vary:
            varying[name] = value
        else:
            return f"{name} is no constant"
    given = {name: _varying(value, expected) for name, value in varying.items()}
    if composition is None:
        made = maker.make(op, constants, given, attributes)
    else:
        made = composition.make(constants, given, attributes, maker)
    if isinstance(made, str):
        return made
    return Call(node, made, tuple(value.key for value in varying.values()))


def _varying(value: Value, expected: Expected) -> Varying:
    dims = value.type.shape or ()
    shape = tuple(extent if isinstance(extent, int) else None for extent in dims)
    return Varying(getattr(torch, str(value.type.dtype)), shape, tuple(expected(dim) for dim in dims))


def traced_call(activations: Sequence[Tensor], packed: Sequence[Tensor], key: str) -> Tensor:
    """What is traced in the place of a call: one that is composed of several as these."""
    code: Code | None = code_of(key)
    if isinstance(code, ComposedCode):
        return code.function(activations, packed)
    return torch.ops.regraft_kernels.run(activations, packed, key)


def apply_calls(module: fx.GraphModule, calls: Sequence[Call]) -> None:
    """Put calls of kernels in the places of their nodes; what only these read goes."""
    nodes = {node.name: node for node in module.graph.nodes}
    for place, call in enumerate(calls):
        _replace(module, nodes, call, f"kernel_{place}")
    module.graph.eliminate_dead_code()


def _replace(module: fx.GraphModule, nodes: dict[str, fx.Node], call: Call, prefix: str) -> None:
    old = nodes[call.node.key]
    with module.graph.inserting_before(old):
        packed: list[fx.Node] = []
        for place, tensor in enumerate(call.kernel.packed):
            name = f"{prefix}_{place}"
            module.register_buffer(name, tensor)
            packed.append(module.graph.get_attr(name))
        activations = [nodes[key] for key in call.activations]
        new = module.graph.call_function(torch.ops.regraft_kernels.run.default, (activations, packed, call.kernel.key))
    new.meta.update(old.meta)
    old.replace_all_uses_with(new)
    module.graph.erase_node(old)
    nodes[call.node.key] = new
