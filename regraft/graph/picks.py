"""Parts of a tensor along one dim, however a graph picks them: splits, slices, single places."""

import math
from dataclasses import dataclass, replace
from typing import Final, cast

from regraft.graph.extents import extents_of
from regraft.graph.graph import Graph
from regraft.graph.heads import Nodes, before, origin, shape_of
from regraft.graph.view import Node, Value


@dataclass(frozen=True)
class Picked:
    """A part of a tensor.

    Attributes:
        whole: the tensor.
        dim: along which it is cut; counted from the front.
        start, stop: the places that the part has.
        nodes: those between the tensor and the part.
        dropped: whether the part has that dim no more, being of one place.
    """

    whole: Value
    dim: int
    start: int
    stop: int
    nodes: Nodes
    dropped: bool = False


def picked(graph: Graph, value: Value) -> Picked | None:
    """Return which part of which tensor a value is; None where it is none, or the places are not known."""
    value, passed = origin(value)
    node = value.producer
    if node is None or not node.inputs or node.inputs[0] is None:
        return None
    if node.op == "squeeze":
        found = _squeezed(graph, node)
    elif node.op in ("select", "gather"):
        found = _single(graph, node)
    else:
        bounds = _bounds(graph, node, value)
        found = None if bounds is None else Picked(node.inputs[0], *bounds, (node,), node.op == "aten.unbind")
    return None if found is None else replace(found, nodes=(*passed, *found.nodes))


_STACKED: Final = (2, 0, 3, 1, 4)
"""[batch, rows, 3, heads, n] to [3, batch, heads, rows, n]."""


def stacked(graph: Graph, value: Value) -> Picked | None:
    """Return which part of [batch, rows, 3 · heads · n] a [batch, heads, rows, n] is that lies behind others.

    Its dim is the last one, its places those of all heads. None where the heads were split otherwise.
    """
    found = picked(graph, value)
    if found is None or not found.dropped or found.dim != 0:
        return None
    turned, nodes = before(found.whole, "transpose")
    if turned is None or nodes[-1].attributes.get("perm") != _STACKED:
        return None
    wide, more = before(turned, "reshape")
    apart = shape_of(origin(turned)[0])
    if wide is None or len(shape_of(wide)) != 3 or shape_of(wide)[:2] != apart[:2]:
        return None
    if not all(isinstance(extent, int) for extent in apart[2:]):
        return None
    width = math.prod(cast("tuple[int, ...]", apart[3:]))
    return Picked(wide, 2, found.start * width, found.stop * width, (*found.nodes, *nodes, *more))


def _squeezed(graph: Graph, node: Node) -> Picked | None:
    inner = None if node.inputs[0] is None else picked(graph, node.inputs[0])
    if inner is None or inner.dropped or inner.stop - inner.start != 1:
        return None
    shape = shape_of(inner.whole)
    if (*shape[: inner.dim], *shape[inner.dim + 1 :]) != shape_of(node.outputs[0]):
        return None
    return replace(inner, nodes=(node, *inner.nodes), dropped=True)


def _single(graph: Graph, node: Node) -> Picked | None:
    """One place: of torch's select, or of a Gather with one number."""
    whole, place = node.inputs[0], node.attributes.get("index")
    if node.op == "gather":
        indices = node.inputs[1] if len(node.inputs) > 1 else None
        found = None if indices is None or indices.type.rank != 0 else extents_of(graph, indices)
        place = None if found is None else found[0]
    if whole is None or not isinstance(place, int):
        return None
    dim = _dim(node, shape_of(whole))
    extent = shape_of(whole)[dim] if dim is not None else None
    if dim is None or (place < 0 and not isinstance(extent, int)):
        return None
    start = place if place >= 0 else place + cast(int, extent)
    return Picked(whole, dim, start, start + 1, (node,), dropped=True)


def _dim(node: Node, shape: tuple[object, ...]) -> int | None:
    dim = node.attributes.get("axis", node.attributes.get("dim", 0))
    if not isinstance(dim, int) or not -len(shape) <= dim < len(shape):
        return None
    return dim % len(shape)


def _bounds(graph: Graph, node: Node, part: Value) -> tuple[int, int, int] | None:
    """The dim, and where the part begins and ends."""
    assert node.inputs[0] is not None, "asked only for nodes with an operand"
    whole = shape_of(node.inputs[0])
    if node.op in ("split", "aten.unbind"):
        dim = _dim(node, whole)
        return None if dim is None else _bounds_of_split(node, dim, part)
    if node.op != "slice":
        return None
    spelled = _slice_operands(graph, node)
    if spelled is None or not -len(whole) <= spelled[0] < len(whole):
        return None
    dim, start = spelled[0] % len(whole), spelled[1]
    extent, width = whole[dim], shape_of(part)[dim]
    if not isinstance(extent, int) or not isinstance(width, int):
        return None
    start = min(max(start + extent if start < 0 else start, 0), extent)
    return dim, start, start + width


def _slice_operands(graph: Graph, node: Node) -> tuple[int, int] | None:
    """The dim and the start of a slice with step 1 along one dim."""
    if "start" in node.attributes:
        dim, start, step = (node.attributes.get(name, other) for name, other in (("dim", 0), ("start", 0), ("step", 1)))
        return (dim, start) if isinstance(dim, int) and isinstance(start, int) and step == 1 else None
    numbers = [None if value is None else extents_of(graph, value) for value in node.inputs[1:]]
    starts, _, axes, steps = [*numbers, *[None] * 4][:4]
    single = starts is not None and axes is not None and len(starts) == len(axes) == 1 and steps in (None, (1,))
    if not single or starts is None or axes is None:
        return None
    return (axes[0], starts[0]) if isinstance(axes[0], int) and isinstance(starts[0], int) else None


def _bounds_of_split(node: Node, dim: int, part: Value) -> tuple[int, int, int] | None:
    start = 0
    for output in node.outputs:
        width = 1 if node.op == "aten.unbind" else shape_of(output)[dim]
        if not isinstance(width, int):
            return None
        if output.key == part.key:
            return dim, start, start + width
        start += width
    return None
