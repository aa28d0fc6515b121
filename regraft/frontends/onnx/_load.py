"""Loading ONNX models (first slice)."""

import os
from pathlib import Path
import onnx
import onnx_ir as ir
from regraft.frontends.onnx._graph import OnnxGraph


def load(source: "str | os.PathLike[str] | onnx.ModelProto | ir.Model") -> OnnxGraph:
    """Load."""
    if isinstance(source, ir.Model):
        return OnnxGraph(source.clone(), name=source.graph.name or "model")
    if isinstance(source, onnx.ModelProto):
        return OnnxGraph(ir.from_proto(source).clone(), name=source.graph.name or "model")
    path = Path(source)
    return OnnxGraph(ir.load(path.absolute()), name=path.name, path=path)
