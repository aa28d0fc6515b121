"""`regraft explain`: what a pass would do with every place of a model, and why not."""

from typing import Annotated

import typer

import regraft
from regraft.cli._models import load_model
from regraft.cli._options import InputsOption, JsonOption, ModelArgument
from regraft.cli._output import print_json, print_lines
from regraft.passes import resolve_passes

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def explain(
    model: ModelArgument,
    pass_spec: Annotated[str, typer.Argument(metavar="PASS", help="One pass: 'low-rank{keep=0.4}'.")],
    site: Annotated[
        str | None, typer.Option("--site", metavar="NAME", help="One layer, a glob or re: pattern.")
    ] = None,
    inputs: InputsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say what a pass would do with every layer, and why not."""
    resolve_passes(pass_spec)  # a misspelt pass is reported before the model is loaded
    loaded = load_model(model, inputs)
    explanation = regraft.explain(loaded.source, pass_spec, site, example_inputs=loaded.example_inputs)
    if as_json:
        print_json({"model": model, **explanation.to_dict()})
    else:
        print_lines(str(explanation).splitlines())
