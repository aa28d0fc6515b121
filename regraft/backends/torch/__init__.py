"""Runs a captured PyTorch model in PyTorch, eagerly; its structured ops can run on kernels of our own."""

import copy
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import nn

from regraft.backends._kernel_use import KernelUse
from regraft.backends._signature import call_inputs, inputs_of, outputs_of
from regraft.backends.tvm import with_kernels
from regraft.errors import BackendError, OptionError
from regraft.frontends.torch import FxGraph
from regraft.graph import Graph
from regraft.graph.snapshot import SnapshotValue
from regraft.tune import Records

KERNELS: Final = (None, "tvm")
"""What structured ops can run on: PyTorch's own operators, or kernels compiled by TVM (for a GPU, by TileLang)."""


@dataclass(frozen=True, eq=False)
class TorchExecutable:
    """`Executable` over the captured module: returns what the model returns, without gradients.

    Attributes:
        kernels: each structured op and what it runs on; empty when no kernels were asked for.
    """

    module: nn.Module
    target: str
    inputs: Sequence[SnapshotValue]
    outputs: Sequence[SnapshotValue]
    device: torch.device
    graph: FxGraph
    backend: str = "torch"
    kernels: tuple[KernelUse, ...] = ()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run on inputs, which are moved to the target."""
        bound_args, bound_kwargs = self.graph.bind(call_inputs(self.graph.parameter_names, args, kwargs))
        moved = [_to(value, self.device) for value in bound_args]
        named = {name: _to(value, self.device) for name, value in bound_kwargs.items()}
        with torch.no_grad():
            return self.module(*moved, **named)


def compile(
    graph: Graph, target: str, *, kernels: str | None = None, records: str | os.PathLike[str] | None = None
) -> TorchExecutable:
    """Return an executable for a graph that came from PyTorch.

    Args:
        graph: what to run.
        target: "cpu" or "cuda".
        kernels: "tvm" runs structured ops on kernels that are compiled for this processor or GPU, where one exists and
            fits, each checked on the example inputs; the executable's `kernels` say which. None: as PyTorch's
            operators. On a GPU each op has a kernel for as many rows as the example inputs have, and one for few rows.

        records: of `regraft tune` or `Optimized.tune`; kernels of a key that they hold take the tiles of its best
            trial, all others the default ones. For the CPU.

    Raises:
        OptionError: for other kernels, or records without kernels.
        BackendError: for a graph from ONNX, a target that is not there, or a GPU that there are no kernels for.
        MissingExtraError: when what compiles the kernels is not installed.
        VerificationError: when a kernel does not compute what its op does.
    """
    if kernels not in KERNELS:
        raise OptionError(f"torch backend: kernels must be one of {', '.join(map(repr, KERNELS))}; got {kernels!r}")
    if records is not None and kernels is None:
        raise OptionError("torch backend: records are for kernels='tvm', which was not asked for")
    if not isinstance(graph, FxGraph):
        hint = "compile it with backend='onnxruntime'"
        raise BackendError("torch backend: runs models captured from PyTorch; got an ONNX graph", hint=hint)
    if target == "cuda" and not torch.cuda.is_available():
        raise BackendError("torch backend: target 'cuda' needs a GPU that torch can see; there is none")
    device = torch.device(target)
    described = target, inputs_of(graph), outputs_of(graph), device, graph
    if kernels is not None:
        module, uses = with_kernels(graph, target, None if records is None else Records(records))
        return TorchExecutable(module, *described, kernels=uses)
    # Copies of a graph share weights; moving those would move the model's own.
    module = graph.module if target == "cpu" else copy.deepcopy(graph.module).to(device)
    return TorchExecutable(module, *described)


def _to(value: Any, device: torch.device) -> Any:
    return value.to(device) if isinstance(value, torch.Tensor) else value
