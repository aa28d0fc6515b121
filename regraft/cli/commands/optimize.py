"""`regraft optimize`: rewrite a model by passes, check every rewrite, write the result and say what was done."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

import regraft
from regraft._files import write_atomic
from regraft.backends.onnxruntime import check_opset
from regraft.cli._inputs import load_inputs
from regraft.cli._models import Model, is_function, load_model
from regraft.cli._options import InputsOption, JsonOption, ModelArgument
from regraft.cli._output import json_text, print_json, print_lines
from regraft.cli._outputs import check_outputs, check_suffix, model_bytes
from regraft.cli._report import print_ledger
from regraft.cli._text import size_text
from regraft.errors import OptionError
from regraft.passes import AnyPass, Budget, Instrument, Print, resolve_passes
from regraft.result import Optimized

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@dataclass(frozen=True)
class Outputs:
    """Files to write: the model, and where asked for the diff and the ledger."""

    model: Path
    diff: Path | None
    ledger: Path | None

    def check(self, inputs: list[Path]) -> None:
        """Raise for what could not be written in the end, before the long work."""
        check_suffix("-o", self.model, (".onnx",))
        if self.diff is not None:
            check_suffix("--diff", self.diff, (".txt", ".json"))
        if self.ledger is not None:
            check_suffix("--ledger", self.ledger, (".json",))
        check_outputs([path for path in (self.model, self.diff, self.ledger) if path is not None], inputs)


@app.command()
def optimize(
    model: ModelArgument,
    *,
    out: Annotated[Path, typer.Option("-o", "--output", metavar="OUT.onnx", help="Where the result goes.")],
    specs: Annotated[
        list[str] | None, typer.Option("-p", "--passes", metavar="PASSES", help="'low-rank{keep=0.4},llm-int8'.")
    ] = None,
    recipe: Annotated[Path | None, typer.Option(metavar="FILE.yaml", help="Passes from a file, after -p.")] = None,
    calibration: Annotated[
        list[Path] | None, typer.Option(metavar="FILE.npz", help="A batch of real inputs; may be given repeatedly.")
    ] = None,
    inputs: InputsOption = None,
    max_error: Annotated[float | None, typer.Option(help="Budget: largest relative output error.")] = None,
    min_speedup: Annotated[
        float | None, typer.Option(help="Budget: least speedup, measured; 1 keeps what is not slower.")
    ] = None,
    on_violation: Annotated[
        Literal["rollback", "raise", "warn"], typer.Option(help="When a check or the budget fails.")
    ] = "rollback",
    strict: Annotated[bool, typer.Option(help="Fail when a pass finds nothing, or a target fits no layer.")] = True,
    opset: Annotated[int | None, typer.Option(help="Version of the standard operators in the result.")] = None,
    functions: Annotated[
        Literal["keep", "inline"], typer.Option(help="Structured ops as functions, or as plain operators.")
    ] = "keep",
    target: Annotated[
        Literal["onnxruntime"] | None, typer.Option(help="Write for this runtime, attention fused; else for any.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    diff: Annotated[Path | None, typer.Option(metavar="FILE", help="Write what changed: .txt or .json.")] = None,
    ledger: Annotated[Path | None, typer.Option(metavar="FILE.json", help="Write what was done.")] = None,
    print_after_all: Annotated[bool, typer.Option("--print-after-all", help="The graph after every pass.")] = False,
    print_after_change: Annotated[
        bool, typer.Option("--print-after-change", help="The graph after passes that changed it.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print only errors and warnings.")] = False,
    progress: Annotated[bool, typer.Option(help="Bars on a terminal.")] = True,
    as_json: JsonOption = False,
) -> None:
    """Rewrite a model by passes that are checked layer by layer."""
    passes = _passes(specs, recipe)
    batches = calibration or []
    outputs = Outputs(out, diff, ledger)
    sources = [path for path in (recipe, inputs, *batches) if path is not None]
    outputs.check(sources if is_function(model) else [Path(model), *sources])
    check_opset(opset, from_torch=is_function(model))
    limited = max_error is not None or min_speedup is not None
    budget = Budget(max_error=max_error, min_speedup=min_speedup) if limited else None
    loaded = load_model(model, inputs)
    optimized = regraft.optimize(
        loaded.source,
        passes,
        example_inputs=loaded.example_inputs,
        calibration=[load_inputs(path) for path in batches] or None,
        budget=budget,
        on_violation=on_violation,
        strict=strict,
        seed=seed,
        progress=progress and not quiet,
        instruments=_instruments(print_after_all, print_after_change),
    )
    optimized.export(out, opset=opset, functions=functions, target=target)
    _write_reports(optimized, outputs)
    if as_json:
        print_json(_document(loaded, optimized, out))
    elif not quiet:
        print_ledger(optimized.ledger)
        print_lines([_closing_line(loaded, out)])


def _passes(specs: list[str] | None, recipe: Path | None) -> list[AnyPass]:
    wanted: list[AnyPass | str] = [*(specs or []), *([str(recipe)] if recipe else [])]
    if not wanted:
        raise OptionError("no pass was given", hint="-p NAME or --recipe FILE.yaml; `regraft passes` lists the names")
    if recipe is not None:
        check_suffix("--recipe", recipe, (".yaml", ".yml"))
    return resolve_passes(wanted)


def _instruments(after_all: bool, after_change: bool) -> list[Instrument]:
    return [Print(only_changes=not after_all)] if after_all or after_change else []


def _write_reports(optimized: Optimized, outputs: Outputs) -> None:
    if outputs.diff is not None:
        optimized.diff.save(outputs.diff)
    if outputs.ledger is not None:
        write_atomic(outputs.ledger, json_text(optimized.ledger.to_dict()).encode())


def _document(model: Model, optimized: Optimized, out: Path) -> dict[str, Any]:
    return {
        "model": model.spelling,
        "output": str(out),
        "recipe": list(optimized.recipe),
        "bytes": {"model": None if model.file is None else model_bytes(model.file), "output": model_bytes(out)},
        "model_error": optimized.ledger.model_error,
        "ledger": optimized.ledger.to_dict(),
        "diff": optimized.diff.to_dict()["summary"],
    }


def _closing_line(model: Model, out: Path) -> str:
    written = f"wrote {out}: {size_text(model_bytes(out))}"
    return written if model.file is None else f"{written}; {model.file} has {size_text(model_bytes(model.file))}"
