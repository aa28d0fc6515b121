"""Another opset for a model: node by node, so that a node that means the same in both stays exactly as it is.

Only nodes whose schema changed between the two versions go through onnx's converter, each as a model of its own; the
functions of structured ops are made anew.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import onnx
import onnx_ir as ir
from onnx.checker import ValidationError
from onnx.defs import OpSchema

from regraft.errors import ExportError
from regraft.frontends.onnx._attributes import plain
from regraft.frontends.onnx._builder import CAST_LIKE_SINCE
from regraft.frontends.onnx._canonical import DOMAIN, structured_op
from regraft.frontends.onnx._functions import FUNCTIONS_SINCE_IR, Values, function_for
from regraft.frontends.onnx._index import bodies
from regraft.frontends.onnx._infer import infer_types
from regraft.frontends.onnx._opset import OLDEST, default_opset, newest_opset, schema_of
from regraft.frontends.onnx._tensors import dtype_label
from regraft.frontends.onnx._views import constant_of
from regraft.graph.escape import escape
from regraft.graph.types import TensorType

_SMALL: Final = 4096  # elements: axes, shapes and the like, which some converters turn into attributes
_BODIES: Final = frozenset({"If", "Loop", "Scan"})  # between opsets only the types that they take changed
_OTHER_MEANING: Final = frozenset({"GroupNormalization"})  # scale and bias of each group, then of each channel


def convert_opset(model: ir.Model, opset: int, name: str) -> None:
    """Change a model to another version of the default domain.

    Args:
        model: changed in place.
        opset: from 13 up to the newest that the installed onnx knows.
        name: what the model is called in messages.

    Raises:
        ExportError: when an operator cannot be expressed in that version; the model is then half converted.
    """
    if not OLDEST <= opset <= newest_opset():
        raise ExportError(f"{name}: opset must be from {OLDEST} to {newest_opset()}; got {opset}")
    before = default_opset(model)
    types = infer_types(model) if opset < CAST_LIKE_SINCE else {}
    _convert_graph(model.graph, before, opset, name)
    for function in model.functions.values():
        if function.domain != DOMAIN:
            _convert_function(function, opset, name)
    _remake_functions(model, opset, types)
    _set_opset(model.opset_imports, opset)
    minimum = onnx.helper.find_min_ir_version_for([onnx.helper.make_opsetid("", opset)])
    model.ir_version = max(model.ir_version or 0, minimum, FUNCTIONS_SINCE_IR if model.functions else 0)


def _set_opset(imports: dict[str, int], opset: int) -> None:
    imports["ai.onnx" if "ai.onnx" in imports else ""] = opset


def _convert_function(function: ir.Function, opset: int, name: str) -> None:
    before = function.opset_imports.get("", function.opset_imports.get("ai.onnx", 0))
    if before:
        _convert_graph(
            function.graph, before, opset, f"{name}: function {escape(function.domain)}::{escape(function.name)}"
        )
        _set_opset(function.opset_imports, opset)


def _convert_graph(graph: ir.Graph, before: int, after: int, name: str) -> None:
    for node in list(graph):
        for _, body in bodies(node):
            _convert_graph(body, before, after, name)
        if node.domain == "" and node.op_type not in _BODIES and _changes(node, before, after, name):
            _convert_node(graph, node, before, after, name)


def _changes(node: ir.Node, before: int, after: int, name: str) -> bool:
    """Whether the operator's definition changed between the two versions, by more than the types that it takes."""
    old, new = schema_of(node.op_type, before), schema_of(node.op_type, after)
    if old is None:  # an operator of somebody else's
        return False
    if new is None:
        raise ExportError(f"{name}: {_label(node)} does not exist in opset {after}")
    return old.since_version != new.since_version and _signature(old) != _signature(new)


def _label(node: ir.Node) -> str:
    return f"node {node.name!r} ({escape(node.op_type)})"


def _convert_node(graph: ir.Graph, node: ir.Node, before: int, after: int, name: str) -> None:
    proto, sources = _alone(node, before)
    try:
        converted = onnx.version_converter.convert_version(proto, after)
    except (RuntimeError, ValidationError) as error:
        if _means_the_same(node, before, after):
            return
        reason = str(error).strip().split("\n", maxsplit=1)[0].split("failed: ")[-1]
        raise ExportError(f"{name}: {_label(node)} cannot be converted to opset {after}: {reason}") from error
    new_nodes, results = _spliced(converted.graph, sources, [f"o{place}" for place in range(len(node.outputs))])
    main = next((new for new in reversed(new_nodes) if new.op_type == node.op_type), new_nodes[-1])
    main.name, main.doc_string = node.name, node.doc_string
    for new in new_nodes:
        new.metadata_props.update(node.metadata_props)
    ir.convenience.replace_nodes_and_values(graph, node, [node], new_nodes, node.outputs, results)
    for value in sources.values():
        if value.is_initializer() and not value.uses() and not value.is_graph_input() and value.graph is not None:
            value.graph.initializers.pop(str(value.name))


def _signature(schema: OpSchema) -> tuple[object, ...]:
    """Operands, results and attributes of an operator, without the element types."""
    attributes = {name: _default(attribute) for name, attribute in schema.attributes.items()}
    return _operands(schema.inputs), _operands(schema.outputs), sorted(attributes.items())


def _operands(parameters: Sequence[OpSchema.FormalParameter]) -> tuple[tuple[str, str], ...]:
    return tuple((parameter.name, str(parameter.option)) for parameter in parameters)


def _default(attribute: OpSchema.Attribute) -> bytes:
    return attribute.default_value.SerializeToString() + bytes([attribute.required])


def _means_the_same(node: ir.Node, before: int, after: int) -> bool:
    """Whether the two versions differ only in attributes that the node does not have; onnx lacks some converters."""
    old, new = schema_of(node.op_type, before), schema_of(node.op_type, after)
    if old is None or new is None or node.op_type in _OTHER_MEANING:
        return False
    of_old, of_new = ({name: _default(one) for name, one in schema.attributes.items()} for schema in (old, new))
    differing = {name for name in of_old | of_new if of_old.get(name) != of_new.get(name)}
    same_operands = (_operands(old.inputs), _operands(old.outputs)) == (_operands(new.inputs), _operands(new.outputs))
    only_added = all(name not in of_old or name not in of_new for name in differing)
    return same_operands and only_added and not differing & set(node.attributes)


def _alone(node: ir.Node, opset: int) -> tuple[onnx.ModelProto, dict[str, ir.Value]]:
    """The node as a model with inputs "i0", "i1", ... and outputs "o0", ...; what the inputs stand for."""
    sources = {f"i{place}": value for place, value in enumerate(node.inputs) if value is not None}
    proto = ir.to_proto(node)
    proto.input[:] = [f"i{place}" if value is not None else "" for place, value in enumerate(node.inputs)]
    proto.output[:] = [f"o{place}" if value.name else "" for place, value in enumerate(node.outputs)]
    initializers = [_initializer(key, value) for key, value in sources.items() if _is_small_constant(value)]
    constant = {tensor.name for tensor in initializers}
    inputs = [_info(key, value) for key, value in sources.items() if key not in constant]
    outputs = [_info(f"o{place}", value) for place, value in enumerate(node.outputs) if value.name]
    graph = onnx.helper.make_graph([proto], "node", inputs, outputs, initializers)
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)]), sources


def _is_small_constant(value: ir.Value) -> bool:
    stored = constant_of(value)
    return stored is not None and stored.size <= _SMALL and stored.dtype != ir.DataType.STRING


def _initializer(name: str, value: ir.Value) -> onnx.TensorProto:
    stored = constant_of(value)
    assert stored is not None, "only constants are asked for"
    return ir.to_proto(ir.tensor(stored.numpy(), dtype=stored.dtype, name=name))


def _info(name: str, value: ir.Value) -> onnx.ValueInfoProto:
    info = onnx.ValueInfoProto(name=name)
    if value.type is not None:
        ir.serde.serialize_value_into(info, ir.Value(name=name, type=value.type, shape=value.shape))
    return info


def _spliced(
    graph: onnx.GraphProto, sources: dict[str, ir.Value], outputs: Sequence[str]
) -> tuple[list[ir.Node], list[ir.Value]]:
    """The converted nodes over the original operands; tensors that the converter added are Constant nodes."""
    values = dict(sources)
    nodes: list[ir.Node] = []
    for tensor in graph.initializer:
        if tensor.name not in sources:
            nodes.append(ir.node("Constant", [], {"value": ir.from_proto(tensor)}))
            values[tensor.name] = nodes[-1].outputs[0]
    for proto in graph.node:
        inputs = [values[name] if name else None for name in proto.input]
        attributes = [ir.from_proto(attribute) for attribute in proto.attribute]
        node = ir.Node(proto.domain, proto.op_type, inputs, attributes, num_outputs=len(proto.output))
        values |= {name: value for name, value in zip(proto.output, node.outputs, strict=True) if name}
        nodes.append(node)
    absent = (ir.Value(name="") for _ in outputs)
    return nodes, [values.get(name, blank) for name, blank in zip(outputs, absent, strict=True)]


def _remake_functions(model: ir.Model, opset: int, types: Mapping[str, TensorType]) -> None:
    """Make the functions of structured ops anew, each for the calls that it has; `types` are what the file omits."""
    old = [identifier for identifier in model.functions if identifier[0] == DOMAIN]
    remade: dict[ir.OperatorIdentifier, ir.Function] = {}
    for node in _calls(model, old):
        structured = structured_op(node.op_type)
        if structured is None:
            continue
        op, absent = structured
        names = [operand.name for operand in op.operands if operand.name not in absent]
        labels = {name: _dtype(value, types) for name, value in zip(names, node.inputs, strict=True) if value}
        dtypes = {name: label for name, label in labels.items() if label is not None}
        function = function_for(op, frozenset(names), opset, _values(node), dtypes)
        node.op_type = function.name
        remade[function.identifier()] = function
    for identifier in old:
        if structured_op(identifier[1]) is not None:
            del model.functions[identifier]
        else:
            _convert_function(model.functions[identifier], opset, model.graph.name or "model")
    model.functions.update(remade)


def _dtype(value: ir.Value, types: Mapping[str, TensorType]) -> str | None:
    return dtype_label(value.dtype) or types.get(str(value.name), TensorType()).dtype


def _calls(model: ir.Model, identifiers: Sequence[ir.OperatorIdentifier]) -> Iterable[ir.Node]:
    return [node for node in model.graph.all_nodes() if node.op_identifier() in identifiers]


def _values(node: ir.Node) -> Values:
    plain_ones = {name: plain(attribute) for name, attribute in node.attributes.items()}
    return {name: value for name, value in plain_ones.items() if isinstance(value, int | float | str)}
