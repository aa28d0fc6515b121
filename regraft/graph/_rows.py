"""Following values through what leaves their rows alone: copies, dropouts, reshapes of the leading dims."""

from regraft.graph.matcher import LOOK_THROUGH
from regraft.graph.types import Dim
from regraft.graph.view import Node, Value


def behind(value: Value) -> tuple[Value, tuple[Node, ...]]:
    """Where a value comes from, through copies and through reshapes of the leading dims, and the nodes passed."""
    passed: list[Node] = []
    while value.producer is not None and value is value.producer.outputs[0] and keeps_rows(value.producer):
        operand = value.producer.inputs[0]
        assert operand is not None, "what keeps its rows has an operand"
        passed.append(value.producer)
        value = operand
    return value, tuple(passed)


def keeps_rows(node: Node) -> bool:
    """Whether a node leaves the last dim of its first operand as it is, and all numbers in their order."""
    operand = node.inputs[0] if node.inputs else None
    if operand is None or node.op in LOOK_THROUGH:
        return operand is not None
    before, after = operand.type.shape, node.outputs[0].type.shape
    return node.op == "reshape" and bool(before) and bool(after) and _last(before) == _last(after)


def _last(shape: tuple[Dim, ...] | None) -> Dim | None:
    return shape[-1] if shape else None


def ahead(value: Value) -> tuple[Value, tuple[Node, ...]]:
    """Where a value goes, through copies and reshapes that nothing else reads, and the nodes passed."""
    passed: list[Node] = []
    while len(value.users) == 1 and not value.is_output and keeps_rows(value.users[0]):
        node = value.users[0]
        if node.inputs[0] is not value:
            break
        passed.append(node)
        value = node.outputs[0]
    return value, tuple(passed)


def in_rows_of(x: Value, result: Value) -> Value | None:
    """x as it was before reshapes, in the leading dims of a result; None when it never had them."""
    if result.type.shape is None:
        return None
    while x.type.shape is None or x.type.shape[:-1] != result.type.shape[:-1]:
        node = x.producer
        if node is None or x is not node.outputs[0] or not keeps_rows(node) or node.inputs[0] is None:
            return None
        x = node.inputs[0]
    return x


def sum_behind(value: Value) -> tuple[Node, Value, tuple[Node, ...]] | None:
    """The addition that is all that becomes of a value, its other operand, and the nodes passed on the way to it.

    None where there is none, or where the types differ or the other operand is a constant: then it is no residual.
    """
    value, passed = ahead(value)
    users = value.users
    if len(users) != 1 or value.is_output or users[0].op != "add" or users[0].attributes.get("alpha", 1) != 1:
        return None
    (sum_,) = users
    residual = next((operand for operand in sum_.inputs if operand is not None and operand is not value), None)
    result = sum_.outputs[0].type
    if residual is None or residual.role == "constant" or residual.type != result or value.type != result:
        return None
    return sum_, residual, passed
