"""A captured PyTorch program whose structured ops run on kernels that TVM compiled for the CPU."""

from collections.abc import Sequence
from typing import Final

import torch
from torch import fx, nn

from regraft.backends._kernel_use import KernelUse
from regraft.backends.tvm._calls import Call, apply_calls, call_of
from regraft.errors import VerificationError
from regraft.frontends.torch import FxGraph
from regraft.frontends.torch.library import torch_op
from regraft.graph import Node
from regraft.ops import Op, all_ops

TOLERANCE: Final = 1e-3
"""Largest ‖y - ŷ‖ / ‖y‖ beside the composite form: a step of an 8-bit activation may fall to the other side."""


def with_kernels(graph: FxGraph) -> tuple[nn.Module, tuple[KernelUse, ...]]:
    """Return the program as a module whose structured ops run on kernels where one exists and fits, and which do.

    Each kernel is run once beside the composite form, on what the example inputs make of its operands.

    Raises:
        VerificationError: when a kernel does not compute what its op does.
        BackendError: when TVM cannot compile a kernel.
    """
    names = {str(torch_op(name)): op for name, op in all_ops().items()}
    found = [(node, names[node.native]) for node in graph.nodes() if node.native in names]
    planned = [(node, op, call_of(graph, node, op)) for node, op in found]
    calls = [call for _, _, call in planned if isinstance(call, Call)]
    _verify(graph, calls)
    uses = tuple(_use(node, op, call) for node, op, call in planned)
    module = graph.copy().module
    apply_calls(module, calls)
    return fx.GraphModule(module, module.graph), uses  # which takes only what is read


def _use(node: Node, op: Op, call: Call | str) -> KernelUse:
    if isinstance(call, str):
        return KernelUse(node.key, node.scope, op.name, None, call)
    return KernelUse(node.key, node.scope, op.name, "tvm")


def _verify(graph: FxGraph, calls: Sequence[Call]) -> None:
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
