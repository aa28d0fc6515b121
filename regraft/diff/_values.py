"""Which values of two programs correspond, and which constants and ports differ."""

from collections.abc import Mapping, Sequence

from regraft.diff._match import Group
from regraft.diff._side import Side
from regraft.diff._types import ConstantChange, PortChange
from regraft.graph.cost import constant_bytes
from regraft.graph.snapshot import SnapshotNode, SnapshotValue

Values = Mapping[str, str]
"""Key of the corresponding value of the first program, by key in the second."""


def match_values(before: Side, after: Side, groups: Sequence[Group]) -> Values:
    """Return corresponding values: inputs, constants, and results of nodes that stand for each other."""
    values = _match_inputs(before.snapshot.inputs, after.snapshot.inputs)
    values.update(_match_constants(before, after))
    values.update({key: key for key in _undefined(after) if key not in before.values})
    for group in groups:
        if group.before and group.after:
            old, new = before.nodes[group.before[-1]], after.nodes[group.after[-1]]
            values.update(_match_results(old, new))
    return values


def constant_changes(
    before: Side, after: Side, values: Values
) -> tuple[tuple[ConstantChange, ...], tuple[ConstantChange, ...]]:
    """Return constants that were added and that were removed."""
    kept = {values[key] for key in after.constants if key in values}
    added = [value for value in after.constants.values() if value.key not in values]
    removed = [value for value in before.constants.values() if value.key not in kept]
    return _sized(added), _sized(removed)


def port_changes(before: Side, after: Side, values: Values) -> tuple[PortChange, ...]:
    """Return inputs and outputs that differ in name, type or, for outputs, in what they are."""
    changes: list[PortChange] = []
    inputs = _by_place(before.snapshot.inputs, after.snapshot.inputs)
    for place, (old, new) in enumerate(inputs):
        if old is None or new is None or (old.name, old.type) != (new.name, new.type):
            changes.append(PortChange("input", place, old, new))
    named = before.snapshot.kind == after.snapshot.kind == "onnx"  # the names of fx results are nobody's interface
    outputs = _by_place(_outputs(before), _outputs(after))
    for place, (old, new) in enumerate(outputs):
        same = old is not None and new is not None and values.get(new.key) == old.key and old.type == new.type
        if not same or (named and old is not None and new is not None and old.name != new.name):
            changes.append(PortChange("output", place, old, new))
    return tuple(changes)


def _match_inputs(before: Sequence[SnapshotValue], after: Sequence[SnapshotValue]) -> dict[str, str]:
    known = {value.key for value in before}
    values = {value.key: value.key for value in after if value.key in known}
    taken = set(values.values())
    for old, new in zip(before, after, strict=False):
        if new.key not in values and old.key not in taken:
            values[new.key] = old.key
    return values


def _match_constants(before: Side, after: Side) -> dict[str, str]:
    """Constants of one key and type, then those of one name and type."""
    values: dict[str, str] = {}
    for key, value in after.constants.items():
        old = before.constants.get(key)
        if old is not None and old.type == value.type:
            values[key] = key
    taken = set(values.values())
    by_name = {(old.name, old.type): key for key, old in before.constants.items() if key not in taken}
    for key, value in after.constants.items():
        if key not in values and (value.name, value.type) in by_name:
            values[key] = by_name.pop((value.name, value.type))
    return values


def _match_results(old: SnapshotNode, new: SnapshotNode) -> dict[str, str]:
    return {to.key: from_.key for from_, to in zip(old.outputs, new.outputs, strict=False)}


def _undefined(side: Side) -> set[str]:
    """Keys of operands that no line defines: what a nested body is given."""
    return {key for key in (*side.readers, *side.snapshot.outputs) if key not in side.values}


def _outputs(side: Side) -> list[SnapshotValue]:
    return [side.port(key) for key in side.snapshot.outputs]


def _by_place(
    before: Sequence[SnapshotValue], after: Sequence[SnapshotValue]
) -> list[tuple[SnapshotValue | None, SnapshotValue | None]]:
    count = max(len(before), len(after))
    return [(_at(before, place), _at(after, place)) for place in range(count)]


def _at(values: Sequence[SnapshotValue], place: int) -> SnapshotValue | None:
    return values[place] if place < len(values) else None


def _sized(values: Sequence[SnapshotValue]) -> tuple[ConstantChange, ...]:
    return tuple(ConstantChange(value, constant_bytes(value.type)) for value in values)
