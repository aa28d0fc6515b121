"""The text form of snapshots: one line an operation, stable, and read back exactly.

    snapshot onnx "bert"
    input %x : float32[batch, 384]
    const %w "encoder.query.weight" : float32[384, 384]
    %y : float32[batch, 384] = linear(%x, %w, _) {alpha=1.0} @"encoder.query" native="MatMul" key="n3" meta={a="b"}
    output %y

`_` is an absent operand, `()` stands for no results, `?` for an unknown element type or shape. Left out are: a name
that is the key, an empty scope, a native name that is the op's, a node's key that is its first result's, and empty
braces. Keys, names and dims that are not plain words are quoted, with everything unprintable escaped. Attributes are
sorted.
"""

import math
import re
from collections.abc import Callable
from typing import Final, Literal, TypeVar, cast

from regraft.errors import SnapshotError
from regraft.graph._line import Line
from regraft.graph._printer import DIM, KEY, MAX_DEPTH, NAME, attribute_text, default_key, to_text, type_text
from regraft.graph.escape import escape
from regraft.graph.snapshot import Snapshot, SnapshotNode, SnapshotValue
from regraft.graph.types import Dim, TensorType
from regraft.graph.view import Attribute

__all__ = ["attribute_text", "parse", "parse_type", "to_text", "type_text"]

T = TypeVar("T")

_INTEGER: Final = re.compile(r"-?\d+(?![\d.e])", re.ASCII)
_NUMBER: Final = re.compile(r"-?(?:inf|\d+(?:\.\d+)?(?:e[+-]?\d+)?)", re.ASCII)
_WORDS: Final[dict[str, Attribute]] = {"none": None, "true": True, "false": False, "nan": math.nan, "inf": math.inf}
_SECTIONS: Final = ("input", "const", "node", "output")


def parse(text: str) -> Snapshot:
    """Return the snapshot that a text describes; whether operands exist is not looked at.

    Raises:
        SnapshotError: with the line, what was found there and what is needed.
    """
    lines = [Line(line, number) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    if not lines:
        raise SnapshotError('line 1: the text is empty; snapshot fx|onnx "<name>" is needed')
    kind, name = _header(lines[0])
    sections = _sections(lines[1:])
    inputs, constants = (tuple(_port(line) for line in sections[section]) for section in ("input", "const"))
    nodes = tuple(_node(line) for line in sections["node"])
    if not sections["output"]:
        raise SnapshotError(f"line {lines[-1].number}: the text ends; a last line that begins with output is needed")
    return Snapshot(kind, name, inputs, constants, nodes, _outputs(sections["output"][0]))


def parse_type(text: str) -> TensorType:
    """Return the type that a text such as `float32[batch, 4]` describes.

    Raises:
        SnapshotError: when it describes none.
    """
    line = Line(text, 1)
    found = _type(line)
    line.end()
    return found


def _header(line: Line) -> tuple[Literal["fx", "onnx"], str]:
    line.expect("snapshot")
    kind = line.match(NAME)
    if kind not in ("fx", "onnx"):
        raise line.error("the kind fx or onnx")
    name = line.quoted()
    if name is None:
        raise line.error("the snapshot's name between double quotes")
    line.end()
    return kind, name


def _sections(lines: list[Line]) -> dict[str, list[Line]]:
    sections: dict[str, list[Line]] = {section: [] for section in _SECTIONS}
    reached = 0
    for line in lines:
        place = _SECTIONS.index(_section(line))
        if place < reached or sections["output"]:
            raise line.error("the order input, const, nodes, one output")
        reached = place
        sections[_SECTIONS[place]].append(line)
    return sections


def _section(line: Line) -> str:
    if line.starts_with("%") or line.starts_with("()"):
        return "node"
    for section in ("input", "const", "output"):
        if line.take(section):
            return section
    raise line.error("a line that begins with input, const, output, %<key> or ()")


def _port(line: Line) -> SnapshotValue:
    value = _value(line)
    line.end()
    return value


def _outputs(line: Line) -> tuple[str, ...]:
    keys: list[str] = []
    while line.starts_with("%"):
        keys.append(_key(line))
        if not line.take(","):
            break
        if not line.starts_with("%"):
            raise line.error("%<key>")
    line.end()
    return tuple(keys)


def _node(line: Line) -> SnapshotNode:
    outputs = () if line.take("()") else _results(line)
    line.expect("=")
    op = _word(line, "an operation")
    inputs = _operands(line)
    attributes = _braced(line) if line.starts_with("{") else {}
    scope = _text(line) if line.take("@") else ""
    native = _text(line) if line.take("native=") else op
    key = _text(line) if line.take("key=") else default_key(outputs)
    metadata = _metadata(line) if line.take("meta=") else {}
    line.end()
    return SnapshotNode(key, op, native, scope, inputs, outputs, attributes, metadata)


def _results(line: Line) -> tuple[SnapshotValue, ...]:
    values = [_value(line)]
    while line.take(","):
        values.append(_value(line))
    return tuple(values)


def _operands(line: Line) -> tuple[str, ...]:
    line.expect("(")
    return tuple(_listed(line, ")", lambda: "" if line.take("_") else _key(line)))


def _listed(line: Line, close: str, read: Callable[[], T]) -> list[T]:
    items: list[T] = []
    while not line.take(close):
        if items and not line.take(","):
            raise line.error(f", or {close}")
        items.append(read())
    return items


def _value(line: Line) -> SnapshotValue:
    key = _key(line)
    name = line.quoted()
    line.expect(":")
    return SnapshotValue(key, key if name is None else name, _type(line))


def _key(line: Line) -> str:
    line.expect("%")
    bare = line.match_here(KEY)
    return line.quoted_here() if bare is None else bare


def _text(line: Line) -> str:
    found = line.quoted()
    if found is None:
        raise line.error("a text between double quotes")
    return found


def _word(line: Line, what: str) -> str:
    found = line.quoted()
    found = line.match(NAME) if found is None else found
    if found is None:
        raise line.error(what)
    return found


def _type(line: Line) -> TensorType:
    dtype = None if line.take("?") else _word(line, "a type such as float32[2, 3]")
    line.expect("[")
    if line.take("?"):
        line.expect("]")
        return TensorType(dtype)
    return TensorType(dtype, tuple(_listed(line, "]", lambda: _dim(line))))


def _dim(line: Line) -> Dim:
    quoted = line.quoted()
    if quoted is not None:
        return quoted
    symbolic = line.match(DIM)
    if symbolic is not None:
        return symbolic.rstrip()
    digits = line.match(_INTEGER)
    if digits is None:
        raise line.error("an extent, a name or an expression")
    return _int(line, digits)


def _braced(line: Line) -> dict[str, Attribute]:
    line.expect("{")
    attributes: dict[str, Attribute] = {}

    def read() -> None:
        name = _word(line, "the name of an attribute")
        line.expect("=")
        if name in attributes:
            raise line.error(f"another name than {escape(name)}, which has a value,")
        attributes[name] = _attribute(line, 0)

    _listed(line, "}", read)
    return attributes


def _metadata(line: Line) -> dict[str, str]:
    found = _braced(line)
    for name, value in found.items():
        if not isinstance(value, str):
            raise line.error(f"a quoted text as metadata {escape(name)}")
    return cast(dict[str, str], found)


def _attribute(line: Line, depth: int) -> Attribute:
    text = line.quoted()
    if text is not None:
        return text
    if line.take("("):
        return _tuple(line, depth)
    word = line.match(NAME)
    if word is not None:
        if word not in _WORDS:
            raise line.error(f"none, true, false, nan, inf, a number, a quoted text or a tuple instead of {word}")
        return _WORDS[word]
    digits = line.match(_INTEGER)
    if digits is not None:
        return _int(line, digits)
    number = line.match(_NUMBER)
    if number is None:
        raise line.error("a value")
    return float(number)


def _tuple(line: Line, depth: int) -> tuple[Attribute, ...]:
    if depth >= MAX_DEPTH:
        raise line.error(f"a value nested at most {MAX_DEPTH} deep")
    parts: list[Attribute] = []
    while not line.take(")"):
        parts.append(_attribute(line, depth + 1))
        if not line.take(",") and not line.starts_with(")"):
            raise line.error(", or )")
    return tuple(parts)


def _int(line: Line, digits: str) -> int:
    try:
        return int(digits)
    except ValueError as error:  # Python refuses integers of thousands of digits
        raise line.error(f"an integer of fewer than {len(digits)} digits") from error
