"""Brings the calls of one weight together: what is shared by several calls is one layer.

Exporters that fold a transpose into a weight write a copy for each call: copies that calls of one name read, with one
bias, count as one weight. Who reads a weight is looked up once for each weight, so that work grows with the calls.
"""

import hashlib
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Final

import torch

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
    copies = _copies(calls)
    together: dict[Hashable, list[LinearSite]] = {}
    for call in calls:
        weight = copies.get(call.weight_value.key, call.weight_value.key)
        together.setdefault((weight, *_how_it_is_read(call)), []).append(call)
    readers: dict[str, list[Node]] = {}
    seen: dict[str, int] = {}
    layers: list[LinearSite] = []
    for group in together.values():
        weights = {call.weight_value.key: call.weight_value for call in group}
        readers.update({key: sorted(_readers(weights[key]), key=_label) for key in weights.keys() - readers.keys()})
        number = seen[group[0].name] = seen.get(group[0].name, 0) + 1
        layers.append(_layer(_numbered(group, number), [node for key in weights for node in readers[key]]))
    return layers


def _how_it_is_read(call: LinearSite) -> tuple[Hashable, ...]:
    bias = None if call.bias_value is None else call.bias_value.key
    return bias, call.transposed, call.alpha, call.beta


def _copies(calls: Sequence[LinearSite]) -> Mapping[str, str]:
    """Keys of weights that are copies, with the key of the first copy; only of weights that could be one."""
    alike: dict[Hashable, dict[str, LinearSite]] = {}
    for call in calls:
        group = alike.setdefault((call.name, call.shape, *_how_it_is_read(call)), {})
        group.setdefault(call.weight_value.key, call)
    copies: dict[str, str] = {}
    for group in alike.values():
        first: dict[Hashable, str] = {}
        for key, call in group.items() if len(group) > 1 else ():
            copies[key] = first.setdefault(_content(call), key)
    return copies


def _content(call: LinearSite) -> Hashable:
    stored = call.graph.constant(call.weight_value)
    if stored is None:
        return call.weight_value.key
    content = stored.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()
    return str(stored.dtype), hashlib.sha256(content).digest()


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
