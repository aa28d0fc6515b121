"""Progress: bars on a terminal, silence elsewhere, or whatever a caller wants to do with it."""

import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

from regraft.passes import Report, no_report

Progress = bool | Callable[[str, int, int], None]
"""Whether to show bars, or a function (stage, done, total); total 0 when it is not known."""


@contextmanager
def reporter(progress: Progress) -> Generator[Report]:
    """Yield a function that shows progress until the block ends."""
    if callable(progress):
        yield progress
        return
    if not progress or not sys.stderr.isatty():
        yield no_report
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Bars(*columns, console=Console(stderr=True), transient=True) as bars:
        tasks: dict[str, TaskID] = {}

        def report(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total or None)
            bars.update(tasks[stage], completed=done)

        yield report
