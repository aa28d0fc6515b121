"""A captured PyTorch program whose structured ops run on kernels that TVM compiled for the CPU.

A kernel is one opaque operator, `torch.ops.regraft_kernels.run`, which knows its types without running, so that
torch.compile takes the whole module. Its weights are buffers of the module, packed as the kernel reads them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, fx, nn

from regraft.backends._kernel_use import KernelUse
from regraft.backends.tvm.kernels.cpu import Compiled, CpuKernel, Operands, compile_kernel, cpu_kernels
from regraft.backends.tvm.kernels.cpu._kernel import result_like, run
from regraft.errors import VerificationError
from regraft.frontends.torch import FxGraph
from regraft.frontends.torch.library import torch_op
from regraft.graph import Node
from regraft.ops import Op, all_ops

TOLERANCE: Final = 1e-3
"""Largest ‖y - ŷ‖ / ‖y‖ beside the composite form: a step of an 8-bit activation may fall to the other side."""

_LIBRARY: Final = torch.library.Library("regraft_kernels", "DEF")  # its operators vanish when it is collected
_LIBRARY.define("run(Tensor[] activations, Tensor[] packed, str key) -> Tensor", tags=(torch.Tag.pt2_compliant_tag,))


def _run(activations: Sequence[Tensor], packed: Sequence[Tensor], key: str) -> Tensor:
    return run(key, activations, packed)


def _type(activations: Sequence[Tensor], packed: Sequence[Tensor], key: str) -> Tensor:
    del packed
    return result_like(key, activations)


_LIBRARY.impl("run", _run, "CPU")
_LIBRARY.impl("run", _type, "Meta")


@dataclass(frozen=True)
class _Call:
    """A structured op of the program that a kernel computes."""

    node: Node
    kernel: Compiled
    activations: tuple[str, ...]


def with_kernels(graph: FxGraph) -> tuple[nn.Module, tuple[KernelUse, ...]]:
    """Return the program as a module whose structured ops run on kernels where one exists and fits, and which do.

    Each kernel is run once beside the composite form, on what the example inputs make of its operands.

    Raises:
        VerificationError: when a kernel does not compute what its op does.
        BackendError: when TVM cannot compile a kernel.
    """
    names = {str(torch_op(name)): op for name, op in all_ops().items()}
    found = [(node, names[node.native]) for node in graph.nodes() if node.native in names]
    planned = [(node, op, _planned(graph, node, op)) for node, op in found]
    calls = [call for _, _, call in planned if isinstance(call, _Call)]
    _verify(graph, calls)
    uses = tuple(_use(node, op, call) for node, op, call in planned)
    return _rewritten(graph, calls), uses


def _use(node: Node, op: Op, call: _Call | str) -> KernelUse:
    if isinstance(call, str):
        return KernelUse(node.key, node.scope, op.name, None, call)
    return KernelUse(node.key, node.scope, op.name, "tvm")


def _planned(graph: FxGraph, node: Node, op: Op) -> _Call | str:
    """The call of the kernel, or why there is none."""
    kernel = cpu_kernels().get(op.name)
    if kernel is None:
        return "no kernel computes it"
    operands = _operands(graph, node, op, kernel)
    if isinstance(operands, str):
        return operands
    compiled = compile_kernel(kernel, operands)
    if isinstance(compiled, str):
        return compiled
    values = dict(zip((operand.name for operand in op.operands), node.inputs, strict=False))
    varying = [values[name] for name in operands.activations]
    return _Call(node, compiled, tuple(value.key for value in varying if value is not None))


def _operands(graph: FxGraph, node: Node, op: Op, kernel: CpuKernel) -> Operands | str:
    constants: dict[str, Tensor] = {}
    activations: dict[str, torch.dtype] = {}
    shapes: dict[str, tuple[int | None, ...]] = {}
    for operand, value in zip(op.operands, node.inputs, strict=False):
        if value is None:
            continue
        if operand.name in kernel.activations:
            activations[operand.name] = getattr(torch, str(value.type.dtype))
            extents = value.type.shape or ()
            shapes[operand.name] = tuple(extent if isinstance(extent, int) else None for extent in extents)
            continue
        constant = graph.constant(value)
        if constant is None:
            return f"{operand.name} is no constant"
        constants[operand.name] = constant
    return Operands(constants, activations, _attributes(node, op), shapes)


def _attributes(node: Node, op: Op) -> Mapping[str, Any]:
    return {name: node.attributes[name] for name in op.attributes if name in node.attributes}


def _verify(graph: FxGraph, calls: Sequence[_Call]) -> None:
    """Raise VerificationError unless every kernel computes what its op does."""
    wanted = {key for call in calls for key in (*call.activations, call.node.outputs[0].key)}
    args, kwargs = graph.example_inputs
    given = {**dict(zip(graph.parameter_names, args, strict=False)), **kwargs}
    _, values = graph.run(given, sorted(wanted))
    for call in calls:
        exact = values[call.node.outputs[0].key].to(torch.float64)
        found = call.kernel(*(values[key] for key in call.activations)).to(torch.float64)
        error = float((found - exact).norm() / exact.norm().clamp_min(1e-30))
        if not error <= TOLERANCE:
            where = f"tvm kernel {call.node.op}: {call.node.scope or call.node.key} of {graph.name}"
            raise VerificationError(f"{where} is off by {error:.2g} of its size; at most {TOLERANCE:g} is allowed")


def _rewritten(graph: FxGraph, calls: Sequence[_Call]) -> nn.Module:
    module = graph.copy().module
    nodes = {node.name: node for node in module.graph.nodes}
    for place, call in enumerate(calls):
        _replace(module, nodes, call, f"kernel_{place}")
    module.graph.eliminate_dead_code()
    return fx.GraphModule(module, module.graph)  # which takes only what is read


def _replace(module: fx.GraphModule, nodes: dict[str, fx.Node], call: _Call, prefix: str) -> None:
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
