"""Checking a model with ONNX's own checker and shape inference, without reading its weights."""

import re
from typing import Final

import onnx
import onnx_ir as ir
from onnx.checker import ValidationError
from onnx.shape_inference import InferenceError

from regraft.errors import GraphError
from regraft.frontends.onnx._session import light_proto

_NODE: Final = re.compile(r"node(?: with)?,? ?(?:name|Name):? ?\(?([^)\s]+)", re.IGNORECASE)


def check_model(model: ir.Model, name: str) -> None:
    """Check a model's structure and types.

    Raises:
        GraphError: one line that names what is broken.
    """
    proto = skeleton(model)
    try:
        onnx.checker.check_model(proto, full_check=True)
    except (ValidationError, InferenceError) as error:
        raise GraphError(f"{name}: {_one_line(error)}") from error


def skeleton(model: ir.Model) -> onnx.ModelProto:
    """Return the model as a protobuf whose large weights are inputs: enough to check it and to infer types."""
    proto, lent = light_proto(model)
    graph = proto.graph
    small = [tensor for tensor in graph.initializer if tensor.name not in lent]
    inputs = {value.name for value in graph.input}
    for name, tensor in lent.items():
        if name not in inputs:
            shape = [int(extent) for extent in tensor.shape.numpy()]
            graph.input.append(onnx.helper.make_tensor_value_info(name, int(tensor.dtype), shape))
    del graph.initializer[:]
    graph.initializer.extend(small)
    return proto


def _one_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines)
