"""The main job: capture a model, rewrite it, check the rewrite, and hand it back in the form it came in."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, cast

import numpy as np
from torch import Tensor

from regraft._probes import gates_for, probes_for, remarks_on
from regraft._progress import Progress, reporter
from regraft._provenance import provenance, runs_of
from regraft.errors import OptionError
from regraft.models import to_graph
from regraft.passes import (
    Budget,
    Instrument,
    OnViolation,
    PassLike,
    Settings,
    instruments_from_environment,
    resolve_passes,
    run_passes,
    spelling,
)
from regraft.result import Optimized

LARGEST_SEED: Final = 2**32 - 1
"""Every random generator takes it, and what is added to it for each site."""


def optimize(
    model: Any,
    passes: PassLike | Sequence[PassLike],
    *,
    example_inputs: Any = None,
    dynamic_shapes: Any = "auto",
    calibration: Iterable[Any] | None = None,
    budget: Budget | None = None,
    on_violation: OnViolation = "rollback",
    strict: bool = True,
    seed: int = 0,
    progress: Progress = True,
    instruments: Sequence[Instrument] = (),
) -> Optimized:
    """Rewrite a model by passes, each rewrite checked, and return the result with its ledger.

    Args:
        model: an nn.Module, a torch ExportedProgram or GraphModule, an onnx.ModelProto, an onnx_ir.Model, or the path
            of an .onnx file; or the result of a run before, whose recipe and ledger the new one carries on, as it does
            those of a file. It is not changed; weights that are not rewritten are shared with it.
        passes: what to do: instances (`LowRank(keep=0.5)`), spellings (`"low-rank{keep=0.5},..."`) or the path of a
            recipe (.yaml).
        example_inputs: for PyTorch models: a tensor, a tuple of positional or a mapping of keyword arguments. For ONNX
            models optional: inputs on which the model's error is measured.
        dynamic_shapes: "auto" keeps batch and sequence dynamic; None fixes all extents; else as in torch.export.
        calibration: batches of inputs, any iterable; a DataLoader works when it gives inputs alone. Torch tensors and
            numpy arrays may be mixed.
        budget: limits for the whole model; what does not fit is taken back.
        on_violation: "rollback" takes back what breaks its promise or the budget, "raise" makes it an error, "warn"
            keeps it with a warning.
        strict: a pass that finds nothing to rewrite is an error, and a target or exclusion that fits no layer.
        seed: of everything random. Same inputs, seed and versions give the same result.
        progress: show progress on a terminal; or a function (stage, done, total).
        instruments: hooks before and after every pass.

    Raises:
        OptionError, UnknownNameError: when passes or options cannot be meant.
        CaptureError, ModelFileError, InputError: when the model or the inputs cannot be used.
        NoMatchError: when a pass rewrites nothing, or a target or exclusion fits no layer, and `strict` is set.
        VerificationError, BudgetError: when `on_violation` is "raise".
    """
    resolved = resolve_passes(passes)
    if on_violation not in ("rollback", "raise", "warn"):
        raise OptionError(f"on_violation must be 'rollback', 'raise' or 'warn'; got {on_violation!r}")
    if type(cast(Any, seed)) is not int or not 0 <= seed <= LARGEST_SEED:
        raise OptionError(f"seed must be a whole number from 0 to {LARGEST_SEED}; got {seed!r}")
    if not isinstance(cast(Any, budget), Budget | None):
        raise OptionError(f"budget must be a regraft.Budget; got {budget!r}", hint="regraft.Budget(max_error=0.05)")
    batches = _batches(calibration)
    with reporter(progress) as report:
        report("capture", 0, 0)
        graph = to_graph(model, example_inputs=example_inputs, dynamic_shapes=dynamic_shapes)
        probes = probes_for(graph, batches, example_inputs, seed)
        settings = Settings(
            calibration=batches,
            probes=probes,
            gates=gates_for(budget, graph, probes),
            on_violation=on_violation,
            strict=strict,
            seed=seed,
            report=report,
            instruments=(*instruments_from_environment(), *instruments),
        )
        rewritten, ledger = run_passes(graph, resolved, settings)
        ledger.notes = remarks_on(graph, probes)
        recipe = tuple(spelling(item) for item in resolved)
        earlier = model.runs if isinstance(model, Optimized) else runs_of(graph)
        return Optimized(rewritten, graph, ledger, recipe, provenance(graph, recipe, seed), earlier)


def _batches(calibration: Any) -> Iterable[Any] | None:
    """Return the batches, as something that can be iterated again and again."""
    if calibration is None:
        return None
    if isinstance(calibration, Tensor | np.ndarray | Mapping | str) or not isinstance(calibration, Iterable):
        given = type(calibration).__name__
        hint = "put a single batch in a list: calibration=[batch]"
        raise OptionError(f"calibration must be an iterable of batches of inputs; got one {given}", hint=hint)
    return list(calibration) if isinstance(calibration, Iterator) else calibration
