"""Attention heads in a graph: where they are split off a wide tensor, repeated, turned, and merged again.

All by types: a reshape says little about itself, but the types on both sides say what it does.
"""

from typing import Final

from regraft.graph.extents import target_shape
from regraft.graph.graph import Graph
from regraft.graph.matcher import LOOK_THROUGH, source
from regraft.graph.types import Dim
from regraft.graph.view import Node, Value

SPLIT: Final = (0, 2, 1, 3)
"""[batch, rows, heads, n] to [batch, heads, rows, n], and back."""

SPLIT_TURNED: Final = (0, 2, 3, 1)
"""[batch, rows, heads, n] to [batch, heads, n, rows]: the split and the transposition of keys in one."""

_BY_TYPE: Final = frozenset({"reshape", "expand", "cast"})
"""Operations that change nothing where the types on both sides are equal."""

Shape = tuple[Dim, ...]
Nodes = tuple[Node, ...]


def shape_of(value: Value) -> Shape:
    """Return the extents; empty when unknown."""
    return value.type.shape or ()


def origin(value: Value) -> tuple[Value, Nodes]:
    """Follow a value back through what leaves its content and its shape as they are; return the nodes passed too."""
    passed: Nodes = ()
    while True:
        value, more = source(value)
        passed += more
        node = value.producer
        if node is None or not node.inputs or node.inputs[0] is None or not _changes_nothing(node):
            return value, passed
        passed += (node,)
        value = node.inputs[0]


def _changes_nothing(node: Node) -> bool:
    if node.op in LOOK_THROUGH:
        return bool(node.inputs)
    if node.op not in _BY_TYPE or not node.inputs or node.inputs[0] is None:
        return False
    given, result = node.inputs[0].type, node.outputs[0].type
    return given.shape is not None and given == result


def before(value: Value, op: str) -> tuple[Value | None, Nodes]:
    """Return the first operand of the node of that op that computes a value, and the nodes passed; None for another."""
    value, passed = origin(value)
    node = value.producer
    if node is None or node.op != op or not node.inputs or node.inputs[0] is None:
        return None, ()
    return node.inputs[0], (*passed, node)


def packed(value: Value, order: tuple[int, ...] = SPLIT) -> tuple[Value | None, Nodes]:
    """Return the [batch, rows, heads · n] that heads were split off from.

    Args:
        value: the heads, reordered from [batch, rows, heads, n].
        order: how.

    Returns:
        None when the value does not come from a split.
    """
    turned, nodes = before(value, "transpose")
    if turned is None or nodes[-1].attributes.get("perm") != order:
        return None, ()
    wide, more = before(turned, "reshape")
    if wide is None or not _splits(shape_of(wide), shape_of(origin(turned)[0])):
        return None, ()
    return wide, (*nodes, *more)


def _splits(wide: Shape, apart: Shape) -> bool:
    if len(wide) != 3 or len(apart) != 4 or wide[:2] != apart[:2]:
        return False
    heads, width, total = apart[2], apart[3], wide[2]
    return isinstance(heads, int) and isinstance(width, int) and heads * width == total


def unrepeated(value: Value) -> tuple[Value, Nodes]:
    """Follow [batch, heads, rows, n] back to [batch, kv_heads, rows, n] where each head was repeated, one by one."""
    merged, nodes = before(value, "reshape")
    if merged is None or len(shape_of(merged)) != 5:
        return value, ()
    apart, more = before(merged, "expand")
    if apart is None:
        return value, ()
    single, last = before(apart, "unsqueeze")
    if single is None:
        single, last = before(apart, "reshape")
    stacked = [shape_of(each) for each in (apart, merged, value)]
    if single is None or not _repeats(shape_of(single), *stacked):
        return value, ()
    return single, (*nodes, *more, *last)


def _repeats(single: Shape, apart: Shape, merged: Shape, result: Shape) -> bool:
    if len(single) != 4 or len(result) != 4 or apart != (*single[:2], 1, *single[2:]):
        return False
    if (merged[0], merged[1], *merged[3:]) != single:
        return False
    few, times, many = single[1], merged[2], result[1]
    counted = isinstance(few, int) and isinstance(times, int) and few * times == many
    return counted and (result[0], *result[2:]) == (single[0], *single[2:])


def unturned(graph: Graph, value: Value) -> tuple[Value | None, Nodes]:
    """Follow a transposed [batch, heads, n, rows] back to [batch, heads, rows, n].

    The exporter of torch goes through three dims: [b, h, r, n] -> [b·h, r, n] -> [b·h, n, r] -> [b, h, n, r].
    """
    plain, nodes = before(value, "transpose")
    if plain is not None:
        return (plain, nodes) if nodes[-1].attributes.get("perm") == (0, 1, 3, 2) else (None, ())
    flat, first = before(value, "reshape")
    if flat is None:
        return None, ()
    turned, second = before(flat, "transpose")
    if turned is None or second[-1].attributes.get("perm") != (0, 2, 1):
        return None, ()
    plain, third = before(turned, "reshape")
    if plain is None or len(shape_of(plain)) != 4:
        return None, ()
    b, h, r, n = shape_of(plain)
    there, back = target_shape(graph, third[-1]), target_shape(graph, first[-1])
    fits = there is not None and len(there) == 3 and there[1:] == (r, n) and back == (b, h, n, r)
    return (plain, (*first, *second, *third)) if fits else (None, ())


def merged(value: Value) -> tuple[Value | None, Nodes]:
    """Follow [batch, heads, rows, n] forward to where its heads are merged, where that is all that becomes of it.

    Returns:
        [batch, rows, heads · n], or [batch · rows, heads · n] where the graph makes rows of it at once.
    """
    value, nodes = _forward(value)
    turned = _only_user(value, "transpose")
    if turned is None or turned.attributes.get("perm") != SPLIT:
        return None, ()
    apart, more = _forward(turned.outputs[0])
    wide = _only_user(apart, "reshape")
    if wide is None or not _merges(shape_of(apart), shape_of(wide.outputs[0])):
        return None, ()
    return wide.outputs[0], (*nodes, turned, *more, wide)


def _merges(apart: Shape, wide: Shape) -> bool:
    return _splits((*apart[:2], *wide[-1:]), apart) if len(wide) == 2 else _splits(wide, apart)


def _forward(value: Value) -> tuple[Value, Nodes]:
    """Through what changes neither content nor shape."""
    passed: Nodes = ()
    while len(value.users) == 1 and not value.is_output:
        (node,) = value.users
        if not _changes_nothing(node) or node.inputs[0] is not value:
            break
        value = node.outputs[0]
        passed += (node,)
    return value, passed


def _only_user(value: Value, op: str) -> Node | None:
    single = len(value.users) == 1 and not value.is_output
    return value.users[0] if single and value.users[0].op == op else None
