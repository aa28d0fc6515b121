"""`regraft passes`: which passes there are, and what options they take."""

import inspect
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from regraft.cli._options import JsonOption
from regraft.cli._output import print_json, print_lines, print_rows
from regraft.passes import AnyPass, all_passes, get_pass, pass_options

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def passes(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="One pass, with its options.")] = None,
    as_json: JsonOption = False,
) -> None:
    """List the passes, or one pass with its options."""
    chosen = dict(all_passes()) if name is None else {name: get_pass(name)}
    if as_json:
        print_json({"passes": [_document(key, cls) for key, cls in chosen.items()]})
    elif name is None:
        print_rows(("pass", "needs", ""), [(key, cls.needs, _summary(cls)) for key, cls in chosen.items()])
    else:
        _print_one(name, chosen)


def _print_one(name: str, chosen: Mapping[str, type[AnyPass]]) -> None:
    cls = chosen[name]
    print_lines([f"{name}: {_summary(cls)}", f"needs {cls.needs}; {_exactness(cls)}"])
    print_rows(("option", "type", "default", ""), pass_options(cls))


def _document(name: str, cls: type[AnyPass]) -> dict[str, Any]:
    keys = ("name", "type", "default", "doc")
    return {
        "name": name,
        "doc": _summary(cls),
        "needs": cls.needs,
        "exact": cls.exact,
        "after": list(cls.after),
        "conflicts": list(cls.conflicts),
        "options": [dict(zip(keys, option, strict=True)) for option in pass_options(cls)],
    }


def _summary(cls: type[AnyPass]) -> str:
    return (inspect.getdoc(cls) or "").partition("\n")[0]


def _exactness(cls: type[AnyPass]) -> str:
    return "exact up to rounding" if cls.exact else "approximate"
