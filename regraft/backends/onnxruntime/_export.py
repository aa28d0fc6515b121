"""Writing a graph as an ONNX file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, cast

from regraft.backends.onnxruntime._from_torch import DEFAULT_OPSET, OLDEST_OPSET, to_onnx
from regraft.backends.onnxruntime._spelling import fused_attention, respell
from regraft.errors import OptionError
from regraft.frontends.onnx import OnnxGraph, save
from regraft.frontends.onnx._opset import OLDEST, newest_opset
from regraft.frontends.torch import FxGraph
from regraft.graph import Graph

Functions = Literal["keep", "inline"]
Target = Literal["onnxruntime"]


def export_graph(
    graph: Graph,
    path: Path,
    *,
    opset: int | None,
    functions: Functions,
    metadata: Mapping[str, str],
    target: Target | None = None,
) -> Path:
    """Write a graph; see `Optimized.export`."""
    if functions not in ("keep", "inline"):
        raise OptionError(f"functions must be 'keep' or 'inline'; got {functions!r}")
    if target not in (None, "onnxruntime"):
        raise OptionError(f"target must be 'onnxruntime', or None for any runtime; got {target!r}")
    native = as_onnx(graph, opset)
    if target is None:
        save(native, path, opset=opset, functions=functions, metadata=metadata)
    else:
        fused = fused_attention(native)
        save(fused, path, opset=opset, functions=functions, metadata=metadata, respell=respell)
    return path


def check_opset(opset: int | None, *, from_torch: bool) -> None:
    """Raise OptionError for an opset at which no model that came from PyTorch, or from ONNX, can be written."""
    oldest, kind = (OLDEST_OPSET, "a PyTorch") if from_torch else (OLDEST, "an ONNX")
    if opset is not None and not (isinstance(cast(Any, opset), int) and oldest <= opset <= newest_opset()):
        raise OptionError(f"opset must be from {oldest} to {newest_opset()} for {kind} model; got {opset!r}")


def as_onnx(graph: Graph, opset: int | None = None) -> OnnxGraph:
    """Return the graph itself when it is ONNX, else its translation.

    Raises:
        OptionError: for an opset that it cannot be written at.
        ExportError: when an operator has no ONNX form.
    """
    check_opset(opset, from_torch=isinstance(graph, FxGraph))
    if isinstance(graph, FxGraph):
        return to_onnx(graph, DEFAULT_OPSET if opset is None else opset)
    assert isinstance(graph, OnnxGraph)
    return graph
