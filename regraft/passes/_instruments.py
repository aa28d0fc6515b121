"""Hooks before and after every pass: dumps, printing, and a reproducer when a pass crashes."""

import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, TextIO

from regraft._files import write_atomic
from regraft.errors import OutputError
from regraft.graph import Graph

DUMP_VARIABLE = "REGRAFT_DUMP"


class Instrument(Protocol):
    """Watches passes; may read the graphs, must not change them."""

    def before_pass(self, place: int, spelling: str, graph: Graph) -> None:
        """Called with the pass's number (from 0), its spelling and the graph that it will see."""
        ...

    def after_pass(self, place: int, spelling: str, graph: Graph, changed: bool) -> None:
        """Called with the graph that the pass left, after checks and rollbacks."""
        ...

    def on_crash(self, place: int, spelling: str, graph: Graph, error: BaseException) -> None:
        """Called when a pass raised something unexpected; `graph` is as it was before the pass."""
        ...


class Dump:
    """Writes every graph's text into a folder: `00-before.txt`, `01-low-rank.txt`, and `crash-01-low-rank.txt`."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._crashes = 0

    def before_pass(self, place: int, spelling: str, graph: Graph) -> None:
        """Write the graph once, before the first pass."""
        if place == 0:
            self._write("00-before.txt", str(graph.snapshot()))

    def after_pass(self, place: int, spelling: str, graph: Graph, changed: bool) -> None:
        """Write the graph after the pass."""
        self._write(f"{place + 1:02d}-{_name(spelling)}.txt", str(graph.snapshot()))

    def on_crash(self, place: int, spelling: str, graph: Graph, error: BaseException) -> None:
        """Write what is needed to see it again: the spelling, the error and the graph before the pass."""
        self._crashes += 1  # a pass may crash at many sites
        story = "".join(traceback.format_exception(error))
        self._write(
            f"crash-{self._crashes:02d}-{_name(spelling)}.txt", f"pass {spelling}\n\n{story}\n{graph.snapshot()}"
        )

    def _write(self, name: str, text: str) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            what = f"{DUMP_VARIABLE}={self.folder} cannot be made a folder: {error.strerror or error}"
            raise OutputError(what, hint="name a new folder, or one that can be written to") from error
        write_atomic(self.folder / name, text.encode())


class Print:
    """Prints the graph's text after every pass, or after those that changed something."""

    def __init__(self, *, only_changes: bool = False, stream: TextIO | None = None) -> None:
        self.only_changes = only_changes
        self.stream = stream

    def before_pass(self, place: int, spelling: str, graph: Graph) -> None:
        """Do nothing."""

    def after_pass(self, place: int, spelling: str, graph: Graph, changed: bool) -> None:
        """Print the graph."""
        if changed or not self.only_changes:
            stream = self.stream or sys.stderr
            stream.write(f"# after {spelling}{'' if changed else ' (no change)'}\n{graph.snapshot()}\n")

    def on_crash(self, place: int, spelling: str, graph: Graph, error: BaseException) -> None:
        """Do nothing."""


def instruments_from_environment() -> Sequence[Instrument]:
    """Return what the environment asks for: REGRAFT_DUMP=folder dumps every graph there."""
    folder = os.environ.get(DUMP_VARIABLE)
    return (Dump(folder),) if folder else ()


def _name(spelling: str) -> str:
    return spelling.partition("{")[0]
