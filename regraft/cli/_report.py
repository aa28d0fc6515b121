"""The report of `regraft optimize`: what became of every site."""

from collections.abc import Mapping
from typing import Final

from rich.console import Console

from regraft.cli._output import on_terminal, print_lines, table
from regraft.ledger import Ledger, Status, entry_cells, pass_lines

_STYLES: Final[Mapping[Status, str]] = {"rewritten": "", "kept": "dim", "rolled back": "yellow"}


def print_ledger(ledger: Ledger) -> None:
    """Print what became of every site: a table on a terminal, else the ledger's own aligned lines."""
    if not on_terminal():
        print_lines(str(ledger).splitlines())
        return
    found = table(("pass", "layer", "", "", ""), [entry_cells(entry) for entry in ledger])
    for row, entry in zip(found.rows, ledger, strict=True):
        row.style = _STYLES[entry.status]
    Console(highlight=False).print(found)
    print_lines(pass_lines(ledger))
