"""Brings the calls of one weight together: what is shared by several calls is one layer.

Who reads a weight is looked up once for each weight, so that a thousand calls cost a thousand steps.
"""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import Final

from regraft.graph.matcher import LOOK_THROUGH
from regraft.graph.site import LinearSite
from regraft.graph.view import Node, Value

MOST_READERS: Final = 8
"""Other readers of a weight that a site lists."""


def bring_together(calls: Sequence[LinearSite]) -> list[LinearSite]:
    """Return the layers that these calls are calls of, in the order of their first calls.

    Calls of one weight that is read in one way, and of one bias, are one layer. Layers of one name are numbered, and
    know what else reads their weights.
    """
    together: dict[Hashable, list[LinearSite]] = {}
    for call in calls:
        together.setdefault(_what_is_computed(call), []).append(call)
    readers: dict[str, list[Node]] = {}
    seen: dict[str, int] = {}
    layers: list[LinearSite] = []
    for group in together.values():
        weight = group[0].weight_value
        if weight.key not in readers:
            readers[weight.key] = sorted(_readers(weight), key=_label)
        number = seen[group[0].name] = seen.get(group[0].name, 0) + 1
        layers.append(_layer(_numbered(group, number), readers[weight.key]))
    return layers


def _what_is_computed(call: LinearSite) -> Hashable:
    bias = None if call.bias_value is None else call.bias_value.key
    return call.weight_value.key, bias, call.transposed, call.alpha, call.beta


def _numbered(group: list[LinearSite], number: int) -> list[LinearSite]:
    """The calls, with the number of the layer behind its name."""
    name = group[0].name
    if number == 1:
        return group
    return [replace(call, name=f"{name}#{number}") if call.name == name else call for call in group]


def _layer(calls: Sequence[LinearSite], readers: Sequence[Node]) -> LinearSite:
    first, *others = calls
    own = {key for call in calls for key in call.nodes}
    foreign = (_label(node) for node in readers if node.key not in own)
    listed = tuple(islice(foreign, MOST_READERS))
    if first.weight_value.is_output:
        listed += ("the model's output",)
    return replace(first, others=tuple(others), weight_readers=listed)


def _readers(weight: Value) -> Iterator[Node]:
    """Nodes that read a weight, also behind transposes and what else leaves its content alone."""
    waiting = list(weight.users)
    while waiting:
        node = waiting.pop()
        if node.op == "transpose" or node.op in LOOK_THROUGH:
            waiting.extend(node.outputs[0].users)
        else:
            yield node


def _label(node: Node) -> str:
    return node.scope or node.key
