"""`regraft diff`: what changed between two models."""

from pathlib import Path
from typing import Annotated

import typer

import regraft
from regraft.cli._models import is_function, load_model
from regraft.cli._options import InputsOption, JsonOption
from regraft.cli._output import print_json, print_lines
from regraft.cli._outputs import check_outputs, check_suffix

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def diff(
    before: Annotated[str, typer.Argument(metavar="A", help="An .onnx file, or package.module:function.")],
    after: Annotated[str, typer.Argument(metavar="B", help="The same; the ledgers in it, if any, name the causes.")],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE", help="Also write it: .txt or .json.")
    ] = None,
    inputs: InputsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what changed between two models, grouped by cause."""
    if output is not None:
        check_suffix("-o", output, (".txt", ".json"))
        check_outputs([output], [Path(model) for model in (before, after) if not is_function(model)])
    models = [load_model(model, inputs) for model in (before, after)]
    found = regraft.diff(*(regraft.load(model.source, example_inputs=model.example_inputs) for model in models))
    if output is not None:
        found.save(output)
    if as_json:
        print_json({"before": before, "after": after, **found.to_dict()})
    else:
        print_lines(str(found).splitlines())
