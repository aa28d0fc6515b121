"""What records say: one line a key, and the curve of the best time over the trials, drawn."""

import html
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from regraft._files import write_atomic
from regraft.errors import InputError
from regraft.tune._extra import extra
from regraft.tune._key import Key
from regraft.tune._records import Content, Trial, fastest


@dataclass(frozen=True)
class Line:
    """The trials of one key.

    Attributes:
        key: for what.
        best: the fastest; None when nothing went well.
        trials: in the order in which they were made.
    """

    key: Key
    best: Trial | None
    trials: tuple[Trial, ...]

    @property
    def failed(self) -> int:
        """How many did not go well."""
        return sum(trial.seconds is None for trial in self.trials)

    @property
    def curve(self) -> list[float]:
        """Seconds of the fastest so far, from the first trial that went well on."""
        found: list[float] = []
        for trial in self.trials:
            if trial.seconds is not None:
                found.append(min(trial.seconds, found[-1]) if found else trial.seconds)
            elif found:
                found.append(found[-1])
        return found


def lines_of(content: Content) -> list[Line]:
    """Return a line for each key, in the order in which they were first tried."""
    keys = dict.fromkeys(trial.key for trial in content.trials)
    return [Line(key, fastest(content.of(key)), tuple(content.of(key))) for key in keys]


def best_only(content: Content) -> list[Trial]:
    """Return the fastest trial of each key, which is what others need."""
    return [line.best for line in lines_of(content) if line.best is not None]


def draw(lines: Sequence[Line], path: Path) -> None:
    """Write the curves as a picture (.png, .svg) or as one self-contained page (.html).

    Raises:
        InputError: when there is nothing to draw.
        MissingExtraError: when matplotlib is not installed.
        OutputError: when the path cannot be written.
    """
    drawn = [line for line in lines if line.curve]
    if not drawn:
        raise InputError("tune: no trial went well, so there is no curve to draw")
    if path.suffix == ".html":
        write_atomic(path, _page(drawn).encode())
    else:
        write_atomic(path, _picture(drawn, path.suffix.removeprefix(".")))


def _picture(lines: Sequence[Line], kind: str) -> bytes:
    figures, ticker = extra("matplotlib.figure"), extra("matplotlib.ticker")
    figure = figures.Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for line in lines:
        counts, first = range(1, len(line.curve) + 1), line.curve[0]
        axes.step(counts, [seconds / first for seconds in line.curve], where="post", label=_label(line))
    axes.set_xlabel("trials")
    axes.set_ylabel("best time so far / first time")
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(ticker.MaxNLocator(integer=True))
    axes.legend(fontsize="small")
    axes.grid(alpha=0.3)
    buffer: Any = io.BytesIO()
    figure.savefig(buffer, format=kind, dpi=150)
    content: bytes = buffer.getvalue()
    return content


def _label(line: Line) -> str:
    assert line.best is not None
    assert line.best.seconds is not None
    return f"{line.key.title}: {1e6 * line.best.seconds:.1f} us"


def _page(lines: Sequence[Line]) -> str:
    picture = _picture(lines, "svg").decode()
    rows = "".join(f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row(line))}</tr>" for line in lines)
    head = "".join(f"<th>{html.escape(name)}</th>" for name in HEADER)
    style = "body{font:14px sans-serif;margin:2em;color-scheme:light dark}td,th{padding:.2em .8em;text-align:left}"
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Tuning</title><style>{style}'
        "svg{background:#fff;max-width:100%;height:auto}</style>"
        f"<h1>Tuning</h1>{picture[picture.index('<svg') :]}<table><tr>{head}</tr>{rows}</table></html>\n"
    )


HEADER = ("what", "best us", "config", "trials", "failed", "device", "compiler")


def row(line: Line) -> tuple[str, ...]:
    """Return the cells of a line, under `HEADER`."""
    best = line.best
    config = "" if best is None else " ".join(f"{name}={value}" for name, value in best.config.items())
    time = "" if best is None or best.seconds is None else f"{1e6 * best.seconds:.1f}"
    counts = (str(len(line.trials)), str(line.failed))
    return line.key.title, time, config, *counts, line.key.device, line.key.compiler
