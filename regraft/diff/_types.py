"""The parts of a diff: changes with their causes, constants, ports, and totals of both sides."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from regraft.graph.snapshot import SnapshotNode, SnapshotValue

ChangeKind = Literal["replaced", "removed", "added", "changed"]


@dataclass(frozen=True, slots=True)
class Cause:
    """The rewrite that a change comes from.

    Attributes:
        pass_name: name of the pass ("low-rank").
        site: the layer's name, as the pass called it.
        error: relative error of the layer's output; None when it is not known.
        bytes_before: parameter bytes of the site before the pass; None when they are not known.
        bytes_after: the same after it.
    """

    pass_name: str
    site: str
    error: float | None = None
    bytes_before: int | None = None
    bytes_after: int | None = None


@dataclass(frozen=True, slots=True)
class Change:
    """One place where the programs differ.

    Attributes:
        kind: replaced (other operations), removed, added, or changed (the same operation with other attributes,
            operands or result types).
        site: name of the layer; the key of the node where there is no name.
        before: nodes that stood there, in graph order.
        after: nodes that stand there now.
        was: what stood there, in a few words; not escaped.
        now: what stands there, in a few words; not escaped.
        causes: the rewrites that did it, in order; none when it is unexplained.
    """

    kind: ChangeKind
    site: str
    before: tuple[SnapshotNode, ...]
    after: tuple[SnapshotNode, ...]
    was: str
    now: str
    causes: tuple[Cause, ...] = ()

    @property
    def cause(self) -> Cause | None:
        """The last rewrite, or None when the change is unexplained."""
        return self.causes[-1] if self.causes else None


@dataclass(frozen=True, slots=True)
class ConstantChange:
    """A constant that only one side has; `bytes` is None when its size is not known."""

    value: SnapshotValue
    bytes: int | None


@dataclass(frozen=True, slots=True)
class PortChange:
    """An input or output of the whole program that differs; None on the side that has none at that place."""

    port: Literal["input", "output"]
    place: int
    before: SnapshotValue | None
    after: SnapshotValue | None


@dataclass(frozen=True, slots=True)
class Totals:
    """One side as a whole.

    Attributes:
        kind: graph language.
        name: what the model calls itself.
        nodes: number of nodes.
        parameter_bytes: bytes of all constants.
        macs: multiply-adds, as text of an expression over the dynamic dims.
        macs_at: multiply-adds for the diff's dims; None when those were not given.
        peak_activation_bytes: peak of live activations for the diff's dims; None when those were not given.
        uncounted: number of nodes whose multiply-adds are not known.
    """

    kind: Literal["fx", "onnx"]
    name: str
    nodes: int
    parameter_bytes: int
    macs: str
    macs_at: int | None
    peak_activation_bytes: int | None
    uncounted: int


@dataclass(frozen=True, slots=True)
class Summary:
    """Both sides as a whole.

    Attributes:
        unchanged: number of nodes that are the same on both sides.
        dims: extents for which the totals were computed; None when none were given.
    """

    before: Totals
    after: Totals
    unchanged: int
    dims: Mapping[str, int] | None = None
