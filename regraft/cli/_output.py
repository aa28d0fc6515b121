"""What commands print on standard output: lines, a table on a terminal, or one JSON document."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

import typer
from rich.console import Console

from regraft.cli._text import printable


def print_lines(lines: Iterable[str]) -> None:
    """Print lines as they are, without wrapping; what a terminal would act on is escaped."""
    for line in lines:
        typer.echo(printable(line))


def print_json(document: Mapping[str, Any]) -> None:
    """Print one JSON document, and nothing else may be printed beside it."""
    typer.echo(json.dumps(document, indent=2, allow_nan=False))


def on_terminal() -> bool:
    """Whether standard output is a terminal that can show a table."""
    console = Console()
    return console.is_terminal and not console.is_dumb_terminal
