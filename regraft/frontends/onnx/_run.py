"""Running a whole model: inputs checked by name, type and shape first, then ONNX Runtime."""

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, cast

import numpy as np
import onnx
import onnx_ir as ir
import torch
from torch import Tensor

from regraft.errors import InputError
from regraft.frontends.onnx._session import Session, light_proto, open_session
from regraft.frontends.onnx._tensors import to_torch, value_type
from regraft.frontends.onnx._views import constant_of
from regraft.graph.graph import Inputs, Outputs, Tapped
from regraft.graph.types import TensorType, type_of

_KEPT_SESSIONS: Final = 4


class Runner:
    """Runs one state of a model; keeps the last few sessions, one for each set of tapped values."""

    def __init__(self, model: ir.Model, name: str) -> None:
        self._model = model
        self._name = name
        self._light: tuple[onnx.ModelProto, dict[str, ir.TensorProtocol]] | None = None
        self._sessions: OrderedDict[tuple[str, ...], Session] = OrderedDict()

    def run(self, inputs: Inputs, taps: Mapping[str, ir.Value]) -> tuple[Outputs, Tapped]:
        """Return the model's outputs in order and the tapped values by key."""
        feeds = bind_inputs(self._model.graph.inputs, inputs)
        own = [str(value.name) for value in self._model.graph.outputs]
        names = {key: str(value.name) for key, value in taps.items() if _is_computed(value)}
        extra = tuple(sorted(set(names.values()) - set(own)))
        session = self._session(extra)
        results = dict(zip((*own, *extra), session.run([*own, *extra], feeds), strict=True))
        tapped = {key: results[names[key]] if key in names else _known(value, feeds) for key, value in taps.items()}
        return tuple(results[name] for name in own), tapped

    def _session(self, extra: tuple[str, ...]) -> Session:
        if extra in self._sessions:
            self._sessions.move_to_end(extra)
            return self._sessions[extra]
        if self._light is None:
            self._light = light_proto(self._model)
        proto, lent = self._light
        if extra:
            proto = _with_outputs(proto, extra)
        session = self._sessions[extra] = open_session(proto, lent, self._name)
        if len(self._sessions) > _KEPT_SESSIONS:
            self._sessions.popitem(last=False)
        return session


def _with_outputs(proto: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """A copy of the model that returns those values too; ONNX Runtime finds out their types."""
    tapped = onnx.ModelProto()
    tapped.CopyFrom(proto)
    tapped.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    return tapped


def _is_computed(value: ir.Value) -> bool:
    return value.producer() is not None and constant_of(value) is None


def _known(value: ir.Value, feeds: Mapping[str, Tensor]) -> Tensor:
    """Content of an input or constant."""
    stored = constant_of(value) or value.const_value
    given = feeds.get(str(value.name))
    content = given if given is not None else None if stored is None else to_torch(stored)
    if content is None:
        raise InputError(f"onnxruntime: {value.name!r} has no content that can be tapped")
    return content


def bind_inputs(declared: Sequence[ir.Value], inputs: Inputs) -> dict[str, Tensor]:
    """Return the inputs by name, as torch tensors of the declared types.

    Args:
        declared: the graph's inputs; those with a default in the file may be left out.
        inputs: one tensor, several by position, or several by name.

    Raises:
        InputError: that names the input, what it needs and what it got.
    """
    given = _by_name(declared, inputs)
    names = [str(value.name) for value in declared]
    unknown = [name for name in given if name not in names]
    missing = [str(value.name) for value in declared if value.name not in given and not value.is_initializer()]
    if unknown or missing:
        parts = [f"has no input {', '.join(map(repr, unknown))}"] if unknown else []
        parts += [f"input {', '.join(map(repr, missing))} is missing"] if missing else []
        raise InputError(f"onnxruntime: the model {' and '.join(parts)}; it takes {', '.join(names) or 'nothing'}")
    by_name = {str(value.name): value for value in declared}
    return {name: _checked(by_name[name], content) for name, content in given.items()}


def _by_name(declared: Sequence[ir.Value], inputs: Inputs) -> dict[str, Any]:
    if isinstance(inputs, Mapping):
        return {str(name): content for name, content in inputs.items() if content is not None}
    if not isinstance(cast(Any, inputs), Tensor | np.ndarray | Iterable):
        given = type(inputs).__name__
        raise InputError(f"onnxruntime: inputs must be arrays or tensors, by position or by name; got one {given}")
    positional = [inputs] if isinstance(inputs, Tensor | np.ndarray) else list(inputs)
    if len(positional) > len(declared):
        names = ", ".join(str(value.name) for value in declared)
        raise InputError(f"onnxruntime: the model takes {len(declared)} inputs ({names}); got {len(positional)}")
    return {str(value.name): content for value, content in zip(declared, positional, strict=False)}


def _checked(value: ir.Value, content: Any) -> Tensor:
    needed = value_type(value)
    try:
        tensor = torch.as_tensor(content)
    except (TypeError, ValueError, RuntimeError) as error:
        kind = type(content).__name__
        raise InputError(f"onnxruntime: input {value.name!r} needs {_shown(needed, value)}, got a {kind}") from error
    got = type_of(tensor)
    if not _fits(needed, got):
        raise InputError(f"onnxruntime: input {value.name!r} needs {_shown(needed, value)}, got {_shown(got)}")
    return tensor


def _fits(needed: TensorType, got: TensorType) -> bool:
    if needed.dtype is not None and needed.dtype != got.dtype:
        return False
    if needed.shape is None or got.shape is None:
        return True
    pairs = zip(needed.shape, got.shape, strict=False)
    same_rank = len(needed.shape) == len(got.shape)
    return same_rank and all(isinstance(want, str) or want == have for want, have in pairs)


def _shown(type_: TensorType, value: ir.Value | None = None) -> str:
    if type_.shape is None:
        return f"{type_.dtype or 'a tensor'}"
    unnamed = f"{value.name}.dim" if value is not None else None
    dims = ("?" if unnamed and str(dim).startswith(unnamed) else str(dim) for dim in type_.shape)
    return f"{type_.dtype} [{', '.join(dims)}]"
