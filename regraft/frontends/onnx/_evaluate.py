"""Evaluating a part of a model: the nodes between given values and wanted ones, as a small model of their own."""

from collections.abc import Callable, Mapping, Sequence
from typing import Final

import onnx_ir as ir
from torch import Tensor

from regraft.errors import GraphError
from regraft.frontends.onnx._index import Index, bodies, items
from regraft.frontends.onnx._session import light_proto, open_session
from regraft.frontends.onnx._tensors import dtype_label, onnx_dtype_of, to_torch
from regraft.frontends.onnx._views import constant_of
from regraft.graph.types import torch_dtype

_PREFIX: Final = "regraft.part."


def prepared(
    model: ir.Model, index: Index, wanted: Sequence[ir.Value], given: Mapping[ir.Value, Tensor]
) -> Callable[[], list[Tensor]]:
    """Return what computes `wanted` from `given` and constants.

    Args:
        model: what the values belong to; not changed.
        index: its index; for the order of nodes and for messages.
        wanted: values of any scope.
        given: contents of others; floating-point ones are converted to the type that the graph declares.

    Raises:
        GraphError: when a wanted value depends on an input, of the graph or of a nested body, that is not given.
    """
    unknown = [value for value in wanted if constant_of(value) is None]
    nodes, constants = _between(index, unknown, given)
    feeds = {value: _converted(value, tensor) for value, tensor in given.items()}
    computed = [value for value in dict.fromkeys(wanted) if value not in feeds and constant_of(value) is None]
    stored = {value: _stored(value) for value in wanted if value not in feeds and value not in computed}
    if not computed:
        return lambda: [feeds[value] if value in feeds else stored[value] for value in wanted]
    part, names = _model_of(model, nodes, constants, feeds, computed)
    session = open_session(*light_proto(part), "the part that is evaluated")
    outputs = [names[value] for value in computed]
    inputs = {names[value]: tensor for value, tensor in feeds.items() if value in names}

    def run() -> list[Tensor]:
        results = {**feeds, **stored, **dict(zip(computed, session.run(outputs, inputs), strict=True))}
        return [results[value] for value in wanted]

    return run


def _between(
    index: Index, wanted: Sequence[ir.Value], given: Mapping[ir.Value, Tensor]
) -> tuple[list[ir.Node], list[ir.Value]]:
    """Nodes to run, in order, and the initializers that they read."""
    nodes: dict[ir.Node, None] = {}
    constants: dict[ir.Value, None] = {}
    waiting = list(wanted)
    while waiting:
        value = waiting.pop()
        producer = value.producer()
        if value in given or producer in nodes:
            continue
        if producer is not None:
            nodes[producer] = None
            waiting.extend(_reads(producer))
        elif value.const_value is not None and value.is_initializer():
            constants[value] = None
        else:
            targets = ", ".join(index.value_key(target) for target in wanted)
            raise GraphError(f"{targets} depends on the input {index.value_key(value)}, which is not given")
    return sorted(nodes, key=index.place), list(constants)


def _reads(node: ir.Node) -> list[ir.Value]:
    """Operands of a node, and what its bodies read from around them."""
    inside = [item for _, body in bodies(node) for item in items(body)]
    own = {item for item in inside if isinstance(item, ir.Value)}
    readers = [node, *(item for item in inside if isinstance(item, ir.Node))]
    return [value for reader in readers for value in reader.inputs if value is not None and value not in own]


def _model_of(
    model: ir.Model,
    nodes: Sequence[ir.Node],
    constants: Sequence[ir.Value],
    feeds: Mapping[ir.Value, Tensor],
    computed: Sequence[ir.Value],
) -> tuple[ir.Model, dict[ir.Value, str]]:
    """A model of those nodes, cloned, and the names in it: its values may come from scopes with equal names."""
    read = {value for node in nodes for value in _reads(node)}
    sources = [*(value for value in feeds if value in read), *constants]
    view = ir.GraphView(sources, computed, nodes=nodes, opset_imports=dict(model.opset_imports), name="part")
    part = view.clone()
    old_values = [*sources, *(output for node in nodes for output in node.outputs)]
    new_values = [*part.inputs, *(output for node in part for output in node.outputs)]
    names: dict[ir.Value, str] = {}
    for place, (old, new) in enumerate(zip(old_values, new_values, strict=True)):
        content, new.const_value = new.const_value, None  # before the renaming, which would rename the shared tensor
        new.name = names[old] = f"{_PREFIX}{place}"
        new.shape = None  # those declared may be narrower than what is given
        if old in feeds:
            new.type, new.shape = ir.TensorType(onnx_dtype_of(feeds[old])), ir.Shape(feeds[old].shape)
        elif content is not None and old.producer() is None:
            new.const_value = _renamed(content, names[old])
    _make_initializers(part, len(sources) - len(constants))
    functions = [model.functions[identifier] for identifier in _called(model, part)]
    return ir.Model(part, ir_version=model.ir_version or 0, functions=functions), names


def _make_initializers(part: ir.Graph, first: int) -> None:
    """Inputs from `first` on are constants."""
    constants = list(part.inputs[first:])
    del part.inputs[first:]
    for value in constants:
        part.initializers.add(value)


def _renamed(content: ir.TensorProtocol, name: str) -> ir.TensorProtocol:
    shape = ir.Shape(content.shape.numpy())
    return ir.LazyTensor(lambda: content, dtype=content.dtype, shape=shape, name=name)


def _called(model: ir.Model, graph: ir.Graph) -> list[ir.OperatorIdentifier]:
    """Functions that the graph calls, and those that they call."""
    called: dict[ir.OperatorIdentifier, None] = {}
    waiting: list[ir.Graph | ir.Function] = [graph]
    while waiting:
        for node in waiting.pop().all_nodes():
            identifier = node.op_identifier()
            if identifier in model.functions and identifier not in called:
                called[identifier] = None
                waiting.append(model.functions[identifier])
    return list(called)


def _converted(value: ir.Value, tensor: Tensor) -> Tensor:
    declared = torch_dtype(dtype_label(value.dtype) or "")
    if declared is None or not declared.is_floating_point or not tensor.is_floating_point():
        return tensor
    return tensor.to(declared)


def _stored(value: ir.Value) -> Tensor:
    stored = constant_of(value)
    content = None if stored is None else to_torch(stored)
    if content is None:
        raise GraphError(f"{value.name} has no content that can be computed with")
    return content
