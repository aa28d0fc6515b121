"""What stands at a place, in a few words: operations, their weights, and what is different about one."""

from collections.abc import Sequence
from typing import Final

from regraft.diff._side import Side
from regraft.graph.snapshot import SnapshotNode
from regraft.graph.text import attribute_text, type_text

_LISTED: Final = 4


def describe(side: Side, nodes: Sequence[SnapshotNode]) -> str:
    """Return operations and the shapes of their weights: "matmul + add 384x384"."""
    weights = " · ".join(dict.fromkeys(_weights(side, nodes))) if len(nodes) <= _LISTED else ""
    return f"{_operations(nodes)} {weights}".rstrip()


def describe_rewritten(side: Side, nodes: Sequence[SnapshotNode], words: str, op: str = "") -> str:
    """Return operations (or the op that a pass named) and the pass's own words for what stands there ("rank 96")."""
    return f"{op or _operations(nodes)} {words}" if words else describe(side, nodes)


def describe_difference(old: SnapshotNode, new: SnapshotNode, *, same_operands: bool) -> tuple[str, str]:
    """Return the operation with what differs about it, as it was and as it is."""
    was, now = [old.op], [new.op]
    if old.native != new.native:
        was.append(f"({old.native})")
        now.append(f"({new.native})")
    for name in sorted(old.attributes.keys() | new.attributes.keys()):
        texts = [
            f"{name}={attribute_text(node.attributes[name])}" if name in node.attributes else f"no {name}"
            for node in (old, new)
        ]
        if texts[0] != texts[1]:
            was.append(texts[0])
            now.append(texts[1])
    if not same_operands:
        was.append(_operands(old))
        now.append(_operands(new))
    types = [", ".join(type_text(value.type) for value in node.outputs) for node in (old, new)]
    if types[0] != types[1]:
        was.append(f": {types[0]}")
        now.append(f": {types[1]}")
    return " ".join(was), " ".join(now)


def _operations(nodes: Sequence[SnapshotNode]) -> str:
    ops = [node.op for node in nodes]
    return " + ".join(ops) if len(ops) <= _LISTED else f"{ops[0]} + {len(ops) - 1} more"


def _operands(node: SnapshotNode) -> str:
    return "of " + ", ".join(key or "_" for key in node.inputs)


def _weights(side: Side, nodes: Sequence[SnapshotNode]) -> list[str]:
    found = [side.constants[key].type.shape for node in nodes for key in node.inputs if key in side.constants]
    return ["x".join(str(dim) for dim in shape) for shape in found if shape is not None and len(shape) >= 2]
