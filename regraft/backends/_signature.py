"""Names and types that a graph takes and returns."""

from regraft.graph import Graph, Value
from regraft.graph.snapshot import SnapshotValue


def inputs_of(graph: Graph) -> tuple[SnapshotValue, ...]:
    """Return the graph's inputs in order."""
    return tuple(_plain(value) for value in graph.inputs())


def outputs_of(graph: Graph) -> tuple[SnapshotValue, ...]:
    """Return the graph's outputs in order."""
    return tuple(_plain(value) for value in graph.outputs())


def _plain(value: Value) -> SnapshotValue:
    return SnapshotValue(value.key, value.name, value.type)
