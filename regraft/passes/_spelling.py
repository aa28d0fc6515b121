"""How passes are spelled on the command line and in recipes: `low-rank{keep=0.4,targets=re:.*mlp.*},llm-int8`.

passes  := pass ("," pass)*
pass    := name [ "{" [ option ("," option)* ] "}" ]
option  := key "=" value
value   := quoted | "[" item (";" item)* "]" | text without , { } that begins with neither [ nor a quote
item    := quoted | text without ; ] that begins with no quote
quoted  := text between two " or two ', in which that quote stands twice for itself
"""

import difflib
from collections.abc import Collection, Mapping
from dataclasses import MISSING, Field, fields
from typing import Any, ClassVar, Final, Protocol, get_args, get_type_hints

from pydantic import TypeAdapter, ValidationError

from regraft.errors import OptionError

RawOptions = Mapping[str, Any]

_PLAIN: Final[Mapping[str, str]] = {
    "float": "a number",
    "int": "a whole number",
    "bool": "true or false",
    "str": "text",
    "tuple[str, ...]": "names",
}
_MARKS: Final = frozenset(",{}[];=\"'")


class Dataclass(Protocol):
    """Any dataclass."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]


def split_passes(text: str) -> list[tuple[str, RawOptions]]:
    """Return names and uninterpreted options of a spelling.

    Raises:
        OptionError: that quotes the place where the spelling breaks off.
    """
    scanner = _Scanner(text)
    found = [_pass(scanner)]
    while scanner.take(","):
        found.append(_pass(scanner))
    if not scanner.at_end:
        raise scanner.error("a comma or the end is needed")
    return found


def coerce_options(owner: str, options: RawOptions, of: type[Dataclass]) -> dict[str, Any]:
    """Return options converted to the types of a dataclass's fields.

    Args:
        owner: name for messages ("low-rank").
        options: values as text, or as YAML gives them.
        of: the dataclass.

    Raises:
        OptionError: for an option that does not exist or a value of another type.
    """
    hints = get_type_hints(of)
    known = [item.name for item in fields(of)]
    result: dict[str, Any] = {}
    for key, raw in options.items():
        name = str(key).replace("-", "_")
        if name not in known:
            options_known = ", ".join(known) or "none"
            raise OptionError(f"{owner} has no option {key!r}{meant(name, known)}; it has: {options_known}")
        if name in result:
            raise OptionError(f"{owner}: {name} is given twice; once is needed")
        result[name] = _coerce(owner, name, raw, hints[name])
    return result


def spell(name: str, instance: Dataclass) -> str:
    """Return the shortest spelling of a pass: its name, and the options that differ from their defaults."""
    changed = {
        item.name: getattr(instance, item.name)
        for item in fields(instance)
        if getattr(instance, item.name) != default_of(item)
    }
    options = ",".join(f"{key}={_spell_value(value)}" for key, value in changed.items())
    return f"{name}{{{options}}}" if options else name


def type_text(hint: Any) -> str:
    """Return a type as messages and lists show it ("a number", "names", "a whole number or none")."""
    text = hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")
    if text.startswith("Literal["):
        return " or ".join(part.strip().strip("'") for part in text[8:-1].split(","))
    return " or ".join("none" if part == "None" else _PLAIN.get(part, part) for part in text.split(" | "))


def meant(name: str, known: Collection[str]) -> str:
    """Return " (did you mean 'x'?)" when a known name is close, else ""."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" (did you mean {close[0]!r}?)" if close else ""


def _coerce(owner: str, name: str, raw: Any, hint: Any) -> Any:
    value = raw
    if hint == tuple[str, ...] and isinstance(raw, str):
        value = (raw,)
    if isinstance(raw, str) and raw.lower() in ("none", "null") and "None" in str(hint):
        value = None
    if isinstance(raw, bool) and bool not in (hint, *get_args(hint)):  # YAML's yes is not the number 1
        raise OptionError(f"{owner}: {name} must be {type_text(hint)}; got {str(raw).lower()}")
    try:
        return TypeAdapter(hint).validate_python(value)
    except ValidationError:
        raise OptionError(f"{owner}: {name} must be {type_text(hint)}; got {raw!r}") from None


def default_of(item: Field[Any]) -> Any:
    """Return the default of a field; MISSING when it has none."""
    if item.default is not MISSING:
        return item.default
    return item.default_factory() if item.default_factory is not MISSING else MISSING


def _spell_value(value: Any) -> str:
    if isinstance(value, tuple):
        return "[" + ";".join(_spell_value(part) for part in value) + "]"
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    text = str(value)
    marked = not text or any(character.isspace() or character in _MARKS for character in text)
    return '"' + text.replace('"', '""') + '"' if marked else text


class _Scanner:
    """The rest of a text, read from the left."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.place = 0
        self.skip_space()

    @property
    def at_end(self) -> bool:
        return self.place >= len(self.text)

    def skip_space(self) -> None:
        while self.place < len(self.text) and self.text[self.place].isspace():
            self.place += 1

    def take(self, wanted: str) -> bool:
        found = self.text.startswith(wanted, self.place)
        if found:
            self.place += len(wanted)
            self.skip_space()
        return found

    def word(self, stops: str) -> str:
        begin = self.place
        while self.place < len(self.text) and self.text[self.place] not in stops:
            self.place += 1
        return self.text[begin : self.place].strip()

    def quoted(self) -> str | None:
        """Text between quotes, if there is a quote here."""
        mark = self.text[self.place : self.place + 1]
        if mark not in ('"', "'"):
            return None
        found, begin = "", self.place + 1
        while (end := self.text.find(mark, begin)) >= 0:
            found += self.text[begin:end]
            if self.text[end + 1 : end + 2] != mark:
                self.place = end + 1
                self.skip_space()
                return found
            found, begin = found + mark, end + 2
        raise self.error(f"a closing {mark} is needed")

    def error(self, needed: str) -> OptionError:
        rest = repr(self.text[self.place :]) if not self.at_end else "the end"
        return OptionError(f"cannot read the passes {self.text!r}: {needed} at {rest}")


def _pass(scanner: _Scanner) -> tuple[str, RawOptions]:
    name = scanner.word(",{}[]=;")
    if not name:
        raise scanner.error("the name of a pass is needed")
    options: dict[str, Any] = {}
    if scanner.take("{"):
        while not scanner.take("}"):
            key = scanner.word(",{}[]=;")
            if not key or not scanner.take("="):
                raise scanner.error("an option such as keep=0.5, or }, is needed")
            if key in options:
                raise scanner.error(f"{key} is given twice; once is needed")
            options[key] = _value(scanner)
            if not scanner.take(",") and not scanner.text.startswith("}", scanner.place):
                raise scanner.error("a comma or } is needed")
    return name, options


def _value(scanner: _Scanner) -> Any:
    if not scanner.take("["):
        return _single_value(scanner, ",{}")
    parts: list[str] = []
    while not scanner.take("]"):
        parts.append(_single_value(scanner, ";]"))
        if not scanner.take(";") and not scanner.text.startswith("]", scanner.place):
            raise scanner.error("; or ] is needed")
    return tuple(parts)


def _single_value(scanner: _Scanner, stops: str) -> str:
    found = scanner.quoted()
    if found is None:
        found = scanner.word(stops)
        if not found:
            raise scanner.error("a value is needed")
    return found
