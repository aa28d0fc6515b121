"""Exporting a captured program again, for a backend that reads what torch.export makes."""

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx
from torch.export import ExportedProgram

from regraft.errors import ExportError
from regraft.frontends.torch import TURNS, FxGraph


def export_again(
    graph: FxGraph,
    instead: Mapping[Any, Callable[..., Any]] | None = None,
    rewrite: Callable[[fx.GraphModule], None] | None = None,
) -> ExportedProgram:
    """Return the program as torch.export makes it, its symbolic dims free.

    Args:
        graph: captured from PyTorch; not changed.
        instead: functions that are traced in the place of operators.
        rewrite: changes a copy of the program before that.

    Raises:
        ExportError: when torch cannot trace it again.
    """
    args, kwargs = graph.example_inputs
    module = _with_copies(graph)
    if rewrite is not None:
        rewrite(module)
    for node in module.graph.nodes:
        node.target = (instead or {}).get(node.target, node.target) if node.op == "call_function" else node.target
    module.recompile()
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.export.export(module, args, kwargs, dynamic_shapes=graph.dynamic_shapes)
    except (RuntimeError, ValueError, TypeError) as error:
        raise ExportError(f"{graph.name} cannot be exported again: {first_line(error)}") from error


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message that says something, else its kind."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def _with_copies(graph: FxGraph) -> fx.GraphModule:
    """The program with what is turned and then viewed copied in between; ONNX has no strides, its files stay the same.

    Exporters take attention apart, and the parts leave another order in memory than the whole did: a view that was
    traced on the whole does not exist any more.
    """
    module = graph.copy().module
    for view in module.graph.find_nodes(op="call_function", target=torch.ops.aten.reshape.default):
        turned = view.args[0]
        if turned.target in TURNS:
            with module.graph.inserting_before(view):
                copied = module.graph.call_function(
                    torch.ops.aten.clone.default, (turned,), {"memory_format": torch.contiguous_format}
                )
            copied.meta.update(turned.meta)
            view.replace_input_with(turned, copied)
    return module
