"""Choices between a tensor and a number by a mask, in the spellings of both graph languages."""

from typing import Final

from regraft.graph.graph import Graph
from regraft.graph.heads import origin
from regraft.graph.scalars import scalar_of
from regraft.graph.view import Node, Value

_NOT: Final = frozenset({"not", "aten.bitwise_not", "aten.logical_not"})

Choice = tuple[Value | None, Value, float]
"""The mask (None where only its opposite is known), what is taken where it is true, and the number elsewhere."""


def operands(node: Node, count: int) -> list[Value | None]:
    """Return the first operands of a node; None for those that it lacks."""
    return [*node.inputs, *[None] * count][:count]


def choice_of(graph: Graph, node: Node) -> Choice | None:
    """Return what a `where` or `masked_fill` chooses between; None when that is not a tensor and a number."""
    if node.op == "masked_fill":
        return _of_fill(graph, node)
    mask, sides, (first, second) = sides_of(graph, node)
    if mask is None:
        return None
    if sides[0] is not None and second is not None:
        return mask, sides[0], second
    return (_opposite(mask), sides[1], first) if sides[1] is not None and first is not None else None


def _of_fill(graph: Graph, node: Node) -> Choice | None:
    content, hidden, other = operands(node, 3)
    fill = _as_number(graph, node, "value", other)
    return None if content is None or hidden is None or fill is None else (_opposite(hidden), content, fill)


def sides_of(graph: Graph, where: Node) -> tuple[Value | None, list[Value | None], list[float | None]]:
    """Return the condition of a `where`, its two sides, and the numbers that these are."""
    condition, first, second = operands(where, 3)
    if "self" in where.attributes:  # torch has a number as an attribute, and then no operand in its place
        first, second = None, first
    numbers = [_as_number(graph, where, "self", first), _as_number(graph, where, "other", second)]
    return condition, [first, second], numbers


def _as_number(graph: Graph, node: Node, name: str, operand: Value | None) -> float | None:
    if operand is not None:
        return scalar_of(graph, operand)
    number = node.attributes.get(name)
    return float(number) if isinstance(number, int | float) else None


def _opposite(mask: Value) -> Value | None:
    node = origin(mask)[0].producer
    return node.inputs[0] if node is not None and node.op in _NOT else None
