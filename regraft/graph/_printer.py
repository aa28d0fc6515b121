"""Snapshots as text; the grammar is described in `regraft.graph.text`, which reads it back."""

import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from regraft.errors import SnapshotError
from regraft.graph.escape import quote
from regraft.graph.types import Dim, TensorType
from regraft.graph.view import Attribute

if TYPE_CHECKING:  # `Snapshot.__str__` calls this module
    from regraft.graph.snapshot import Snapshot, SnapshotNode, SnapshotValue

KEY: Final = re.compile(r"[A-Za-z0-9_./][A-Za-z0-9_./:#$-]*")
NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*")
DIM: Final = re.compile(r"[A-Za-z0-9_.()+*/ -]*[A-Za-z_][A-Za-z0-9_.()+*/ -]*")
MAX_DEPTH: Final = 64
"""How deep tuples may be nested in an attribute."""


def to_text(snapshot: "Snapshot") -> str:
    """Return the text form; equal snapshots have equal texts.

    Raises:
        SnapshotError: when an attribute is of a kind that attributes cannot have.
    """
    lines = [f"snapshot {snapshot.kind} {quote(snapshot.name)}"]
    lines += [f"input {value_text(value)}" for value in snapshot.inputs]
    lines += [f"const {value_text(value)}" for value in snapshot.constants]
    lines += [node_text(node) for node in snapshot.nodes]
    lines.append(" ".join(["output", ", ".join(_key(key) for key in snapshot.outputs)]).rstrip())
    return "\n".join(lines)


def value_text(value: "SnapshotValue") -> str:
    """Return a value with its type, and its name when that is not its key: `%w "query.weight" : float32[4, 4]`."""
    name = "" if value.name == value.key else f" {quote(value.name)}"
    return f"{_key(value.key)}{name} : {type_text(value.type)}"


def type_text(type_: TensorType) -> str:
    """Return a type as `float32[batch, 4]`; `?` stands for what is not known."""
    dtype = "?" if type_.dtype is None else bare_or_quoted(type_.dtype)
    dims = "?" if type_.shape is None else ", ".join(_dim(dim) for dim in type_.shape)
    return f"{dtype}[{dims}]"


def node_text(node: "SnapshotNode") -> str:
    """Return a node on one line."""
    results = ", ".join(value_text(value) for value in node.outputs) or "()"
    operands = ", ".join("_" if key == "" else _key(key) for key in node.inputs)
    parts = [f"{results} = {bare_or_quoted(node.op)}({operands})"]
    if node.attributes:
        parts.append(_braced(node.attributes, node.key))
    if node.scope:
        parts.append(f"@{quote(node.scope)}")
    if node.native != node.op:
        parts.append(f"native={quote(node.native)}")
    if node.key != default_key(node.outputs):
        parts.append(f"key={quote(node.key)}")
    if node.metadata:
        parts.append(f"meta={_braced(node.metadata, node.key)}")
    return " ".join(parts)


def default_key(outputs: "tuple[SnapshotValue, ...]") -> str:
    """Return the key of a node that the text does not give one: that of its first output."""
    return outputs[0].key if outputs else ""


def bare_or_quoted(name: str) -> str:
    """Return a name as it is where that is a plain word, else quoted."""
    return name if NAME.fullmatch(name) else quote(name)


def attribute_text(value: Attribute) -> str:
    """Return an attribute's value as the text form writes it.

    Raises:
        SnapshotError: when it is of a kind that attributes cannot have.
    """
    return _attribute(value, 0)


def _key(key: str) -> str:
    return f"%{key}" if KEY.fullmatch(key) else f"%{quote(key)}"


def _dim(dim: Dim) -> str:
    if isinstance(dim, int):
        return str(int(dim))
    return dim if DIM.fullmatch(dim) and dim == dim.strip() else quote(dim)


def _braced(attributes: Mapping[str, Attribute], owner: str) -> str:
    try:
        listed = [f"{bare_or_quoted(name)}={_attribute(attributes[name], 0)}" for name in sorted(attributes)]
    except SnapshotError as error:
        raise SnapshotError(f"node {quote(owner)}: {error}") from error
    return "{" + ", ".join(listed) + "}"


def _attribute(value: Attribute, depth: int) -> str:
    if isinstance(value, str):
        return quote(value)
    if value is None or isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return str(int(value))
    if isinstance(value, float):
        return "nan" if math.isnan(value) else float.__repr__(value)
    return _tuple(value, depth)


def _tuple(value: tuple[Attribute, ...], depth: int) -> str:
    if not isinstance(value, tuple):  # pyright: ignore[reportUnnecessaryIsInstance]  views may be made by third parties
        kinds = "None, bool, int, float, str or a tuple of these"
        raise SnapshotError(f"an attribute is a {type(value).__name__}; {kinds} is needed")
    if depth >= MAX_DEPTH:
        raise SnapshotError(f"an attribute is nested more than {MAX_DEPTH} deep")
    parts = [_attribute(part, depth + 1) for part in value]
    return f"({parts[0]},)" if len(parts) == 1 else f"({', '.join(parts)})"
