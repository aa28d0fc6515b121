"""Types of values that the file leaves out, by ONNX's shape inference; the model itself stays as it is."""

import onnx
import onnx_ir as ir

from regraft.frontends.onnx._check import skeleton
from regraft.frontends.onnx._tensors import value_type
from regraft.graph.types import TensorType


def infer_types(model: ir.Model) -> dict[str, TensorType]:
    """Return types of top-level values by name; nothing when the file says them all.

    Shape inference that fails leaves types unknown: it is no judge of whether a model runs.
    """
    results = [output for node in model.graph for output in node.outputs if output.name]
    if all(output.shape is not None and output.dtype is not None for output in results):
        return {}
    try:
        inferred = onnx.shape_inference.infer_shapes(skeleton(model), data_prop=True)
    except (onnx.shape_inference.InferenceError, RuntimeError):
        return {}
    values = [ir.serde.deserialize_value_info_proto(info, None) for info in inferred.graph.value_info]
    return {str(value.name): value_type(value) for value in values}
