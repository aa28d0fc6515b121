"""ONNX Runtime sessions over models in memory; large weights are lent to the session rather than written into it.

So no model is too large (a protobuf ends at 2 GB) and no temporary file is needed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import torch
from google.protobuf.message import EncodeError
from onnxruntime.capi import onnxruntime_pybind11_state as ort_state  # pyright: ignore[reportAttributeAccessIssue] - compiled
from torch import Tensor

from regraft.errors import BackendError

LENT_BYTES: Final = 1024
"""Weights of at least this size are lent; smaller ones may be shapes that ONNX Runtime wants to see when it plans."""

_QUIET: Final = 4  # fatal errors only: everything else comes as an exception too

# ONNX Runtime's exceptions have no base of their own but Exception; inputs of a wrong kind are ValueErrors.
_ORT_ERRORS: Final = (
    RuntimeError,
    ValueError,
    *(kind for kind in vars(ort_state).values() if isinstance(kind, type) and issubclass(kind, Exception)),
)


@dataclass(frozen=True)
class Session:
    """A session and the arrays that were lent to it, which must live as long as it does."""

    session: ort.InferenceSession
    lent: Sequence[Any]
    name: str

    def run(self, outputs: Sequence[str], feeds: Mapping[str, Tensor]) -> list[Tensor]:
        """Return the outputs of that name.

        Raises:
            BackendError: with ONNX Runtime's first line.
        """
        given = {name: _to_ort(tensor) for name, tensor in feeds.items()}
        try:
            results = self.session.run_with_ort_values(list(outputs), given)
            return [_from_ort(value) for value in results]
        except _ORT_ERRORS as error:
            raise BackendError(f"onnxruntime: {self.name} could not be run: {first_line(error)}") from error


@dataclass(frozen=True)
class SessionSettings:
    """How a session is made.

    Attributes:
        providers: ONNX Runtime's execution providers, in order of preference.
        threads: threads within an operator; 0 leaves it to ONNX Runtime.
        entries: session configuration entries ("session.force_spinning_stop": "1").
        without: names of ONNX Runtime's own rewrites that are left out ("SkipLayerNormFusion").
    """

    providers: Sequence[str] = ("CPUExecutionProvider",)
    threads: int = 0
    entries: Mapping[str, str] = field(default_factory=dict[str, str])
    without: Sequence[str] = ()


DEFAULT_SETTINGS: Final = SessionSettings()


def open_session(
    proto: onnx.ModelProto,
    lent: Mapping[str, ir.TensorProtocol],
    name: str,
    settings: SessionSettings = DEFAULT_SETTINGS,
) -> Session:
    """Return a session, by default on the CPU.

    Args:
        proto: the model; initializers in `lent` are marked external in it.
        lent: contents of those initializers by name.
        name: what the model is called in messages.
        settings: providers, threads and entries.

    Raises:
        BackendError: when ONNX Runtime refuses the model.
    """
    options = ort.SessionOptions()
    options.log_severity_level = _QUIET
    options.intra_op_num_threads = settings.threads
    for key, entry in settings.entries.items():
        options.add_session_config_entry(key, entry)
    values = {key: _lendable(tensor) for key, tensor in lent.items()}
    if values:
        options.add_external_initializers(list(values), list(values.values()))
    try:
        session = ort.InferenceSession(
            proto.SerializeToString(),
            options,
            providers=list(settings.providers),
            disabled_optimizers=list(settings.without),
        )
    except (*_ORT_ERRORS, EncodeError) as error:
        raise BackendError(f"onnxruntime: {name} could not be loaded: {first_line(error)}") from error
    return Session(session, list(values.values()), name)


def light_proto(model: ir.Model) -> tuple[onnx.ModelProto, dict[str, ir.TensorProtocol]]:
    """Return the model as a protobuf without its large top-level weights, and those weights by name."""
    clone = model.clone()
    lent: dict[str, ir.TensorProtocol] = {}
    values: list[ir.Value] = []
    for name, value in clone.graph.initializers.items():
        tensor = value.const_value
        if tensor is not None and tensor.dtype != ir.DataType.STRING and tensor.nbytes >= LENT_BYTES:
            lent[name] = tensor
            values.append(value)
            value.const_value = _placeholder(tensor, name)
    embed_external(clone, keep=frozenset(values))
    return ir.to_proto(clone), lent


def _placeholder(tensor: ir.TensorProtocol, name: str) -> ir.ExternalTensor:
    shape = ir.Shape(tensor.shape.numpy())
    return ir.ExternalTensor("lent", 0, int(tensor.nbytes), tensor.dtype, shape=shape, name=name)


def embed_external(model: ir.Model, keep: frozenset[ir.Value] = frozenset()) -> None:
    """Read external data into the model, but for that of the initializers in `keep`; changes the model."""
    for graph in (model.graph, *model.graph.subgraphs()):
        for name, value in graph.initializers.items():
            if isinstance(value.const_value, ir.ExternalTensor) and value not in keep:
                value.const_value = _in_memory(value.const_value, name)
    functions = (node for function in model.functions.values() for node in function.all_nodes())
    for node in (*model.graph.all_nodes(), *functions):
        for name, attribute in list(node.attributes.items()):
            if attribute.type == ir.AttributeType.TENSOR and not attribute.is_ref():
                tensor = attribute.as_tensor()
                if isinstance(tensor, ir.ExternalTensor):
                    node.attributes[name] = ir.AttrTensor(name, _in_memory(tensor, tensor.name))


def _in_memory(tensor: ir.ExternalTensor, name: str) -> ir.TensorProtocol:
    return ir.tensor(tensor.numpy(), dtype=tensor.dtype, name=name, doc_string=tensor.doc_string)


def first_line(error: Exception) -> str:
    """Return what ONNX Runtime says, without its error code and what follows."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].split(" : ", 3)[-1] if lines else type(error).__name__


def _lendable(tensor: ir.TensorProtocol) -> Any:
    array = np.ascontiguousarray(tensor.numpy())
    return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array, int(tensor.dtype))


def _to_ort(tensor: Tensor) -> Any:
    plain = tensor.detach().cpu().contiguous()
    if plain.dtype == torch.bfloat16:  # numpy has none
        bits = plain.view(torch.int16).numpy()
        return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(bits, int(ir.DataType.BFLOAT16))
    return ort.OrtValue.ortvalue_from_numpy(plain.numpy())


def _from_ort(value: Any) -> Tensor:
    if value.element_type() == int(ir.DataType.BFLOAT16):
        return torch.from_dlpack(value._ortvalue).clone()
    return torch.from_numpy(np.array(value.numpy()))
