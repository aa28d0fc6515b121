"""`regraft diff`: what changed between two models."""

from pathlib import Path
from typing import Annotated

import typer

import regraft
from regraft.cli._models import Model, load_model
from regraft.cli._options import InputsOption, JsonOption
from regraft.cli._output import print_json, print_lines
from regraft.cli._outputs import check_outputs, check_suffix
from regraft.diff import diff as diff_snapshots
from regraft.graph.snapshot import Snapshot
from regraft.ledger import Ledger
from regraft.models import to_graph

app = typer.Typer(rich_markup_mode=None)


@app.command()
def diff(
    before: Annotated[str, typer.Argument(metavar="A", help="An .onnx file, or package.module:function.")],
    after: Annotated[str, typer.Argument(metavar="B", help="The same; its ledger, if any, names the causes.")],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE", help="Also write it: .txt or .json.")
    ] = None,
    inputs: InputsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what changed between two models, grouped by cause."""
    models = [load_model(before, inputs), load_model(after, inputs)]
    if output is not None:
        check_suffix("-o", output, (".txt", ".json"))
        check_outputs([output], [model.file for model in models if model.file])
    first, _ = _read(models[0])
    second, ledger = _read(models[1])
    found = diff_snapshots(first, second, ledger)
    if output is not None:
        found.save(output)
    if as_json:
        print_json({"before": before, "after": after, **found.to_dict()})
    else:
        print_lines(str(found).splitlines())


def _read(model: Model) -> tuple[Snapshot, Ledger | None]:
    """The program of a model, and the ledger that an exported file carries."""
    if model.file is None:
        return to_graph(model.source, example_inputs=model.example_inputs).snapshot(), None
    loaded = regraft.load(model.file)
    return loaded.graph.snapshot(), loaded.ledger if len(loaded.ledger) else None
