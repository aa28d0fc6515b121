"""Putting one structured op in the place of a site, in time that does not depend on the size of the graph."""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir
from torch import Tensor

from regraft.errors import GraphError
from regraft.frontends.onnx._canonical import DOMAIN
from regraft.frontends.onnx._functions import (
    FUNCTIONS_SINCE_IR,
    VERSION,
    Values,
    call_of,
    complete_attributes,
    function_for,
    weight_value,
)
from regraft.frontends.onnx._index import Index, bodies, items
from regraft.frontends.onnx._tensors import onnx_dtype
from regraft.frontends.onnx._views import TypeOf, constant_of
from regraft.graph.graph import Replacement
from regraft.graph.sharing import content_key
from regraft.graph.types import dtype_name
from regraft.graph.view import Value
from regraft.ops import Op

MadeFunctions = dict[tuple[object, ...], ir.OperatorIdentifier]
"""Functions that the graph itself has added, by what they were made for."""

SmallConstants = dict[Hashable, ir.Value]
"""Initializers that the graph itself has added and that can be shared, by their content."""


@dataclass(frozen=True)
class Surgeon:
    """The model being rewritten and the index that has to follow.

    `made` saves making the same function anew, `small` storing the same small integers anew.
    """

    model: ir.Model
    index: Index
    opset: int
    made: MadeFunctions
    small: SmallConstants
    type_of: TypeOf

    def replace(
        self, site: Replacement, op: Op, tensors: Mapping[str, Tensor | Value | None], attributes: Values
    ) -> None:
        """Replace a site in all its calls, which share the new weights.

        Raises:
            GraphError: when the site is not in the graph, or an operand is missing or cannot be seen from there.
        """
        made: dict[str, ir.Value] = {}
        values = complete_attributes(op, attributes)
        for call in site.calls:
            self._replace_call(call, op, tensors, values, made)

    def insert(self, op: Op, operands: Mapping[str, str], attributes: Values, before: str, name: str) -> str:
        """Put a node in front of the one that computes `before`, unless it stands there already; return its key.

        Raises:
            GraphError: when a key is not in the graph, or an operand cannot be seen from there.
        """
        holder = self._value(name, before).producer()
        if holder is None or not isinstance(holder.graph, ir.Graph):
            raise GraphError(f"{name}: {before} is computed by no node")
        given = {label: self._value(name, key) for label, key in operands.items()}
        self._check_visible(name, before, holder.graph, given)
        present = [operand.name for operand in op.operands if operand.name in given]
        values, types = complete_attributes(op, attributes), {key: self.type_of(value) for key, value in given.items()}
        function = self._function(op, present, values, {key: type_.dtype for key, type_ in types.items()})
        inputs = [given[label] for label in present]
        known = self._standing(function, inputs, holder)
        if known is not None:
            return self.index.value_key(known)
        node = call_of(function, inputs, values, self.index.unused_node_name(name, holder.graph))
        result, (output,) = op.infer(**types, **values), node.outputs
        output.name = self.index.unused_name(name)
        output.type = ir.TensorType(onnx_dtype(result.dtype)) if result.dtype else None
        output.shape = None if result.shape is None else ir.Shape(result.shape)
        holder.graph.insert_before(holder, node)
        self.index.add_node(node, self._between(inputs, holder))
        self.index.rename(output)
        return self.index.value_key(output)

    def _between(self, inputs: Sequence[ir.Value], holder: ir.Node) -> float:
        """A place before a node, and behind what was inserted there for the inputs."""
        place = self.index.place(holder)
        producers = [producer for value in inputs if (producer := value.producer()) is not None]
        return (max([place - 1, *map(self.index.place, producers)]) + place) / 2

    def _standing(self, function: ir.Function, inputs: Sequence[ir.Value], holder: ir.Node) -> ir.Value | None:
        """The result of a call of that function with these operands that stands before the holder."""
        for node in inputs[0].consumers():
            same = (node.domain, node.op_type) == (function.domain, function.name) and list(node.inputs) == inputs
            if same and node.graph is holder.graph and self.index.place(node) < self.index.place(holder):
                return node.outputs[0]
        return None

    def _replace_call(
        self,
        site: Replacement,
        op: Op,
        tensors: Mapping[str, Tensor | Value | None],
        values: Values,
        made: dict[str, ir.Value],
    ) -> None:
        """Replace one call; everything is looked up before anything is changed. New weights are added to `made`."""
        old = self._value(site.name, site.output)
        holder = old.producer()
        if holder is None or not isinstance(holder.graph, ir.Graph):
            raise GraphError(f"{site.name}: {site.output} is computed by no node and cannot be replaced")
        covered = [self._node(site, key) for key in site.nodes]
        activations = {name: self._value(site.name, key) for name, key in site.operands.items()}
        shared = {name: self._constant(site, value) for name, value in tensors.items() if isinstance(value, Value)}
        fresh = {name: value for name, value in tensors.items() if isinstance(value, Tensor)}
        known = activations | shared
        present = [operand.name for operand in op.operands if operand.name in known | fresh]
        _check_names(site, op, present, [*site.operands, *tensors])
        self._check_visible(site.name, site.output, holder.graph, known)
        labels = {name: self.type_of(value).dtype for name, value in known.items()}
        labels |= {name: dtype_name(tensor.dtype) for name, tensor in fresh.items()}
        function = self._function(op, present, values, labels)
        for name, tensor in fresh.items():
            made[name] = made[name] if name in made else self._weight(site, op, name, tensor)
        operands = known | made
        for name in shared:
            if name in op.linear_weights:
                operands[name] = self._turned(site, operands[name], holder)
        name = self.index.unused_node_name(site.name, holder.graph)
        self._insert(call_of(function, [operands[name] for name in present], values, name), old, holder)
        self._sweep([holder, *covered])

    def _value(self, name: str, key: str) -> ir.Value:
        value = self.index.value(key)
        if value is None:
            raise GraphError(f"{name}: the graph has no value {key!r} (any more)")
        return value

    def _node(self, site: Replacement, key: str) -> ir.Node:
        node = self.index.node(key)
        if node is None:
            raise GraphError(f"{site.name}: the graph has no node {key!r} (any more)")
        return node

    def _constant(self, site: Replacement, shared: Value) -> ir.Value:
        value = self._value(site.name, shared.key)
        if constant_of(value) is None:
            raise GraphError(f"{site.name}: {shared.key} is no constant and cannot be shared")
        return value

    def _check_visible(self, name: str, output: str, graph: ir.Graph, values: Mapping[str, ir.Value]) -> None:
        visible = set(self.index.scopes(graph))
        for label, value in values.items():
            if value.graph not in visible:
                key = self.index.value_key(value)
                raise GraphError(f"{name}: operand {label} ({key}) cannot be seen from {output}")

    def _function(
        self, op: Op, present: Sequence[str], values: Values, labels: Mapping[str, str | None]
    ) -> ir.Function:
        dtypes = {name: label for name, label in labels.items() if label is not None}
        key = (op.name, *present, *values.items(), *dtypes.items())
        if key in self.made and self.made[key] in self.model.functions:
            return self.model.functions[self.made[key]]
        function = function_for(op, frozenset(present), self.opset, values, dtypes)
        identifier = function.identifier()
        known = self.model.functions.setdefault(identifier, function)
        if known is not function and ir.to_proto(known) != ir.to_proto(function):
            raise GraphError(
                f"{op.name}: the model has another function named {DOMAIN}::{function.name}",
                hint="it was written by another version of Regraft: save it with functions='inline' there",
            )
        self.model.opset_imports.setdefault(DOMAIN, VERSION)
        self.model.ir_version = max(self.model.ir_version or 0, FUNCTIONS_SINCE_IR)
        self.made[key] = identifier
        return known

    def _weight(self, site: Replacement, op: Op, operand: str, tensor: Tensor) -> ir.Value:
        key = None if operand in op.linear_weights else content_key(tensor)
        known = self.small.get(key)
        if known is not None and known.is_initializer():
            return known
        value = weight_value(op, operand, tensor, self.index.unused_name(f"{site.name}.{operand}"))
        self.model.graph.initializers.add(value)
        self.index.add_constant(value)
        if key is not None:
            self.small[key] = value
        return value

    def _turned(self, site: Replacement, weight: ir.Value, holder: ir.Node) -> ir.Value:
        """A shared weight is stored as the file has it; its transpose is a node, which runtimes fold."""
        assert holder.graph is not None
        name = self.index.unused_name(f"{site.name}.{weight.name}.transposed")
        node = ir.node("Transpose", [weight], {"perm": [1, 0]}, name=name)
        node.outputs[0].name, node.outputs[0].type = name, weight.type
        if weight.shape is not None:
            node.outputs[0].shape = ir.Shape(tuple(reversed(weight.shape.dims)))
        holder.graph.insert_before(holder, node)
        self.index.add_node(node, self.index.place(holder) - 0.5)
        self.index.rename(node.outputs[0])
        return node.outputs[0]

    def _insert(self, node: ir.Node, old: ir.Value, holder: ir.Node) -> None:
        """Put the node behind the one that computed `old`, and its output in `old`'s place."""
        assert holder.graph is not None
        (new,) = node.outputs
        new.name, new.type, new.shape, new.doc_string = old.name, old.type, old.shape, old.doc_string
        new.metadata_props.update(old.metadata_props)
        node.metadata_props.update(holder.metadata_props)
        node.doc_string = holder.doc_string
        old.replace_all_uses_with(new, replace_graph_outputs=True)
        holder.graph.insert_after(holder, node)
        self.index.take_over(old, new)
        old.name = self.index.unused_name(f"{old.name}.replaced")
        self.index.rename(old)
        self.index.add_node(node, self.index.place(holder))

    def _sweep(self, nodes: Iterable[ir.Node]) -> None:
        """Remove those of the nodes that nothing uses, then what only they used, up to the weights."""
        waiting = list(nodes)
        while waiting:
            node = waiting.pop()
            if node.graph is None or any(output.uses() or output.is_graph_output() for output in node.outputs):
                continue
            operands = _detach(node)
            self.index.remove_node(node)
            node.graph.remove(node, safe=True)
            for value in dict.fromkeys(operands):
                producer = value.producer()
                if producer is not None:
                    waiting.append(producer)
                elif value.is_initializer() and not value.uses() and not value.is_graph_output():
                    self._drop(value)

    def _drop(self, value: ir.Value) -> None:
        """An initializer that nothing reads any more goes; one that is an input of the graph too stays."""
        if not value.is_graph_input() and value.graph is not None:
            self.index.remove_value(value)
            value.graph.initializers.pop(str(value.name))


def _check_names(site: Replacement, op: Op, present: Sequence[str], given: Sequence[str]) -> None:
    known = {operand.name for operand in op.operands}
    missing = [operand.name for operand in op.operands if not operand.optional and operand.name not in present]
    unknown = [name for name in given if name not in known]
    if missing:
        raise GraphError(f"{site.name}: {op.name} needs {', '.join(missing)}; got {', '.join(given)}")
    if unknown:
        raise GraphError(
            f"{site.name}: {op.name} has no operand {', '.join(unknown)}; it has {', '.join(sorted(known))}"
        )


def _detach(node: ir.Node) -> list[ir.Value]:
    """Take a node and those in its bodies off their operands; return the operands."""
    inner = [item for _, body in bodies(node) for item in items(body) if isinstance(item, ir.Node)]
    operands = [value for one in (node, *inner) for value in one.inputs if value is not None]
    for one in (node, *inner):
        for place in range(len(one.inputs)):
            one.replace_input_with(place, None)
    return operands
