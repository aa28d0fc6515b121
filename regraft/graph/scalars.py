"""Numbers in a graph: torch has them as attributes of a node, ONNX as constants that it reads."""

from dataclasses import dataclass
from typing import Final

from regraft.graph.graph import Graph
from regraft.graph.matcher import source
from regraft.graph.view import Node, Value

_ATTRIBUTES: Final = ("other", "exponent")
"""Under which names a torch node of two operands holds the second one when it is a number."""


@dataclass(frozen=True)
class WithNumber:
    """The operands of a node of two, one of which is a number.

    Attributes:
        value: the operand that is none.
        number: the number.
        number_first: whether the number is the first operand (1 / x, not x / 1).
    """

    value: Value
    number: float
    number_first: bool = False


def scalar_of(graph: Graph, value: Value) -> float | None:
    """Return the number that a constant of one element holds; None for everything else."""
    value = source(value)[0]
    shape = value.type.shape
    if value.role != "constant" or shape is None or any(extent != 1 for extent in shape):
        return None
    content = graph.constant(value)
    return None if content is None or content.is_complex() else float(content.item())


def scalar_operand(graph: Graph, node: Node) -> WithNumber | None:
    """Return the operands of a node of two operands, one of them a number; None when it has no such operands.

    A sum or difference that multiplies its second operand (`alpha` of torch's add and sub) has the product as number.
    """
    present = [value for value in node.inputs if value is not None]
    if len(present) == 1:
        number = next((node.attributes[name] for name in _ATTRIBUTES if name in node.attributes), None)
        return None if not isinstance(number, int | float) else WithNumber(present[0], number * _alpha(node))
    if len(present) != 2:
        return None
    first, second = present
    number = scalar_of(graph, second)
    if number is not None:
        return WithNumber(first, number * _alpha(node))
    number = scalar_of(graph, first)
    return None if number is None or _alpha(node) != 1 else WithNumber(second, number, number_first=True)


def _alpha(node: Node) -> float:
    alpha = node.attributes.get("alpha", 1)
    return float(alpha) if isinstance(alpha, int | float) else 1.0
