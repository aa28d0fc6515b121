"""Calls of kernels in a captured PyTorch program: which nodes have one, and the operator that runs it.

A kernel is one opaque operator, `torch.ops.regraft_kernels.run`, which knows its types without running, so that
torch.compile and torch.export take the whole module. Its weights are buffers of the module, packed as it reads them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, fx

from regraft.backends.tvm.kernels.cpu import Compiled, CpuKernel, Operands, compile_kernel, cpu_kernels
from regraft.backends.tvm.kernels.cpu import _dense as dense
from regraft.backends.tvm.kernels.cpu._host import Host
from regraft.backends.tvm.kernels.cpu._kernel import result_like, run
from regraft.graph import Graph, Node, Value
from regraft.ops import Op, all_ops

_LIBRARY: Final = torch.library.Library("regraft_kernels", "DEF")  # its operators vanish when it is collected
_LIBRARY.define("run(Tensor[] activations, Tensor[] packed, str key) -> Tensor", tags=(torch.Tag.pt2_compliant_tag,))


def _run(activations: Sequence[Tensor], packed: Sequence[Tensor], key: str) -> Tensor:
    return run(key, activations, packed)


def _type(activations: Sequence[Tensor], packed: Sequence[Tensor], key: str) -> Tensor:
    del packed
    return result_like(key, activations)


_LIBRARY.impl("run", _run, "CPU")
_LIBRARY.impl("run", _type, "Meta")

_MATRIX: Final = 2
_NONE: Final = torch.zeros(1)


@dataclass(frozen=True)
class Call:
    """A node of the program that a kernel computes, and the keys of what varies."""

    node: Node
    kernel: Compiled
    activations: tuple[str, ...]


def planned_calls(graph: Graph, host: Host) -> list[Call]:
    """Return the calls of kernels for a whole graph of either kind: of structured ops, and of dense linear layers."""
    planned = [_planned(graph, node, host) for node in graph.nodes()]
    return [call for call in planned if isinstance(call, Call)]


def _planned(graph: Graph, node: Node, host: Host) -> Call | str:
    if node.op in all_ops():
        return call_of(graph, node, all_ops()[node.op], host)
    if node.native == "aten.linear.default":
        return _call(graph, node, dense.kernel, _named(node), {}, host)
    plain = node.native == "Gemm" and (node.attributes.get("alpha", 1.0), node.attributes.get("beta", 1.0)) == (1, 1)
    if node.native == "MatMul" or (plain and not node.attributes.get("transA", 0)):
        turned = () if node.attributes.get("transB", 0) else ("weight",)
        return _call(graph, node, dense.kernel, _named(node), {}, host, turned)
    return "no kernel computes it"


def _named(node: Node) -> dict[str, Value | None]:
    """The operands of a dense linear layer."""
    names: tuple[str, ...] = ("x", "weight", "bias")
    return dict(zip(names, node.inputs, strict=False))


def call_of(graph: Graph, node: Node, op: Op, host: Host | None = None) -> Call | str:
    """Return the call of a structured op's kernel, or why there is none."""
    kernel = cpu_kernels().get(op.name)
    if kernel is None:
        return "no kernel computes it"
    values = {operand.name: value for operand, value in zip(op.operands, node.inputs, strict=False)}
    attributes = {name: node.attributes[name] for name in op.attributes if name in node.attributes}
    turned = op.linear_weights if graph.kind == "onnx" else ()
    return _call(graph, node, kernel, values, attributes, host, turned)


def _call(
    graph: Graph,
    node: Node,
    kernel: CpuKernel,
    values: Mapping[str, Value | None],
    attributes: Mapping[str, Any],
    host: Host | None,
    turned: Sequence[str] = (),
) -> Call | str:
    """The call, or why there is none; `turned` weights are stored transposed."""
    constants: dict[str, Tensor] = {}
    varying = {name: value for name, value in values.items() if value is not None and name in kernel.activations}
    for name, value in values.items():
        if value is not None and name not in varying:
            constant = graph.constant(value)
            if constant is None:
                return f"{name} is no constant"
            constants[name] = constant.t() if name in turned and constant.dim() == _MATRIX else constant
    if kernel is dense.kernel and (constants["weight"].dim(), constants.get("bias", _NONE).dim()) != (_MATRIX, 1):
        return "weight must be a matrix, and bias one row"
    types = {name: getattr(torch, str(value.type.dtype)) for name, value in varying.items()}
    shapes = {name: _extents(value) for name, value in varying.items()}
    compiled = compile_kernel(kernel, Operands(constants, types, attributes, shapes), host=host)
    if isinstance(compiled, str):
        return compiled
    return Call(node, compiled, tuple(value.key for value in varying.values()))


def _extents(value: Value) -> tuple[int | None, ...]:
    return tuple(extent if isinstance(extent, int) else None for extent in value.type.shape or ())


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
        for place, tensor in enumerate(call.kernel.plan.packed):
            name = f"{prefix}_{place}"
            module.register_buffer(name, tensor)
            packed.append(module.graph.get_attr(name))
        activations = [nodes[key] for key in call.activations]
        new = module.graph.call_function(torch.ops.regraft_kernels.run.default, (activations, packed, call.kernel.key))
    new.meta.update(old.meta)
    old.replace_all_uses_with(new)
    module.graph.erase_node(old)
    nodes[call.node.key] = new
