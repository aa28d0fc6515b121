"""`regraft tune`: kernels measured with other tiles; records that can be resumed, looked at, merged and handed on."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from regraft._progress import reporter
from regraft.backends.tvm._tune_graph import tune_task
from regraft.backends.tvm._tuning import CpuTask, layer_task
from regraft.cli._options import JsonOption
from regraft.cli._output import print_json, print_lines, print_rows
from regraft.cli._outputs import check_outputs, check_suffix
from regraft.errors import InputError, OptionError
from regraft.tune import (
    HEADER,
    Line,
    Outcome,
    Records,
    Sampler,
    Settings,
    best_only,
    draw,
    lines_of,
    row,
)

app = typer.Typer(
    add_completion=False, rich_markup_mode=None, help="Measure kernels with other tiles, and keep records."
)

RecordsOption = Annotated[Path, typer.Option("--records", metavar="FILE.jsonl", help="Where trials are kept.")]
RecordsArgument = Annotated[Path, typer.Argument(metavar="FILE.jsonl", help="Records.")]
_ENDS = {
    "trials": "as many trials as asked for",
    "seconds": "the time is up",
    "space": "every config is tried",
    "gain": "nothing better is to be expected",
    "interrupted": "interrupted",
}
PICTURES = (".png", ".svg", ".html")


@app.command()
def run(
    op: Annotated[str, typer.Argument(metavar="OP", help="linear, lowrank_linear or monarch_linear.")],
    size: Annotated[
        list[str], typer.Option("--size", metavar="NAME=N", help="in, out, and rank, or blocks and block_rank.")
    ],
    rows: Annotated[int, typer.Option("--rows", min=1, help="Rows of the input.")] = 128,
    dtype: Annotated[str, typer.Option("--dtype", help="float32 or float64.")] = "float32",
    records: RecordsOption = Path("tune.jsonl"),
    trials: Annotated[int, typer.Option("--trials", min=1, help="In all, earlier ones included.")] = 64,
    seconds: Annotated[float | None, typer.Option("--seconds", min=0.001, help="Of this run.")] = None,
    sampler: Annotated[str, typer.Option("--sampler", help="tpe, random or grid.")] = "tpe",
    seed: Annotated[int, typer.Option("--seed", help="Of what is drawn.")] = 0,
    timeout: Annotated[float, typer.Option("--timeout", min=0.1, help="Seconds of one trial.")] = 60.0,
    study: Annotated[
        Path | None, typer.Option("--study", metavar="FILE", help="Optuna's journal, to share one search.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure a CPU kernel with other tiles; goes on where an earlier run ended, also a killed one."""
    task = layer_task(op, _sizes(size), rows, dtype)
    check_suffix("--records", records, (".jsonl",))
    check_outputs([records], [])
    settings = Settings(trials, seconds, _sampler(sampler), seed, study=None if study is None else str(study))
    outcome = _searched(task, Records(records), settings, timeout)
    (line,) = [found for found in lines_of(Records(records).read()) if found.key == task.key] or [
        Line(task.key, None, ())
    ]
    if as_json:
        print_json(_document(line) | {"paid": outcome.paid, "stopped": outcome.stopped})
        return
    print_lines([f"{outcome.paid} measured: {_ENDS[outcome.stopped]}; records in {records}"])
    _print([line])


@app.command()
def show(
    records: RecordsArgument,
    curve: Annotated[
        Path | None, typer.Option("--curve", metavar="FILE", help="Draw best times so far: .png, .svg or .html.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """List what was tuned, with the best of each, and draw how it was found."""
    if curve is not None:
        check_suffix("--curve", curve, PICTURES)
        check_outputs([curve], [records])
    lines = lines_of(_read(records))
    if curve is not None:
        draw(lines, curve)
    if as_json:
        print_json({"tuned": [_document(line) for line in lines]})
    else:
        _print(lines)


@app.command()
def merge(
    into: Annotated[Path, typer.Argument(metavar="INTO.jsonl", help="Records that others are added to.")],
    others: Annotated[list[Path], typer.Argument(metavar="FILE.jsonl...", help="Records to add.")],
) -> None:
    """Add the trials of other files; each once."""
    for path in others:
        _read(path)
    added = Records(into).merge([Records(path) for path in others])
    print_lines([f"{added} trials added to {into}"])


@app.command()
def export(
    records: RecordsArgument,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE.jsonl", help="Where to.")],
) -> None:
    """Write the best trial of each key alone, to hand on."""
    check_suffix("--output", output, (".jsonl",))
    check_outputs([output], [records])
    best = best_only(_read(records))
    if not best:
        raise InputError(f"{records}: no trial went well, so there is nothing to export")
    added = Records(output).merge_trials(best)
    print_lines([f"{added} trials written to {output}"])


def _searched(task: CpuTask, records: Records, settings: Settings, timeout: float) -> Outcome:
    with reporter(True) as report:
        return tune_task(task, records, settings, timeout, report, f"tune {task.op}")


def _read(path: Path) -> Any:
    """The records; lines that are none are named on the way."""
    if not path.exists():
        raise InputError(f"{path}: there is no such file of records")
    content = Records(path).read()
    for skipped in content.skipped:
        typer.echo(f"warning: {path}:{skipped.line}: skipped, {skipped.reason}", err=True)
    return content


def _sizes(given: Sequence[str]) -> dict[str, int]:
    found: dict[str, int] = {}
    for text in given:
        name, _, extent = text.partition("=")
        if not name or not extent.isdecimal() or int(extent) < 1:
            raise OptionError(f"--size must be NAME=N with N at least 1 (in=768); got {text!r}")
        found[name] = int(extent)
    return found


def _sampler(text: str) -> Sampler:
    chosen: Any = text  # Settings refuses what is none
    return chosen


def _document(line: Line) -> dict[str, Any]:
    best = line.best
    return {
        "key": line.key.as_json(),
        "best": None if best is None else {"config": dict(best.config), "seconds": best.seconds},
        "trials": len(line.trials),
        "failed": line.failed,
        "curve": line.curve,
    }


def _print(lines: Sequence[Line]) -> None:
    print_rows(HEADER, [row(line) for line in lines])
