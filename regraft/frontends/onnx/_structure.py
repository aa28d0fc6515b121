"""What every model must be before it is looked at: names defined once, values defined before use, no cycle.

Checked on the protobuf, where the mistakes still are: the native form has no place for some of them.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from graphlib import CycleError, TopologicalSorter
from typing import Final

import onnx
import onnx_ir as ir
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from regraft.errors import ModelFileError
from regraft.frontends.onnx._index import bodies, items
from regraft.frontends.onnx._opset import schema_of
from regraft.graph.escape import escape

_FIELDS: Final = ("float_data", "int32_data", "int64_data", "double_data", "uint64_data")
_DTYPES: Final = frozenset(int(dtype) for dtype in ir.DataType if dtype != ir.DataType.UNDEFINED)
_COMPLEX: Final = (onnx.TensorProto.COMPLEX64, onnx.TensorProto.COMPLEX128)


def check_proto(proto: onnx.ModelProto, name: str) -> None:
    """Check names and stored tensors of a parsed model.

    Raises:
        ModelFileError: one line that names what is wrong.
    """
    _check_text(proto, name)
    _check_graph(proto.graph, [], name)
    for function in proto.functions:
        label = f"{name}: function {escape(function.domain)}::{escape(function.name)}"
        defined = _defined(label, [*function.input], function.node)
        _check_nodes(function.node, [defined], label)
        _check_outputs(function.output, defined, label)


def _check_text(message: Message, name: str) -> None:
    """Names must be UTF-8: protobuf hands out bytes where they are not, which nothing further on expects."""
    if isinstance(message, onnx.TensorProto):  # not its content, which may be gigabytes
        fields = [
            message.name,
            message.doc_string,
            *(part for entry in message.external_data for part in (entry.key, entry.value)),
        ]
        found = any(isinstance(text, bytes) for text in fields)
    else:
        found = False
        for descriptor, value in message.ListFields():
            values = value if descriptor.is_repeated else [value]
            if descriptor.type == FieldDescriptor.TYPE_MESSAGE:
                for inner in values:
                    _check_text(inner, name)
            elif descriptor.type == FieldDescriptor.TYPE_STRING:
                found = found or any(isinstance(text, bytes) for text in values)
    if found:
        raise ModelFileError(f"{name}: a name in the model is no UTF-8 text ({type(message).__name__})")


def _check_graph(graph: onnx.GraphProto, around: Sequence[set[str]], name: str) -> None:
    if graph.sparse_initializer:
        raise ModelFileError(f"{name}: sparse initializers are not supported; the graph has some")
    initializers = [tensor.name for tensor in graph.initializer]
    _check_distinct(initializers, f"{name}: initializer")
    inputs = [value.name for value in graph.input]
    stored = [one for one in initializers if one not in set(inputs)]
    defined = _defined(name, [*inputs, *stored], graph.node)
    for tensor in graph.initializer:
        _check_tensor(tensor, f"{name}: initializer {tensor.name!r}")
    _check_nodes(graph.node, [*around, defined], name)
    _check_outputs([value.name for value in graph.output], defined, name)


def _defined(label: str, given: Sequence[str], nodes: Iterable[onnx.NodeProto]) -> set[str]:
    results = [output for node in nodes for output in node.output if output]
    names = [*given, *results]
    _check_distinct(names, f"{label}: value")
    return set(names)


def _check_distinct(names: Sequence[str], label: str) -> None:
    if "" in names:
        raise ModelFileError(f"{label} without a name")
    if len(set(names)) < len(names):
        seen: set[str] = set()
        repeated = next(one for one in names if one in seen or seen.add(one))
        raise ModelFileError(f"{label} {repeated!r} is defined twice")


def _check_nodes(nodes: Iterable[onnx.NodeProto], scopes: Sequence[set[str]], name: str) -> None:
    for node in nodes:
        for operand in node.input:
            if operand and not any(operand in scope for scope in scopes):
                where = f"node {node.name!r} ({escape(node.op_type)})"
                raise ModelFileError(f"{name}: {where} reads {operand!r}, which nothing defines")
        for attribute in node.attribute:
            for graph in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                _check_graph(graph, scopes, name)
            if attribute.HasField("sparse_tensor") or attribute.sparse_tensors:
                raise ModelFileError(f"{name}: sparse tensors are not supported; node {node.name!r} has one")
            for tensor in (*([attribute.t] if attribute.HasField("t") else []), *attribute.tensors):
                _check_tensor(tensor, f"{name}: attribute {attribute.name!r} of node {node.name!r}")


def _check_outputs(outputs: Iterable[str], defined: set[str], name: str) -> None:
    for output in outputs:
        if output not in defined:
            raise ModelFileError(f"{name}: the output {output!r} is defined by nothing")


def _check_tensor(tensor: onnx.TensorProto, label: str) -> None:
    """The content must be as long as the shape says: else it would be found out in the middle of a pass."""
    if tensor.data_type not in _DTYPES:
        raise ModelFileError(f"{label} has the unknown element type {tensor.data_type}")
    if any(extent < 0 for extent in tensor.dims):
        raise ModelFileError(f"{label} has a negative extent: {list(tensor.dims)}")
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        return
    count = 1
    for extent in tensor.dims:
        count *= extent
    dtype = ir.DataType(tensor.data_type)
    if dtype == ir.DataType.STRING:
        got, needed = len(tensor.string_data), count
    elif tensor.HasField("raw_data"):
        got, needed = len(tensor.raw_data), -(-count * dtype.bitwidth // 8)
    else:
        got = sum(len(getattr(tensor, field)) for field in _FIELDS)
        needed = _stored_numbers(dtype, count)
    if got != needed:
        unit = "bytes" if tensor.HasField("raw_data") else "numbers"
        raise ModelFileError(f"{label} of shape {list(tensor.dims)} needs {needed} {unit}; the file has {got}")


def _stored_numbers(dtype: ir.DataType, count: int) -> int:
    """Entries of a repeated field: two a complex number, and sub-byte types packed into bytes."""
    if dtype in _COMPLEX:
        return 2 * count
    return -(-count * dtype.bitwidth // 8) if dtype.bitwidth in (2, 4) else count


def check_operands(model: ir.Model, opset: int, name: str) -> None:
    """Check that nodes have the operands that their operators need, so that nobody needs to ask later.

    Raises:
        ModelFileError: one line that names the node.
    """
    for node in model.graph.all_nodes():
        needs = _needs(node.op_type, opset) if node.domain == "" else None
        if needs is None:  # an operator of somebody else's
            continue
        given = tuple(operand is not None for operand in node.inputs)
        missing = next((at for at in needs.required if at >= len(given) or not given[at]), None)
        where = f"{name}: node {node.name!r} ({escape(node.op_type)})"
        if missing is not None:
            raise ModelFileError(f"{where} needs {len(needs.required)} operands; number {missing + 1} is missing")
        if len(given) > needs.most:
            raise ModelFileError(f"{where} takes {needs.most} operands; got {len(given)}")


@dataclass(frozen=True, slots=True)
class _Needs:
    """Places of operands that must be there, and how many there may be."""

    required: tuple[int, ...]
    most: int


@lru_cache(maxsize=1024)
def _needs(op_type: str, opset: int) -> _Needs | None:
    schema = schema_of(op_type, opset)
    if schema is None:
        return None
    single = onnx.defs.OpSchema.FormalParameterOption.Single
    required = tuple(at for at, operand in enumerate(schema.inputs) if operand.option == single)
    least = tuple(range(schema.min_input)) if len(schema.inputs) < schema.min_input else required
    return _Needs(least, schema.max_input)


def sort_nodes(model: ir.Model, name: str) -> bool:
    """Bring nodes into topological order; return whether they were not.

    Raises:
        ModelFileError: when the graph, or a function, is cyclic.
    """
    containers = [model.graph, *(function.graph for function in model.functions.values())]
    unsorted = [graph for graph in containers if not is_sorted(graph)]
    for graph in unsorted:
        cycle = _cycle(graph)
        if cycle:
            through = " -> ".join(repr(node.name or node.op_type) for node in cycle)
            raise ModelFileError(f"{name}: the graph is cyclic: {through}")
        graph.sort()
    return bool(unsorted)


def is_sorted(graph: ir.Graph, seen: set[ir.Node] | None = None) -> bool:
    """Whether every node of the graph and its bodies stands behind those that it reads from."""
    seen = set() if seen is None else seen
    for node in graph:
        producers = (value.producer() for value in node.inputs if value is not None)
        if any(producer is not None and producer not in seen for producer in producers):
            return False
        if not all(is_sorted(body, seen) for _, body in bodies(node)):
            return False
        seen.add(node)
    return True


def _cycle(graph: ir.Graph) -> list[ir.Node]:
    """Nodes of one cycle, in the order of the data, or none."""
    sorter: TopologicalSorter[ir.Node] = TopologicalSorter()
    for item in items(graph):
        if isinstance(item, ir.Node):
            producers = (value.producer() for value in item.inputs if value is not None)
            inner = (node for _, body in bodies(item) for node in body)
            sorter.add(item, *(node for node in (*producers, *inner) if node is not None))
    try:
        sorter.prepare()
    except CycleError as error:
        return error.args[1]
    return []
