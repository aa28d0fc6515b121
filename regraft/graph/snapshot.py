"""A program as plain data, without its weights: what diffs compare, costs count and texts show."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from regraft.graph._printer import to_text
from regraft.graph.types import TensorType
from regraft.graph.view import Attribute, Node, Value


@dataclass(frozen=True, slots=True)
class SnapshotValue:
    """A typed name. `key` is unique in the snapshot; `name` is what the user's model calls it."""

    key: str
    name: str
    type: TensorType


@dataclass(frozen=True, slots=True)
class SnapshotNode:
    """One operation; fields as in `regraft.graph.Node`, operands by key ("" for an absent one)."""

    key: str
    op: str
    native: str
    scope: str
    inputs: tuple[str, ...]
    outputs: tuple[SnapshotValue, ...]
    attributes: Mapping[str, Attribute] = field(default_factory=dict[str, Attribute])
    metadata: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A whole program: inputs, constants, nodes in topological order, and the keys of the outputs."""

    kind: Literal["fx", "onnx"]
    name: str
    inputs: tuple[SnapshotValue, ...]
    constants: tuple[SnapshotValue, ...]
    nodes: tuple[SnapshotNode, ...]
    outputs: tuple[str, ...]

    def __str__(self) -> str:
        return to_text(self)


class Viewable(Protocol):
    """The part of `Graph` that a snapshot is taken from."""

    @property
    def kind(self) -> Literal["fx", "onnx"]: ...
    @property
    def name(self) -> str: ...
    def inputs(self) -> Sequence[Value]: ...
    def outputs(self) -> Sequence[Value]: ...
    def constants(self) -> Sequence[Value]: ...
    def nodes(self) -> Sequence[Node]: ...


def snapshot_of(graph: Viewable) -> Snapshot:
    """Return the snapshot of any graph, read through its views."""
    return Snapshot(
        kind=graph.kind,
        name=graph.name,
        inputs=tuple(_value(value) for value in graph.inputs()),
        constants=tuple(_value(value) for value in graph.constants()),
        nodes=tuple(_node(node) for node in graph.nodes()),
        outputs=tuple(value.key for value in graph.outputs()),
    )


def _value(value: Value) -> SnapshotValue:
    return SnapshotValue(value.key, value.name, value.type)


def _node(node: Node) -> SnapshotNode:
    return SnapshotNode(
        key=node.key,
        op=node.op,
        native=node.native,
        scope=node.scope,
        inputs=tuple("" if value is None else value.key for value in node.inputs),
        outputs=tuple(_value(value) for value in node.outputs),
        attributes=dict(node.attributes),
        metadata=dict(node.metadata),
    )
