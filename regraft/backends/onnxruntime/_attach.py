"""Turning the opaque nodes of torch's exporter into calls of functions that any runtime can run."""

from collections.abc import Mapping

import onnx_ir as ir
from torch import Tensor

from regraft.errors import ExportError
from regraft.frontends.onnx import DOMAIN, VERSION, dtype_label, function_for, to_torch, weight_value
from regraft.ops import AttributeValue, Op, all_ops


def attach_functions(model: ir.Model) -> None:
    """Give every node of the domain "regraft" its function, and store its weights as the function wants them.

    Args:
        model: changed in place; its nodes have the operands in the order of the op, absent ones left out or empty.

    Raises:
        ExportError: when a weight that must be stored transposed is no constant.
    """
    ops = {op.onnx_name: op for op in all_ops().values()}
    opset = model.opset_imports[""]
    for node in [node for node in model.graph if node.domain == DOMAIN]:
        op = ops[node.op_type]
        names = [operand.name for operand in op.operands]
        given = {name: value for name, value in zip(names, node.inputs, strict=False) if value is not None}
        inputs = [_stored(model, op, name, value) for name, value in given.items()]
        attributes = {name: _value(node, name) for name in op.attributes}
        present = frozenset(operand.name for operand in op.operands if operand.optional and operand.name in given)
        function = function_for(op, present, opset, attributes, _dtypes(given))
        model.functions[function.identifier()] = function
        model.opset_imports[DOMAIN] = VERSION
        _call(node, function, inputs)
    _drop_unread(model)


def _stored(model: ir.Model, op: Op, name: str, value: ir.Value) -> ir.Value:
    if name not in op.linear_weights:
        return value
    content = value.const_value
    if content is None:
        raise ExportError(f"{op.name}: operand {name} ({value.name}) must be a weight, it is computed")
    tensor: Tensor | None = to_torch(content)
    if tensor is None:
        raise ExportError(f"{op.name}: operand {name} ({value.name}) has an element type that cannot be transposed")
    if value.name is None:
        raise ExportError(f"{op.name}: operand {name} has no name")
    turned = weight_value(op, name, tensor, value.name)
    known = model.graph.initializers.get(value.name)
    if known is not None and known is not value and known.shape == turned.shape:
        return known
    model.graph.initializers.pop(value.name, None)
    model.graph.initializers.add(turned)
    return turned


def _value(node: ir.Node, name: str) -> AttributeValue:
    value = node.attributes[name].value
    assert isinstance(value, int | float | str), "attributes of ops are numbers or texts"
    return value


def _dtypes(values: Mapping[str, ir.Value]) -> dict[str, str]:
    labels = {name: dtype_label(value.dtype) for name, value in values.items()}
    return {name: label for name, label in labels.items() if label is not None}


def _call(node: ir.Node, function: ir.Function, inputs: list[ir.Value]) -> None:
    """Put a call of the function in the node's place; its name, metadata and output stay."""
    graph = node.graph
    assert graph is not None, "the node is in the graph"
    call = ir.node(function.name, inputs, attributes=dict(node.attributes), domain=DOMAIN, name=node.name)
    call.metadata_props.update(node.metadata_props)
    old, new = node.outputs[0], call.outputs[0]
    new.name, new.type, new.shape = old.name, old.type, old.shape
    ir.convenience.replace_nodes_and_values(graph, node, [node], [call], [old], [new])


def _drop_unread(model: ir.Model) -> None:
    for name, value in list(model.graph.initializers.items()):
        if not value.uses() and not value.is_graph_output():
            del model.graph.initializers[name]
