"""What commands print on standard output: lines, a table on a terminal, or one JSON document."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from regraft.cli._text import aligned, printable


def print_lines(lines: Iterable[str]) -> None:
    """Print lines as they are, without wrapping; what a terminal would act on is escaped."""
    for line in lines:
        typer.echo(printable(line))


def print_json(document: Mapping[str, Any]) -> None:
    """Print one JSON document, and nothing else may be printed beside it."""
    typer.echo(json_text(document), nl=False)


def json_text(document: Mapping[str, Any]) -> str:
    """Return a document as strict JSON, which has no infinities: numbers that are not finite become null."""
    return json.dumps(_finite(document), indent=2, allow_nan=False) + "\n"


def on_terminal() -> bool:
    """Whether standard output is a terminal that can show a table."""
    console = Console()
    return console.is_terminal and not console.is_dumb_terminal


def print_rows(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table on a terminal, aligned lines elsewhere (then without the header, as for `cut` and `awk`)."""
    if on_terminal():
        Console(highlight=False).print(table(header, rows))
    else:
        print_lines(aligned(rows))


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """Return a table whose cells are shown as they are: names from a model are no markup."""
    found = Table(*header, box=box.SIMPLE_HEAD, pad_edge=False)
    for row in rows:
        found.add_row(*(Text(printable(cell)) for cell in row))
    return found


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
