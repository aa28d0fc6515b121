"""Budgets: what a rewritten model may cost in accuracy or must gain in speed, and how that is measured."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from regraft.errors import OptionError
from regraft.graph import Graph
from regraft.graph.graph import Outputs
from regraft.passes._check import model_error


@dataclass(frozen=True)
class Budget:
    """Limits that the whole rewritten model must keep.

    Attributes:
        max_error: largest relative error of the model's outputs against the original's, on the calibration inputs (or
            the example inputs, when there is no calibration).
        evaluate: takes the model and returns a score; more is better. A PyTorch model is an nn.Module, as
            `optimized.model` is, run without gradients; it may be moved to another device, its weights must not be
            written to. An ONNX model is called by position or by name and returns a tuple.
        max_drop: how far the score may fall below the original's.
        min_speedup: least ratio of the original's time to the rewritten model's, measured side by side; 1.0 means
            "not slower". On "cpu" each rewritten site is held to it first, alone and on the model's own shapes, and
            what does not pay is taken back; both times are in the ledger.
        target: where speed is measured ("cpu").
    """

    max_error: float | None = None
    evaluate: Callable[[Any], float] | None = None
    max_drop: float | None = None
    min_speedup: float | None = None
    target: str = "cpu"

    def __post_init__(self) -> None:
        for name in ("max_error", "max_drop"):
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise OptionError(f"budget: {name} must be at least 0; got {value}")
        if self.min_speedup is not None and not self.min_speedup > 0:
            raise OptionError(f"budget: min_speedup must be above 0; got {self.min_speedup}")
        if (self.evaluate is None) != (self.max_drop is None):
            given, missing = ("max_drop", "evaluate") if self.evaluate is None else ("evaluate", "max_drop")
            raise OptionError(f"budget: {given} needs {missing} beside it")
        if self.max_error is None and self.evaluate is None and self.min_speedup is None:
            raise OptionError("budget: one of max_error, evaluate with max_drop, or min_speedup is needed")


class Gate(Protocol):
    """One limit, measured on a graph.

    Attributes:
        by_site: whether fewer rewritten sites can be expected to mend a violation.
    """

    by_site: bool

    def violation(self, graph: Graph) -> str:
        """Return "" when the graph keeps the limit, else one phrase with the measured and the allowed figure."""
        ...


@dataclass
class ErrorGate:
    """`Budget.max_error` on given batches."""

    max_error: float
    batches: Sequence[Any]
    reference: Sequence[Outputs]
    by_site: bool = field(default=True, init=False)

    def violation(self, graph: Graph) -> str:
        """Run the graph and compare with the original's outputs."""
        error = model_error(self.reference, [graph.run(batch)[0] for batch in self.batches])
        return "" if error <= self.max_error else f"max_error={self.max_error:g}: output error would be {error:.3g}"


@dataclass
class ScoreGate:
    """`Budget.evaluate` with `Budget.max_drop`."""

    max_drop: float
    score_of: Callable[[Graph], float]
    original_score: float
    by_site: bool = field(default=True, init=False)

    def violation(self, graph: Graph) -> str:
        """Score the graph and compare with the original's score."""
        drop = self.original_score - self.score_of(graph)
        return "" if drop <= self.max_drop else f"max_drop={self.max_drop:g}: the score would fall by {drop:.3g}"


@dataclass
class SpeedGate:
    """`Budget.min_speedup`: a ratio measured in one run, original and rewritten in turn.

    Attributes:
        times_sites: whether each site is timed, too, in its graph's own runtime on the CPU.
    """

    min_speedup: float
    speedup_of: Callable[[Graph], float]
    times_sites: bool = False
    by_site: bool = field(default=False, init=False)

    def violation(self, graph: Graph) -> str:
        """Time the graph beside the original."""
        speedup = self.speedup_of(graph)
        return "" if speedup >= self.min_speedup else f"min_speedup={self.min_speedup:g}: {speedup:.2f} was measured"


def least_speedup(gates: Sequence[Gate]) -> float:
    """Return what each site must gain alone; 0 where no gate asks for it."""
    return max((gate.min_speedup for gate in gates if isinstance(gate, SpeedGate) and gate.times_sites), default=0.0)
