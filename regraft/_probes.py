"""What a model's error is measured on, and the limits that are measured with it."""

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any, Final

import torch

from regraft.backends import compare, compile_graph
from regraft.errors import InputError, OptionError
from regraft.frontends.onnx import OnnxGraph, bind_inputs
from regraft.frontends.torch import FxGraph, borrowed
from regraft.graph import Graph
from regraft.graph.random_values import random_value
from regraft.passes import Budget, ErrorGate, Gate, ScoreGate, SpeedGate, calibration_batch

MOST_PROBES: Final = 8
SPEED_ROUNDS: Final = 15


def probes_for(graph: Graph, calibration: Iterable[Any] | None, example_inputs: Any, seed: int) -> list[Any]:
    """Return batches to measure the model's error on: calibration, else the example inputs, else random ones.

    Random inputs that the graph cannot be run on give an empty list: then the model's error is not known.
    """
    if calibration is not None:
        batches = list(islice(calibration, MOST_PROBES))
        if not batches:
            raise InputError("calibration has no batch; at least one is needed")
        for place, batch in enumerate(batches):
            with calibration_batch(graph, batch, place):
                _bind(graph, batch)
        return batches
    if example_inputs is not None:
        return [example_inputs]
    random = random_inputs(graph, seed)
    if random is None:
        return []
    try:
        graph.run(random)
    except (InputError, RuntimeError, LookupError, ValueError):
        # A model may refuse arbitrary numbers (indices out of range); it is then not measured, and the ledger says so.
        return []
    return [random]


def remarks_on(graph: Graph, probes: Sequence[Any]) -> list[str]:
    """Return what a user should know of how the model was read, one line each."""
    if isinstance(graph, FxGraph):
        remarks = [f"captured by {rung.name!r}, for {rung.reason}" for rung in graph.capture_report if rung.reason]
        remarks.extend(graph.notes)
    else:
        remarks = list(graph.notes) if isinstance(graph, OnnxGraph) else []
    if not probes:
        remarks.append("the model's error was not measured: it cannot be run on random inputs; give example_inputs")
    return remarks


def random_inputs(graph: Graph, seed: int) -> dict[str, torch.Tensor] | None:
    """Return inputs by name: normal numbers, and zeros and ones for integers; None when a type is unknown.

    Those that have a content in the file keep it.
    """
    generator = torch.Generator().manual_seed(seed)
    extents: dict[str, int] = {}
    found: dict[str, torch.Tensor] = {}
    for value in graph.inputs():
        if value.has_default:
            continue
        drawn = random_value(value.type, extents, generator)
        if drawn is None:
            return None
        found[value.name] = drawn
    return found


def gates_for(budget: Budget | None, graph: Graph, probes: Sequence[Any]) -> list[Gate]:
    """Return the limits of a budget, with the original's figures measured.

    Raises:
        OptionError: when there is nothing to run the model on.
    """
    if budget is None:
        return []
    if not probes and (budget.max_error is not None or budget.min_speedup is not None):
        raise OptionError("budget: max_error and min_speedup need calibration or example_inputs to run the model on")
    gates: list[Gate] = []
    if budget.max_error is not None:
        gates.append(ErrorGate(budget.max_error, probes, [graph.run(batch)[0] for batch in probes]))
    if budget.evaluate is not None and budget.max_drop is not None:
        evaluate = budget.evaluate
        gates.append(ScoreGate(budget.max_drop, lambda other: score(other, evaluate), score(graph, evaluate)))
    if budget.min_speedup is not None:
        target = budget.target
        gates.append(
            SpeedGate(budget.min_speedup, lambda other: speedup(graph, other, probes[0], target), target == "cpu")
        )
    return gates


def score(graph: Graph, evaluate: Any) -> float:
    """Return the user's score of a graph, given to their function as a module of its own, or as an executable."""
    if isinstance(graph, FxGraph):
        with torch.no_grad():
            found = evaluate(borrowed(graph.module))
    else:
        found = evaluate(compile_graph(graph, _native_backend(graph)))
    try:
        return float(found)
    except (TypeError, ValueError, RuntimeError) as error:
        raise OptionError(f"budget: evaluate must return one number; got a {type(found).__name__}") from error


def speedup(original: Graph, rewritten: Graph, inputs: Any, target: str) -> float:
    """Return how many times faster the rewritten graph is: median of rounds in which both ran in turn."""
    runs = {
        name: compile_graph(graph, _native_backend(graph), target)
        for name, graph in (("original", original), ("rewritten", rewritten))
    }
    calls = {name: _bound(executable, inputs) for name, executable in runs.items()}
    return 1 / compare(calls, rounds=SPEED_ROUNDS).ratio("rewritten")


def _bind(graph: Graph, batch: Any) -> None:
    """Raise InputError for inputs that do not fit, before anything runs."""
    if isinstance(graph, FxGraph):
        graph.bind(batch)
    elif isinstance(graph, OnnxGraph):
        bind_inputs(graph.model.graph.inputs, batch)


def _bound(executable: Any, inputs: Any) -> Any:
    if hasattr(inputs, "keys"):
        return lambda: executable(**inputs)
    return lambda: executable(*(inputs if isinstance(inputs, tuple | list) else (inputs,)))


def _native_backend(graph: Graph) -> str:
    return "torch" if graph.kind == "fx" else "onnxruntime"
