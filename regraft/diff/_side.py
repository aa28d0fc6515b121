"""One side of a diff: a snapshot with the look-ups that matching needs."""

import re
from functools import cached_property
from typing import Final

from regraft.graph.snapshot import Snapshot, SnapshotNode, SnapshotValue
from regraft.graph.types import TensorType

NUMBERED: Final = re.compile(r"(?:[a-z]{1,3}_?)?\d+")  # "17", "v17", "val_17": exporters count, passes do not


class Side:
    """A snapshot; nodes are addressed by their place in it."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        self.nodes = snapshot.nodes

    @cached_property
    def by_result(self) -> dict[str, int]:
        """Place of the first node that computes a value, by the value's key."""
        found: dict[str, int] = {}
        for place, node in enumerate(self.nodes):
            for value in node.outputs:
                if value.key:
                    found.setdefault(value.key, place)
        return found

    @cached_property
    def by_key(self) -> dict[str, int]:
        """Place of the first node of a key."""
        found: dict[str, int] = {}
        for place, node in enumerate(self.nodes):
            found.setdefault(node.key, place)
        return found

    @cached_property
    def readers(self) -> dict[str, list[int]]:
        """Places of the nodes that read a value, by the value's key, in order."""
        found: dict[str, list[int]] = {}
        for place, node in enumerate(self.nodes):
            for key in dict.fromkeys((*node.inputs, *self._extents(node))):
                found.setdefault(key, []).append(place)
        return found

    def _extents(self, node: SnapshotNode) -> list[str]:
        """Keys of computed numbers that attributes name, as torch's views name the extents of their result."""
        listed = [part for value in node.attributes.values() if isinstance(value, tuple) for part in value]
        return [part for part in listed if isinstance(part, str) and part in self.by_result]

    @cached_property
    def values(self) -> dict[str, SnapshotValue]:
        """Every value by key."""
        results = [value for node in self.nodes for value in node.outputs]
        return {value.key: value for value in (*results, *self.snapshot.constants, *self.snapshot.inputs)}

    @cached_property
    def constants(self) -> dict[str, SnapshotValue]:
        """Constants by key."""
        return {value.key: value for value in self.snapshot.constants}

    @cached_property
    def returned(self) -> frozenset[str]:
        """Keys of the values that the program returns."""
        return frozenset(self.snapshot.outputs)

    def users(self, place: int) -> list[int]:
        """Places of the nodes that read a result of this node."""
        return [user for value in self.nodes[place].outputs if value.key for user in self.readers.get(value.key, ())]

    def is_returned(self, place: int) -> bool:
        """Whether the program returns a result of this node."""
        return any(value.key in self.returned for value in self.nodes[place].outputs)

    def port(self, key: str) -> SnapshotValue:
        """Return the value of that key; one that is nowhere defined has no known type."""
        return self.values.get(key, SnapshotValue(key, key, TensorType()))

    def weights(self, node: SnapshotNode) -> frozenset[str]:
        """Return the names of the weights that a node reads: constants that are named, and no mere numbers."""
        found = [self.constants[key] for key in node.inputs if key in self.constants]
        return frozenset(value.name for value in found if value.type.shape and not NUMBERED.fullmatch(value.name))

    def fingerprint(self, node: SnapshotNode) -> tuple[object, ...]:
        """Return what a node is, apart from its key and its computed operands: equal ones are likely the same."""
        weights = tuple(self.constants[key].name for key in node.inputs if key in self.constants)
        return node.op, tuple(value.type for value in node.outputs), weights
