"""From whatever a user calls a model to a graph."""

import os
from pathlib import Path
from typing import Any

import onnx
import onnx_ir
import torch
from torch import nn

from regraft.errors import ModelTypeError
from regraft.frontends import onnx as onnx_frontend
from regraft.frontends import torch as torch_frontend
from regraft.graph import Graph
from regraft.result import Optimized


def to_graph(model: Any, *, example_inputs: Any = None, dynamic_shapes: Any = "auto") -> Graph:
    """Return the graph of a model; arguments as in `optimize`.

    Raises:
        ModelTypeError: for anything that is no model.
        CaptureError, ModelFileError, ModelNotFoundError, InputError: when it cannot be read.
    """
    if isinstance(model, Optimized):
        return model.graph
    if isinstance(model, nn.Module | torch.export.ExportedProgram):
        return torch_frontend.capture(model, example_inputs, dynamic_shapes)
    if isinstance(model, onnx.ModelProto | onnx_ir.Model):
        return onnx_frontend.load(model)
    if isinstance(model, str | os.PathLike):
        return onnx_frontend.load(_onnx_path(Path(model)))
    needed = "an nn.Module, ExportedProgram, GraphModule, ModelProto, onnx_ir.Model or the path of an .onnx file"
    raise ModelTypeError(f"a model must be {needed}; got {type(model).__module__}.{type(model).__qualname__}")


def _onnx_path(path: Path) -> Path:
    if path.suffix == ".onnx" or not path.suffix or path.exists():
        return path
    hint = "load a PyTorch model in Python and pass the module" if path.suffix in (".pt", ".pth", ".bin") else None
    raise ModelTypeError(f"{path}: a model file must be an .onnx file; got {path.suffix!r}", hint=hint)
