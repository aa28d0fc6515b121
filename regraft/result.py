"""What `optimize` returns: the rewritten model, and everything that is known of the rewriting."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from regraft._progress import Progress, reporter
from regraft._provenance import LEDGER_KEY, Run, metadata_of
from regraft.backends import Executable, compile_graph
from regraft.backends._signature import call_inputs
from regraft.backends.onnxruntime import export_graph
from regraft.backends.tvm import tune_kernels
from regraft.diff import GraphDiff, diff
from regraft.errors import OptionError
from regraft.frontends.onnx import OnnxGraph
from regraft.frontends.onnx._tensors import to_numpy
from regraft.frontends.torch import FxGraph
from regraft.graph import Graph
from regraft.ledger import Ledger
from regraft.tune import Line, Records, Sampler, Settings


@dataclass(eq=False)
class Optimized:
    """A rewritten model.

    Attributes:
        graph: the rewritten program.
        original: the program before; shares its weights. None for a model that was only loaded.
        ledger: what was done, site by site, and what was refused and why; prints as a table.
        recipe: the passes as the command line spells them.
        provenance: what goes into an exported file's metadata: recipe, seed, versions, hash of the source.
        earlier: the runs that made the model that was optimized here, oldest first, each as a file's metadata tells it.
    """

    graph: Graph
    original: Graph | None
    ledger: Ledger
    recipe: tuple[str, ...]
    provenance: Mapping[str, str] = field(default_factory=dict[str, str])
    earlier: tuple[Run, ...] = ()

    @property
    def model(self) -> Any:
        """The rewritten model, of the kind that went in: an nn.Module, or an onnx_ir.Model."""
        if isinstance(self.graph, FxGraph):
            return self.graph.module
        assert isinstance(self.graph, OnnxGraph)
        return self.graph.closed()

    @cached_property
    def diff(self) -> GraphDiff:
        """What changed between original and rewritten program; prints as text, `save` writes .txt or .json.

        Raises:
            OptionError: when the original is not known.
        """
        if self.original is None:
            hint = "use regraft.diff(original, optimized)"
            raise OptionError("the original of a loaded model is not known, so there is no diff", hint=hint)
        return diff(self.original.snapshot(), self.graph.snapshot(), self.ledger)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model, by position or by name.

        Returns:
            What the model returns; for ONNX a tuple of arrays in the order of its outputs: torch tensors when it was
            given torch tensors, else numpy arrays.

        Raises:
            InputError: when the inputs do not fit.
        """
        if isinstance(self.graph, FxGraph):
            bound_args, bound_kwargs = self.graph.bind(call_inputs(self.graph.parameter_names, args, kwargs))
            return self.graph.module(*bound_args, **bound_kwargs)
        outputs, _ = self.graph.run(call_inputs([value.name for value in self.graph.inputs()], args, kwargs))
        return outputs if _any_tensor((*args, *kwargs.values())) else tuple(map(to_numpy, outputs))

    def export(
        self,
        path: str | os.PathLike[str],
        *,
        opset: int | None = None,
        functions: Literal["keep", "inline"] = "keep",
        target: Literal["onnxruntime"] | None = None,
    ) -> Path:
        """Write the rewritten model as an ONNX file.

        Args:
            path: where to; the file appears whole or not at all. Weights of more than 2 GB go into `<name>.data`
                beside it.
            opset: version of the standard operators; by default 21 for a PyTorch model, and the file's own for an ONNX
                model.
            functions: "keep" writes structured ops as nodes with a function of standard operators that any runtime can
                run; "inline" writes these operators in their place, and those of the model's own functions in theirs.
            target: None writes a file of standard operators, for any runtime; "onnxruntime" writes one for ONNX
                Runtime: every attention that is recognized becomes one node, as by the pass `fuse-attention`, and is
                spelled with that runtime's own operators (domain com.microsoft).

        Returns:
            The path.

        Raises:
            OptionError: when there is no such opset or target, or none that a model of this kind can be written at.
            ExportError: when an operator has no ONNX form at that opset.
            OutputError: when the path cannot be written, or is the file that the model was loaded from.
        """
        return export_graph(
            self.graph, Path(path), opset=opset, functions=functions, metadata=self.metadata, target=target
        )

    def compile(self, backend: str = "onnxruntime", target: str = "cpu", **options: Any) -> Executable:
        """Lower the rewritten model to something that runs.

        Args:
            backend: "onnxruntime", "torch", or "tvm", which needs the extra of that name.
            target: "cpu" or "cuda"; for "tvm" "llvm", of which "cpu" is another name.
            options: those of the backend.

        Raises:
            UnknownNameError, BackendError: when there is no such backend or target, or it cannot run the model.
            MissingExtraError: when the backend needs an extra that is not installed.
        """
        return compile_graph(self.graph, backend, target, **options)

    def tune(
        self,
        target: str = "cpu",
        *,
        records: str | os.PathLike[str],
        trials: int | None = 64,
        seconds: float | None = None,
        sampler: Sampler = "tpe",
        seed: int = 0,
        timeout_s: float = 60.0,
        progress: Progress = True,
    ) -> tuple[Line, ...]:
        """Measure the kernels of structured ops with other tiles, for `compile("torch", kernels="tvm", records=...)`.

        Each problem (op, extents, types) is tuned once, in a process of its own, for the rows of the example inputs;
        every candidate is held to its op in float64 before its time counts. Trials that the records hold already are
        not paid again; Ctrl-C ends it with what was found.

        Args:
            target: "cpu".
            records: file of trials (.jsonl), made or continued.
            trials: for each kernel in all, earlier ones included; no limit when None.
            seconds: for all of them together.
            sampler: "tpe", "random" or "grid".
            seed: of what is drawn.
            timeout_s: for one trial.
            progress: whether to show a bar on a terminal, or a function (stage, done, total).

        Returns:
            For each kernel its key, best trial and all trials.

        Raises:
            OptionError: for another target, or a budget that makes no sense.
            NoMatchError: when no structured op of the model has a kernel.
            MissingExtraError: when the extra [tvm] is not installed.
            OutputError: when the records cannot be written.
        """
        if target != "cpu":
            raise OptionError(f"tune: target must be 'cpu', for which kernels can be tuned; got {target!r}")
        settings = Settings(trials, seconds, sampler, seed)
        with reporter(progress) as report:
            return tune_kernels(self.graph, Records(records), settings, timeout_s, report)

    @property
    def runs(self) -> tuple[Run, ...]:
        """The runs that made this model, oldest first; one that changed nothing, or took all back, is none."""
        changed = bool(self.provenance) if self.original is None else self.graph is not self.original
        if not changed:
            return self.earlier
        ledger = json.dumps(self.ledger.without_times().to_dict(), sort_keys=True)
        return (*self.earlier, {**self.provenance, LEDGER_KEY: ledger})

    @property
    def metadata(self) -> dict[str, str]:
        """What an exported file says of its making, as text by key; the same for the same runs at another time.

        These are the keys of the last run, and "regraft.earlier_runs" when there were others: JSON, oldest first.
        """
        return metadata_of(self.runs)


def _any_tensor(values: Sequence[Any]) -> bool:
    return any(isinstance(value, Tensor | torch.nn.Parameter) for value in values)
