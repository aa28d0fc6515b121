"""Checking a model with ONNX's own checker and shape inference, without reading its weights."""

import onnx
import onnx_ir as ir
from onnx.checker import ValidationError
from onnx.shape_inference import InferenceError

from regraft.errors import GraphError
from regraft.frontends.onnx._session import light_proto
from regraft.graph.escape import escape


def check_model(model: ir.Model, name: str) -> None:
    """Check a model's structure and types.

    Raises:
        GraphError: one line that names what is broken.
    """
    try:
        onnx.checker.check_model(_with_shaped_outputs(skeleton(model)), full_check=True)
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


def _with_shaped_outputs(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The checker wants every output to have a shape, and many good models leave it out.

    Shapes are inferred; an output that stays without one is not shown to the checker (its node is).
    """
    if all(_has_shape(output) for output in proto.graph.output):
        return proto
    inferred = onnx.shape_inference.infer_shapes(proto, data_prop=True)
    kept = [output for output in inferred.graph.output if _has_shape(output)]
    del proto.graph.output[:]
    proto.graph.output.extend(kept)
    return proto


def _has_shape(value: onnx.ValueInfoProto) -> bool:
    return value.type.WhichOneof("value") != "tensor_type" or value.type.tensor_type.HasField("shape")


def _one_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return escape(" ".join(lines))
