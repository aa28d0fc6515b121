"""Which buffers are live when: one program point a node, plus one before the first.

An input is live from the start until its last use, a result from its node until its last use, and what the graph
returns until the end. Constants are no buffers. Operations in `ALIASES` return their first operand's buffer and so keep
it alive; everything else, transpose and slice included, writes a buffer of its own, as ONNX Runtime does.

A value from outside of a nested body (If, Loop, Scan) is live until the node that holds the body has run. What happens
inside is counted as if the body ran once.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from regraft.graph.snapshot import Snapshot, SnapshotNode

ALIASES: Final = frozenset(
    {"identity", "reshape", "view", "flatten", "squeeze", "unsqueeze", "detach", "alias", "dropout", "getitem"}
)
_HOLDERS: Final = frozenset({"if", "loop", "scan"})


@dataclass(frozen=True, slots=True)
class Step:
    """A program point.

    Attributes:
        key: of the node; "" for the start, where only the inputs are there.
        allocated: keys of the values whose buffers appear.
        freed: keys of the values whose buffers go after the node has run.
    """

    key: str
    allocated: tuple[str, ...]
    freed: tuple[str, ...]


def schedule(snapshot: Snapshot) -> list[Step]:
    """Return the start and then all nodes, in order, with the buffers that appear and go."""
    owners = _owners(snapshot)
    born: dict[str, int] = {}
    allocated: list[list[str]] = [[] for _ in range(len(snapshot.nodes) + 1)]
    for place, values in enumerate([snapshot.inputs, *(node.outputs for node in snapshot.nodes)]):
        for value in values:
            if owners.get(value.key) == value.key and value.key not in born:
                born[value.key] = place
                allocated[place].append(value.key)
    freed: list[list[str]] = [[] for _ in allocated]
    for key, place in _last_uses(snapshot, owners, born).items():
        freed[place].append(key)
    keys = ["", *(node.key for node in snapshot.nodes)]
    return [Step(key, tuple(new), tuple(old)) for key, new, old in zip(keys, allocated, freed, strict=True)]


def _owners(snapshot: Snapshot) -> dict[str, str]:
    """The value whose buffer a value lives in, by key; constants and views of them are in none."""
    owners = {value.key: value.key for value in snapshot.inputs}
    constants = {value.key for value in snapshot.constants}
    for node in snapshot.nodes:
        for place, value in enumerate(node.outputs):
            if not value.key:
                continue  # an absent optional result
            source = node.inputs[0] if place == 0 and node.op in ALIASES and node.inputs else ""
            if source in owners:
                owners.setdefault(value.key, owners[source])
            elif source in constants:
                constants.add(value.key)
            else:
                owners.setdefault(value.key, value.key)
    return owners


def _last_uses(snapshot: Snapshot, owners: dict[str, str], born: dict[str, int]) -> dict[str, int]:
    last = dict(born)
    bodies = _bodies(snapshot.nodes)
    for place, node in enumerate(snapshot.nodes, start=1):
        for operand in node.inputs:
            owner = owners.get(operand)
            if owner is not None and owner in last:
                last[owner] = max(last[owner], _end_of_use(place, born[owner], bodies))
    for key in snapshot.outputs:
        last.pop(owners.get(key, ""), None)
    return last


def _end_of_use(place: int, born: int, bodies: dict[int, list[tuple[int, int]]]) -> int:
    """Where a use at `place` ends: at the holder of the outermost body that the value was not born in."""
    return max((holder for begin, holder in bodies.get(place, ()) if born < begin), default=place)


def _bodies(nodes: Sequence[SnapshotNode]) -> dict[int, list[tuple[int, int]]]:
    """For nodes of nested bodies: the steps of the first node of each body around them, and of its holder."""
    found: dict[int, list[tuple[int, int]]] = {}
    for holder, node in enumerate(nodes):
        if node.op not in _HOLDERS:
            continue
        begin = holder
        while begin > 0 and nodes[begin - 1].key.startswith(f"{node.key}/"):
            begin -= 1
        for place in range(begin, holder):
            found.setdefault(place + 1, []).append((begin + 1, holder + 1))
    return found
