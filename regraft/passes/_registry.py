"""Which passes exist: those in this folder, found by listing it, and those that other packages register."""

import inspect
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, fields
from functools import lru_cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from pkgutil import iter_modules
from typing import Any, cast, get_type_hints

from regraft.errors import OptionError, UnknownNameError
from regraft.passes._pass import SitePass
from regraft.passes._recipe import read_yaml
from regraft.passes._spelling import coerce_options, default_of, meant, spell, split_passes, type_text

AnyPass = SitePass[Any, Any]
PassLike = AnyPass | str | os.PathLike[str]
"""An instance, a spelling, or the path of a recipe."""


@lru_cache(maxsize=1)
def all_passes() -> Mapping[str, type[AnyPass]]:
    """Return every pass class by name.

    Raises:
        OptionError: when another package registers a name that is taken, or something that is no pass.
    """
    folder = str(Path(__file__).parent)
    package = __name__.rpartition(".")[0]
    modules = sorted(item.name for item in iter_modules([folder]) if not item.name.startswith("_"))
    found = {name.replace("_", "-"): _class_in(f"{package}.{name}") for name in modules}
    for point in sorted(entry_points(group="regraft.passes"), key=lambda item: item.name):
        if point.name in found:
            raise OptionError(f"entry point regraft.passes {point.name!r} of {point.value}: the name is taken")
        found[point.name] = _registered(point)
    return found


def get_pass(name: str) -> type[AnyPass]:
    """Return the pass class of that name.

    Raises:
        UnknownNameError: with the names that exist.
    """
    passes = all_passes()
    if name not in passes:
        raise UnknownNameError(f"regraft.passes has no {name!r}{meant(name, passes)}; it has: {', '.join(passes)}")
    return passes[name]


def make_pass(name: str, options: Mapping[str, Any]) -> AnyPass:
    """Return a pass with options given as text or plain data."""
    cls = get_pass(name)
    return cls(**coerce_options(name, options, cast(Any, cls)))


def resolve_passes(passes: PassLike | Sequence[PassLike]) -> list[AnyPass]:
    """Return pass instances from instances, spellings or the path of a recipe, mixed as one likes.

    Raises:
        OptionError, UnknownNameError: when one cannot be meant.
        ModelNotFoundError: when a recipe does not exist.
    """
    listed: list[Any] = list(passes) if isinstance(passes, Iterable) and not isinstance(passes, str) else [passes]
    found: list[AnyPass] = []
    for item in listed:
        if isinstance(item, SitePass):
            found.append(item)
        elif isinstance(item, os.PathLike):
            found.extend(read_recipe(Path(item)))
        elif isinstance(item, str):
            found.extend(_from_text(item))
        else:
            raise OptionError(f"a pass must be an instance, a spelling or the path of a recipe; got {item!r}")
    if not found:
        raise OptionError(f"at least one pass is needed; there are: {', '.join(all_passes())}")
    return found


def read_recipe(path: Path) -> list[AnyPass]:
    """Return the passes of a recipe, a YAML file.

        passes:
          - low-rank: {keep: 0.5, targets: [encoder.*]}
          - llm-int8

    Raises:
        ModelNotFoundError, OptionError: when it does not exist or says something else.
    """
    data = read_yaml(path)
    if not isinstance(data, dict) or set(data) != {"passes"} or not isinstance(data["passes"], list):
        raise OptionError(f"recipe {path}: one key 'passes' with a list is needed; got {_summary(data)}")
    return [_from_recipe(path, item) for item in data["passes"]]


def spelling(instance: AnyPass) -> str:
    """Return a pass as the command line spells it."""
    return spell(instance.name, cast(Any, instance))


def pass_options(cls: type[AnyPass]) -> list[tuple[str, str, str, str]]:
    """Return name, type, default and description of every option of a pass."""
    hints = get_type_hints(cls)
    described = _attributes_section(inspect.getdoc(cls) or "")
    return [
        (item.name, type_text(hints[item.name]), _default_text(default_of(item)), described.get(item.name, ""))
        for item in fields(cast(Any, cls))
    ]


def _registered(point: EntryPoint) -> type[AnyPass]:
    """The pass class that another package registers."""
    where = f"entry point regraft.passes {point.name!r} of {point.value}"
    try:
        loaded = point.load()
    except (ImportError, AttributeError) as error:
        raise OptionError(f"{where}: cannot be loaded: {error}") from error
    if not (isinstance(loaded, type) and issubclass(loaded, SitePass)):
        raise OptionError(f"{where}: is no pass ({loaded!r})")
    if loaded.name != point.name:
        raise OptionError(f"{where}: calls itself {loaded.name!r}; the names must be equal")
    return cast(type[AnyPass], loaded)


def _class_in(module: str) -> type[AnyPass]:
    classes = [
        item
        for item in vars(import_module(module)).values()
        if isinstance(item, type) and issubclass(item, SitePass) and item.__module__ == module
    ]
    assert len(classes) == 1, f"{module} must define one pass"
    return cast(type[AnyPass], classes[0])


def _from_text(text: str) -> list[AnyPass]:
    if text.endswith((".yaml", ".yml")):
        return read_recipe(Path(text))
    return [make_pass(name, options) for name, options in split_passes(text)]


def _from_recipe(path: Path, item: Any) -> AnyPass:
    if isinstance(item, str):
        found = split_passes(item)
        if len(found) == 1:
            return make_pass(*found[0])
    if isinstance(item, dict) and len(item) == 1:
        ((name, options),) = item.items()
        if options is None or isinstance(options, dict):
            return make_pass(str(name), options or {})
    raise OptionError(f"recipe {path}: a pass is a name, or a name with options; got {item!r}")


def _summary(data: Any) -> str:
    return f"keys {sorted(map(str, data))}" if isinstance(data, dict) else type(data).__name__


def _default_text(value: Any) -> str:
    if value is MISSING:
        return "needed"
    if isinstance(value, tuple):
        return ", ".join(map(str, value)) or "none"
    return str(value).lower() if isinstance(value, bool) or value is None else str(value)


def _attributes_section(doc: str) -> dict[str, str]:
    """Descriptions by name from the "Attributes:" section of a docstring without its common indentation."""
    found: dict[str, str] = {}
    current = ""
    for line in doc.partition("\nAttributes:\n")[2].splitlines():
        indent, text = len(line) - len(line.lstrip()), line.strip()
        if text and indent == 0:
            break
        name, separator, rest = text.partition(": ")
        if indent == 4 and separator and name.isidentifier():
            current = name
            found[current] = rest
        elif current and text:
            found[current] += " " + text
    return found
