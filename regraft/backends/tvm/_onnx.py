"""An ONNX graph as an exported program of torch, so that both graph kinds take one road into TVM.

TVM has an importer of its own for ONNX, which (0.25) loses every dynamic shape that is computed by nodes. Here the
nodes are traced by torch.export, whose symbols know what `Shape`, `Gather` and `Concat` do with extents.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Final

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from regraft.backends._again import first_line
from regraft.backends.tvm._calls import Call, planned_calls, traced_call
from regraft.backends.tvm._decompose import in_core_operators, meaning
from regraft.backends.tvm._maker import Maker
from regraft.backends.tvm._onnx_extents import as_integers, as_tensor, on_extents, refused
from regraft.backends.tvm._onnx_operators import OPERATORS, REASONS
from regraft.errors import BackendError
from regraft.frontends.onnx import DOMAIN, OnnxGraph, structured_op, to_torch
from regraft.frontends.onnx._canonical import native_name
from regraft.frontends.onnx._functions import complete_attributes
from regraft.frontends.onnx._inline import inline_functions
from regraft.graph.types import TensorType, torch_dtype

_MOST_EXTENTS: Final = 64
"""Stored int64 vectors up to this length are taken for shapes, axes and the like, which must be known when tracing."""


def program_of_onnx(graph: OnnxGraph, maker: Maker) -> tuple[ExportedProgram, list[Tensor]]:
    """Return the graph in core operators and calls of kernels, and inputs that it can be tried with.

    Symbolic dims are free.

    Raises:
        BackendError: naming every operator that has no translation, or what else cannot be traced.
    """
    model = graph.model.clone()
    inline_functions(model, lambda identifier: identifier[0] != DOMAIN)
    _check_operators(model, graph.name)
    example = _examples([value.type for value in graph.inputs()])
    dims = tuple(_free_dims(value.type) for value in graph.inputs())
    try:
        with torch.no_grad():
            traced = torch.export.export(
                _OnnxModule(model, planned_calls(graph, maker)), tuple(example), dynamic_shapes={"inputs": dims}
            )
    except BackendError:
        raise
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        raise BackendError(f"tvm backend: {graph.name} cannot be traced: {first_line(error)}") from error
    return in_core_operators(traced), example


def _check_operators(model: ir.Model, name: str) -> None:
    """Raise BackendError that names every operator without translation once, each with what is known of it."""
    unknown = [node for node in model.graph.all_nodes() if not _is_known(node)]
    if not unknown:
        return
    names = dict.fromkeys(native_name(node.domain, node.op_type) for node in unknown)
    listed = ", ".join(f"{one} ({REASONS[one]})" if one in REASONS else one for one in names)
    ours = any(key.startswith(f"{DOMAIN}.") for key in model.metadata_props)
    hint = "export(functions='keep') writes structured ops that are taken by their meaning" if ours else None
    raise BackendError(f"tvm backend: {name} has operators that it cannot take: {listed}", hint=hint)


def _is_known(node: ir.Node) -> bool:
    if node.domain == DOMAIN:
        return structured_op(node.op_type) is not None
    return native_name(node.domain, node.op_type) in OPERATORS or _is_constant(node) or _is_choice(node)


def _examples(kinds: Sequence[TensorType]) -> list[Tensor]:
    """Small extents, another for each name; ones, which are tokens, masks and segments alike."""
    extents: dict[str, int] = {}
    return [_example(kind, extents) for kind in kinds]


def _example(kind: TensorType, extents: dict[str, int]) -> Tensor:
    dims = kind.shape or ()
    shape = [dim if isinstance(dim, int) else extents.setdefault(dim, 2 + len(extents)) for dim in dims]
    dtype = torch_dtype(kind.dtype or "") or torch.float32
    if dtype.is_floating_point:
        return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    return torch.ones(shape, dtype=dtype)


def _free_dims(kind: TensorType) -> dict[int, Any]:
    return {place: Dim.AUTO for place, dim in enumerate(kind.shape or ()) if isinstance(dim, str)}


class _OnnxModule(nn.Module):
    """Runs the nodes in order: tensors in torch, extents and what is computed of them in Python."""

    def __init__(self, model: ir.Model, calls: Sequence[Call]) -> None:
        super().__init__()
        self._model = model
        self._calls = {call.node.outputs[0].key: call for call in calls}
        self._packed: dict[str, list[str]] = {}
        for key, call in self._calls.items():
            self._packed[key] = [f"kernel{len(self._packed)}_{place}" for place in range(len(call.kernel.packed))]
            for name, tensor in zip(self._packed[key], call.kernel.packed, strict=True):
                self.register_buffer(name, tensor)
        self._extents: dict[ir.Value, np.ndarray] = {}
        self._weights: dict[ir.Value, str] = {}
        for graph in (model.graph, *model.graph.subgraphs()):
            for value in graph.initializers.values():
                self._store(value, value.const_value)
        for node in model.graph.all_nodes():
            if _is_constant(node):
                self._store(node.outputs[0], _content(node))

    def _store(self, value: ir.Value, content: ir.TensorProtocol | None) -> None:
        tensor = None if content is None else to_torch(content)
        if tensor is None:
            raise BackendError(f"tvm backend: the constant {value.name!r} has an element type that torch has not")
        is_extents = tensor.dtype == torch.int64 or _is_for_tracing(value)
        if is_extents and tensor.dim() <= 1 and tensor.numel() <= _MOST_EXTENTS:
            self._extents[value] = np.array(tensor.tolist(), dtype=object)
        else:
            self._weights[value] = f"weight{len(self._weights)}"
            self.register_buffer(self._weights[value], tensor)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Return the outputs in order."""
        weights = {value: getattr(self, name) for value, name in self._weights.items()}
        given = dict(zip(self._model.graph.inputs, inputs, strict=True))
        values: dict[ir.Value, Any] = {**self._extents, **weights, **given}
        self._run(self._model.graph, values)
        return tuple(as_tensor(values[output]) for output in self._model.graph.outputs)

    def _run(self, nodes: Iterable[ir.Node], values: dict[ir.Value, Any]) -> None:
        """Add what the nodes compute to the values."""
        for node in nodes:
            if _is_constant(node):
                continue
            operands = [None if operand is None else values[operand] for operand in node.inputs]
            if _is_choice(node):
                body = _chosen(node, operands[0])
                self._run(body, values)
                found = tuple(values[output] for output in body.outputs)
            else:
                called = self._called(node, operands)
                found = _results(node, operands) if called is None else (called,)
            values.update(zip(node.outputs, found, strict=False))

    def _called(self, node: ir.Node, operands: Sequence[Any]) -> Tensor | None:
        """The result of the node's kernel; None when it has none."""
        key = str(node.outputs[0].name)
        call = self._calls.get(key)
        if call is None:
            return None
        by_name = {str(value.name): operand for value, operand in zip(node.inputs, operands, strict=True) if value}
        activations = [by_name[name] for name in call.activations]
        packed = [getattr(self, name) for name in self._packed[key]]
        return traced_call(activations, packed, call.kernel.key)


def _is_choice(node: ir.Node) -> bool:
    return node.op_type == "If" and not node.domain


def _chosen(node: ir.Node, condition: Any) -> ir.Graph:
    """The body of an If whose condition is a number while tracing; one of symbolic extents would not be."""
    taken = None if as_integers(condition) is None else condition.item()
    if not isinstance(taken, bool):
        raise refused("If", REASONS["If"])
    return node.attributes["then_branch" if taken else "else_branch"].as_graph()


def _is_for_tracing(value: ir.Value) -> bool:
    """Whether all that reads it needs its numbers while tracing."""
    readers = [use.node.op_type for use in value.uses()]
    return bool(readers) and set(readers) <= {"If", "Resize"}


def _is_constant(node: ir.Node) -> bool:
    return node.op_type == "Constant" and not node.domain


def _content(node: ir.Node) -> ir.TensorProtocol:
    ((name, attribute),) = node.attributes.items()
    if name == "value":
        return attribute.as_tensor()
    if name in ("value_int", "value_ints"):
        return ir.tensor(attribute.value, dtype=ir.DataType.INT64)
    if name in ("value_float", "value_floats"):
        return ir.tensor(attribute.value, dtype=ir.DataType.FLOAT)
    raise BackendError(f"tvm backend: a Constant has a {name}; tensors, integers and floats are known")


def _results(node: ir.Node, operands: Sequence[Any]) -> Sequence[Any]:
    attributes = {name: attribute.value for name, attribute in node.attributes.items()}
    if node.domain == DOMAIN:
        return (_structured(node.op_type, [as_tensor(operand) for operand in operands], attributes),)
    name = native_name(node.domain, node.op_type)
    if name == "Split":
        attributes.setdefault("num_outputs", len(node.outputs))  # before opset 18 the number of results says it
    extents = on_extents(name, operands, attributes)
    found = OPERATORS[name](operands, attributes) if extents is None else extents
    results = found if isinstance(found, tuple) else (found,)
    for place, output in enumerate(node.outputs):
        if (output.uses() or output.is_graph_output()) and (place >= len(results) or results[place] is None):
            raise refused(name, f"its result {place + 1}, {output.name!r}, is not computed")
    return results


def _structured(name: str, operands: Sequence[Any], attributes: dict[str, Any]) -> Tensor:
    """A structured op by its meaning; weights of linear layers are stored transposed in ONNX."""
    known = structured_op(name)
    assert known is not None, "unknown ones are refused before"
    op, absent = known
    given = iter(operands)
    named = {operand.name: None if operand.name in absent else next(given, None) for operand in op.operands}
    turned = {key: x.t() if x is not None and key in op.linear_weights else x for key, x in named.items()}
    return meaning(op)(*turned.values(), **complete_attributes(op, attributes))
