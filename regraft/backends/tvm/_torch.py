"""A captured PyTorch program whose structured ops run on kernels: TVM's for the CPU, TileLang's for a GPU."""

import copy
from collections.abc import Mapping, Sequence
from typing import Final

import torch
from torch import fx, nn

from regraft.backends._kernel_use import KernelUse
from regraft.backends.tvm._calls import Call, apply_calls, call_of
from regraft.backends.tvm._cuda import CudaMaker, Gpu, this_gpu
from regraft.backends.tvm._expected import expected_extents
from regraft.backends.tvm._maker import CpuMaker
from regraft.errors import OptionError, VerificationError
from regraft.frontends.torch import FxGraph
from regraft.frontends.torch.library import torch_op
from regraft.graph import Node
from regraft.ops import Op, all_ops
from regraft.tune import Content, Records

TOLERANCES: Final[Mapping[torch.dtype, float]] = {torch.float16: 5e-3, torch.bfloat16: 4e-2}
"""Largest ‖y - ŷ‖ / ‖y‖ beside the composite form in 16-bit floats: both round, each at other places."""
TOLERANCE: Final = 1e-3
"""The same in other floats: a step of an 8-bit activation may fall to the other side."""
STEP_TOLERANCE: Final = 5e-2
"""The same where CUDA kernels take other steps of 8-bit activations than the composite form: one for each row."""
_STEPS: Final = ("int8_linear", "int8_outlier_linear", "int8_topk_linear", "shift_linear")


def with_kernels_on(
    graph: FxGraph, target: str, records: Records | None = None
) -> tuple[nn.Module, tuple[KernelUse, ...]]:
    """Return the program on kernels for a target; see `regraft.backends.tvm.with_kernels`."""
    if records is None:
        return with_kernels(graph, None if target == "cpu" else this_gpu())
    if target != "cpu":
        raise OptionError("torch backend: records are of kernels for the CPU; those for a GPU are not tuned yet")
    return with_kernels(graph, None, records.read())


def with_kernels(
    graph: FxGraph, gpu: Gpu | None = None, records: Content | None = None
) -> tuple[nn.Module, tuple[KernelUse, ...]]:
    """Return the program as a module whose structured ops run on kernels where one exists and fits, and which do.

    Each kernel is run once beside the composite form, on what the example inputs make of its operands.

    Args:
        graph: the program; not changed.
        gpu: where it runs; the CPU when None.
        records: of tuning, from which the CPU's tiles are taken.

    Raises:
        VerificationError: when a kernel does not compute what its op does.
        BackendError: when TVM cannot compile a kernel.
    """
    names = {str(torch_op(name)): op for name, op in all_ops().items()}
    found = [(node, names[node.native]) for node in graph.nodes() if node.native in names]
    maker, expected = CpuMaker(records=records) if gpu is None else CudaMaker(gpu), expected_extents(graph)
    planned = [(node, op, call_of(graph, node, op, maker, expected)) for node, op in found]
    calls = [call for _, _, call in planned if isinstance(call, Call)]
    _verify(graph, calls, gpu)
    uses = tuple(_use(node, op, call) for node, op, call in planned)
    # Copies of a graph share weights; moving those would move the model's own.
    module = graph.copy().module if gpu is None else copy.deepcopy(graph.module)
    apply_calls(module, calls)
    kept = fx.GraphModule(module, module.graph)  # which takes only what is read
    return kept if gpu is None else kept.to(gpu.device), uses


def _use(node: Node, op: Op, call: Call | str) -> KernelUse:
    if isinstance(call, str):
        return KernelUse(node.key, node.scope, op.name, None, call)
    return KernelUse(node.key, node.scope, op.name, "tvm", tuned=getattr(call.kernel, "tuned", False))


def _verify(graph: FxGraph, calls: Sequence[Call], gpu: Gpu | None) -> None:
    """Raise VerificationError unless every kernel computes what its op does."""
    wanted = {key for call in calls for key in (*call.activations, call.node.outputs[0].key)}
    args, kwargs = graph.example_inputs
    given = {**dict(zip(graph.parameter_names, args, strict=False)), **kwargs}
    _, values = graph.run(given, sorted(wanted))
    for call in calls:
        exact = values[call.node.outputs[0].key]
        given = [values[key] if gpu is None else values[key].to(gpu.device) for key in call.activations]
        found = call.kernel(*given).to("cpu", torch.float64)
        error = float((found - exact.to(torch.float64)).norm() / exact.to(torch.float64).norm().clamp_min(1e-30))
        allowed = _allowed(call, exact.dtype, gpu)
        if not error <= allowed:
            where = f"tvm kernel {call.node.op}: {call.node.scope or call.node.key} of {graph.name}"
            raise VerificationError(f"{where} is off by {error:.2g} of its size; at most {allowed:g} is allowed")


def _allowed(call: Call, dtype: torch.dtype, gpu: Gpu | None) -> float:
    found = TOLERANCES.get(dtype, TOLERANCE)
    return max(found, STEP_TOLERANCE) if gpu is not None and call.node.op in _STEPS else found
