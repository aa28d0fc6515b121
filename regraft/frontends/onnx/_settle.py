"""Conversions "to the type of that value" made plain where the type is known, as runtimes fuse only plain ones.

The functions of structured ops hold for several element types. Once one is inlined, its types are those of the model.
"""

from collections.abc import Mapping

import onnx_ir as ir

from regraft.frontends.onnx._infer import infer_types
from regraft.frontends.onnx._tensors import onnx_dtype
from regraft.frontends.onnx._views import constant_of
from regraft.graph.types import TensorType


def settle_types(model: ir.Model) -> None:
    """Turn CastLike into Cast, and that of a constant into a constant, wherever the element type is known.

    Args:
        model: changed in place, at its top level.
    """
    nodes = [node for node in model.graph if node.op_type == "CastLike" and node.domain == ""]
    types = infer_types(model) if nodes else {}
    for node in nodes:
        dtype = _dtype(node.inputs[1], types)
        if dtype is not None:
            _replace(model.graph, node, dtype)


def _dtype(like: ir.Value | None, types: Mapping[str, TensorType]) -> ir.DataType | None:
    if like is None or like.dtype is not None:
        return None if like is None else like.dtype
    known = types.get(str(like.name))
    return None if known is None or known.dtype is None else onnx_dtype(known.dtype)


def _replace(graph: ir.Graph, node: ir.Node, dtype: ir.DataType) -> None:
    operand = node.inputs[0]
    content = None if operand is None else constant_of(operand)
    if content is not None and content.size == 1:
        plain = ir.node("Constant", [], {"value": ir.tensor(content.numpy().astype(dtype.numpy()))}, name=node.name)
    else:
        plain = ir.node("Cast", [operand], {"to": int(dtype)}, name=node.name)
    old, new = node.outputs[0], plain.outputs[0]
    new.name, new.type, new.shape = old.name, old.type, old.shape
    ir.convenience.replace_nodes_and_values(graph, node, [node], [plain], [old], [new])
