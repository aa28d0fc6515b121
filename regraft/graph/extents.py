"""What a graph computes shapes to be: the extents that a reshape is given, as far as they follow from types."""

from typing import cast

from torch import Tensor

from regraft.graph.graph import Graph
from regraft.graph.matcher import source
from regraft.graph.types import Dim
from regraft.graph.view import Node, Value

_SAME = frozenset({"cast", "squeeze", "unsqueeze", "reshape"})
"""Between a number and a list of one number, nothing is told apart here."""


def target_shape(graph: Graph, reshape: Node) -> tuple[Dim, ...] | None:
    """Return the extents that an ONNX Reshape asks for, -1 included; None where they are computed from data."""
    wanted = reshape.inputs[1] if len(reshape.inputs) > 1 else None
    return None if wanted is None else extents_of(graph, wanted)


def extents_of(graph: Graph, value: Value) -> tuple[Dim, ...] | None:
    """Return what a tensor of extents holds: numbers and symbolic dims; None where that is not known."""
    value = source(value)[0]
    node = value.producer
    if value.role == "constant":
        return _of_constant(graph.constant(value))
    if node is None or not node.inputs:
        return None
    return _of_type(node) if node.op == "shape" else _computed(node.op, [_extents(graph, each) for each in node.inputs])


def _extents(graph: Graph, operand: Value | None) -> tuple[Dim, ...] | None:
    return None if operand is None else extents_of(graph, operand)


def _of_constant(content: Tensor | None) -> tuple[Dim, ...] | None:
    if content is None or content.is_floating_point() or content.dim() > 1:
        return None
    return tuple(int(item) for item in content.reshape(-1).tolist())


def _computed(op: str, parts: list[tuple[Dim, ...] | None]) -> tuple[Dim, ...] | None:
    if op == "concat" and None not in parts:
        return tuple(extent for part in parts if part is not None for extent in part)
    if parts[0] is None:
        return None
    if op in _SAME:
        return parts[0]
    return _picked(op, parts[0], parts[1:]) if op in ("slice", "gather") else None


def _of_type(node: Node) -> tuple[Dim, ...] | None:
    operand = node.inputs[0]
    shape = None if operand is None else operand.type.shape
    if shape is None:
        return None
    start, end = node.attributes.get("start", 0), node.attributes.get("end")
    return shape[cast(int, start) : cast("int | None", end)]


def _picked(op: str, extents: tuple[Dim, ...], parts: list[tuple[Dim, ...] | None]) -> tuple[Dim, ...] | None:
    numbers = [part[0] if part is not None and len(part) == 1 and isinstance(part[0], int) else None for part in parts]
    if not numbers or numbers[0] is None:
        return None
    if op == "gather":
        return (extents[numbers[0]],) if -len(extents) <= numbers[0] < len(extents) else None
    if len(numbers) < 2 or numbers[1] is None or (len(numbers) == 4 and numbers[3] != 1):
        return None
    return extents[numbers[0] : numbers[1]]
