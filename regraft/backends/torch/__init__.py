"""Runs a captured PyTorch model in PyTorch, eagerly."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from regraft.backends._signature import call_inputs, inputs_of, outputs_of
from regraft.errors import BackendError
from regraft.frontends.torch import FxGraph
from regraft.graph import Graph
from regraft.graph.snapshot import SnapshotValue


@dataclass(frozen=True, eq=False)
class TorchExecutable:
    """`Executable` over the captured module: returns what the model returns, without gradients."""

    module: nn.Module
    target: str
    inputs: Sequence[SnapshotValue]
    outputs: Sequence[SnapshotValue]
    device: torch.device
    graph: FxGraph
    backend: str = "torch"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run on inputs, which are moved to the target."""
        bound_args, bound_kwargs = self.graph.bind(call_inputs(self.graph.parameter_names, args, kwargs))
        moved = [_to(value, self.device) for value in bound_args]
        named = {name: _to(value, self.device) for name, value in bound_kwargs.items()}
        with torch.no_grad():
            return self.module(*moved, **named)


def compile(graph: Graph, target: str) -> TorchExecutable:
    """Return an executable for a graph that came from PyTorch.

    Raises:
        BackendError: for a graph from ONNX, or a target that is not there.
    """
    if not isinstance(graph, FxGraph):
        hint = "compile it with backend='onnxruntime'"
        raise BackendError("torch backend: runs models captured from PyTorch; got an ONNX graph", hint=hint)
    if target == "cuda" and not torch.cuda.is_available():
        raise BackendError("torch backend: target 'cuda' needs a GPU that torch can see; there is none")
    device = torch.device(target)
    # Copies of a graph share weights; moving those would move the model's own.
    module = graph.module if target == "cpu" else copy.deepcopy(graph.module).to(device)
    return TorchExecutable(module, target, inputs_of(graph), outputs_of(graph), device, graph)


def _to(value: Any, device: torch.device) -> Any:
    return value.to(device) if isinstance(value, torch.Tensor) else value
