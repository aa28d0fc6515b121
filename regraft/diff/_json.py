"""The parts of a diff as JSON types and back, exactly.

A tuple is a list, as attributes have no other one. Floats that JSON does not know are {"float": "nan"}.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, cast

from regraft.diff._types import Cause, Change, ConstantChange, PortChange, Summary, Totals
from regraft.graph.snapshot import SnapshotNode, SnapshotValue
from regraft.graph.types import TensorType
from regraft.graph.view import Attribute

Json = Any


def change_to(change: Change) -> dict[str, Json]:
    """Return a change as plain data."""
    return {
        "kind": change.kind,
        "site": change.site,
        "was": change.was,
        "now": change.now,
        "causes": [asdict(cause) for cause in change.causes],
        "before": [_node_to(node) for node in change.before],
        "after": [_node_to(node) for node in change.after],
    }


def change_from(data: Mapping[str, Json]) -> Change:
    """Return the change that `change_to` described."""
    return Change(
        kind=data["kind"],
        site=data["site"],
        before=tuple(_node_from(node) for node in data["before"]),
        after=tuple(_node_from(node) for node in data["after"]),
        was=data["was"],
        now=data["now"],
        causes=tuple(Cause(**cause) for cause in data["causes"]),
    )


def constant_to(change: ConstantChange) -> dict[str, Json]:
    """Return a constant as plain data."""
    return {"value": _value_to(change.value), "bytes": change.bytes}


def constant_from(data: Mapping[str, Json]) -> ConstantChange:
    """Return the constant that `constant_to` described."""
    return ConstantChange(_value_from(data["value"]), data["bytes"])


def port_to(change: PortChange) -> dict[str, Json]:
    """Return an input or output as plain data."""
    sides = {"before": change.before, "after": change.after}
    return {
        "port": change.port,
        "place": change.place,
        **{side: None if value is None else _value_to(value) for side, value in sides.items()},
    }


def port_from(data: Mapping[str, Json]) -> PortChange:
    """Return the input or output that `port_to` described."""
    before, after = (None if data[side] is None else _value_from(data[side]) for side in ("before", "after"))
    return PortChange(data["port"], data["place"], before, after)


def summary_to(summary: Summary) -> dict[str, Json]:
    """Return the totals as plain data."""
    return {
        "before": asdict(summary.before),
        "after": asdict(summary.after),
        "unchanged": summary.unchanged,
        "dims": None if summary.dims is None else dict(summary.dims),
    }


def summary_from(data: Mapping[str, Json]) -> Summary:
    """Return the totals that `summary_to` described."""
    return Summary(Totals(**data["before"]), Totals(**data["after"]), data["unchanged"], data["dims"])


def _node_to(node: SnapshotNode) -> dict[str, Json]:
    return {
        "key": node.key,
        "op": node.op,
        "native": node.native,
        "scope": node.scope,
        "inputs": list(node.inputs),
        "outputs": [_value_to(value) for value in node.outputs],
        "attributes": {name: _attribute_to(node.attributes[name]) for name in sorted(node.attributes)},
        "metadata": {name: node.metadata[name] for name in sorted(node.metadata)},
    }


def _node_from(data: Mapping[str, Json]) -> SnapshotNode:
    return SnapshotNode(
        key=data["key"],
        op=data["op"],
        native=data["native"],
        scope=data["scope"],
        inputs=tuple(data["inputs"]),
        outputs=tuple(_value_from(value) for value in data["outputs"]),
        attributes={name: _attribute_from(value) for name, value in data["attributes"].items()},
        metadata=dict(data["metadata"]),
    )


def _value_to(value: SnapshotValue) -> dict[str, Json]:
    shape = value.type.shape
    return {
        "key": value.key,
        "name": value.name,
        "dtype": value.type.dtype,
        "shape": None if shape is None else list(shape),
    }


def _value_from(data: Mapping[str, Json]) -> SnapshotValue:
    shape = data["shape"]
    type_ = TensorType(data["dtype"], None if shape is None else tuple(shape))
    return SnapshotValue(data["key"], data["name"], type_)


def _attribute_to(value: Attribute) -> Json:
    if isinstance(value, tuple):
        return [_attribute_to(part) for part in value]
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}
    return value


def _attribute_from(data: Json) -> Attribute:
    if isinstance(data, list):
        return tuple(_attribute_from(part) for part in cast(list[Json], data))
    if isinstance(data, dict):
        value = float(cast(dict[str, str], data)["float"])
        return math.nan if math.isnan(value) else value
    return data
