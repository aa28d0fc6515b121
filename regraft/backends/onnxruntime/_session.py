"""A graph as an ONNX Runtime session."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import onnxruntime as ort
from torch import Tensor

from regraft.backends._signature import call_inputs, inputs_of, outputs_of
from regraft.backends.onnxruntime._export import as_onnx
from regraft.backends.onnxruntime._spelling import for_this_runtime
from regraft.errors import BackendError
from regraft.frontends.onnx import Session, SessionSettings, bind_inputs, light_proto, open_session
from regraft.frontends.onnx._tensors import to_numpy
from regraft.graph import Graph
from regraft.graph.snapshot import SnapshotValue

PROVIDERS: Final[Mapping[str, tuple[str, ...]]] = {
    "cpu": ("CPUExecutionProvider",),
    "cuda": ("CUDAExecutionProvider", "CPUExecutionProvider"),
}

QUIET_THREADS: Final[Mapping[str, str]] = {"session.force_spinning_stop": "1"}
"""Idle threads of one session must not keep the cores from another that is alive beside it."""

SLOWER: Final[Mapping[str, tuple[str, ...]]] = {"cpu": ("SkipLayerNormFusion",), "cuda": ()}
"""Rewrites of ONNX Runtime that do not pay on a target: on CPUs, with version 1.32, the node for a sum and its layer
norm takes four times as long as the two (1024 rows of 384: 2.0 ms, 0.25 ms + 0.22 ms)."""


@dataclass(frozen=True, eq=False)
class OnnxRuntimeExecutable:
    """`Executable` over a session. Torch tensors in give torch tensors out, numpy arrays give arrays."""

    session: Session
    target: str
    inputs: Sequence[SnapshotValue]
    outputs: Sequence[SnapshotValue]
    declared: Sequence[Any]
    backend: str = "onnxruntime"

    def __call__(self, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """Return the outputs in order."""
        feeds = bind_inputs(self.declared, call_inputs([value.name for value in self.inputs], args, kwargs))
        results = self.session.run([value.name for value in self.outputs], feeds)
        as_torch = any(isinstance(value, Tensor) for value in (*args, *kwargs.values()))
        return tuple(results) if as_torch else tuple(map(to_numpy, results))


def compile(
    graph: Graph,
    target: str,
    *,
    threads: int = 0,
    entries: Mapping[str, str] = QUIET_THREADS,
    fuse_attention: bool = True,
) -> OnnxRuntimeExecutable:
    """Return an executable for any graph; one from PyTorch is translated first.

    Args:
        graph: what to run.
        target: "cpu" or "cuda".
        threads: threads within an operator; 0 uses every core.
        entries: ONNX Runtime session configuration entries.
        fuse_attention: whether attention is run by ONNX Runtime's own operator for it, wherever it is recognized.

    Raises:
        BackendError: when the target's provider is not installed, or ONNX Runtime refuses the model.
    """
    settings = SessionSettings(providers_for(target), threads, entries, SLOWER[target])
    native = for_this_runtime(as_onnx(graph)) if fuse_attention else as_onnx(graph)
    proto, lent = light_proto(native.model)
    session = open_session(proto, lent, native.name, settings)
    return OnnxRuntimeExecutable(session, target, inputs_of(native), outputs_of(native), native.model.graph.inputs)


def providers_for(target: str) -> tuple[str, ...]:
    """Return the execution providers of a target, in order of preference.

    Raises:
        BackendError: when the first of them is not installed.
    """
    wanted = PROVIDERS[target]
    available = ort.get_available_providers()
    if wanted[0] not in available:
        hint = "pip install onnxruntime-gpu" if target == "cuda" else None
        raise BackendError(
            f"onnxruntime backend: target {target!r} needs {wanted[0]}, there is {', '.join(available)}", hint=hint
        )
    return wanted
