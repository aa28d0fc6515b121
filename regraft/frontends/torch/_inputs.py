"""Example inputs of a capture: brought into the form of a call, checked by name, and made large enough to trace."""

import inspect
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn
from torch.export import Dim

from regraft.errors import CaptureError, InputError

_KINDS: Final = (Tensor, int, float, complex, str, torch.dtype, torch.device, torch.layout, torch.memory_format)
_NAMED: Final = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


@dataclass(frozen=True)
class Example:
    """Arguments of one call of a model's forward."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def grown(self, places: Sequence[int]) -> "Example":
        """Return the example with dims of extent 1 at these places repeated to 2.

        Tracing takes an extent of 1 for a constant, and the program would then run with no other.
        """
        args, kwargs = pytree.tree_map_only(Tensor, partial(_grown, places=places), (self.args, self.kwargs))
        return Example(args, kwargs)

    def copied(self) -> "Example":
        """Return the example with tensors of its own: torch.export marks those that it gets as dynamic, for good."""
        args, kwargs = pytree.tree_map_only(Tensor, _copied, (self.args, self.kwargs))
        return Example(args, kwargs)

    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Return the shapes of all tensors in order."""
        leaves = pytree.tree_leaves((self.args, self.kwargs))
        return tuple(tuple(leaf.shape) for leaf in leaves if isinstance(leaf, Tensor))

    def dynamic(self, model: nn.Module, dims: Sequence[int] | None) -> dict[str, Any]:
        """Return dynamic_shapes for torch.export: these dims of every tensor (all of them when None) are free."""
        bound = inspect.signature(model.forward).bind(*self.args, **self.kwargs).arguments
        return pytree.tree_map(partial(_free, dims=dims), dict(bound))


def example_of(model: nn.Module, inputs: Any) -> Example:
    """Return example inputs as a call: a tensor, a sequence by position, or a mapping by name.

    Raises:
        InputError: when names or their number do not fit the model's forward.
        CaptureError: when an input is of a kind that cannot be traced.
    """
    if isinstance(inputs, Mapping):
        example = Example((), {str(name): value for name, value in inputs.items() if value is not None})
    else:
        is_several = isinstance(inputs, list | tuple)
        example = Example(tuple(inputs) if is_several else (inputs,), {})
    _check(model, example)
    _check_kinds(model, example)
    return example


def dummy_inputs_of(model: nn.Module) -> Mapping[str, Any] | None:
    """Return the inputs that the model itself offers for tracing, as those of transformers do, or None."""
    found = getattr(model, "dummy_inputs", None)
    return found if isinstance(found, Mapping) else None


def _check(model: nn.Module, example: Example) -> None:
    parameters = inspect.signature(model.forward).parameters
    where = f"{type(model).__name__}.forward"
    names = [name for name, parameter in parameters.items() if parameter.kind in _NAMED]
    kinds = {parameter.kind for parameter in parameters.values()}
    if len(example.args) > len(names) and inspect.Parameter.VAR_POSITIONAL not in kinds:
        raise InputError(f"{where} takes {len(names)} inputs ({', '.join(names)}); got {len(example.args)}")
    known = [name for name, parameter in parameters.items() if not _is_variable(parameter)]
    extra = _names_behind_kwargs(parameters)
    unknown = [name for name in example.kwargs if name not in known and (extra is not None and name not in extra)]
    nothing_known = bool(example.kwargs) and not any(name in known for name in example.kwargs) and bool(known)
    if unknown or nothing_known:
        name = unknown[0] if unknown else next(iter(example.kwargs))
        raise InputError(f"{where} has no input {name!r}; it has: {', '.join(known)}")
    missing = [name for name in _required(parameters)[len(example.args) :] if name not in example.kwargs]
    if missing:
        raise InputError(f"{where} needs {missing[0]!r}, which the example inputs lack; it has: {', '.join(known)}")


def _check_kinds(model: nn.Module, example: Example) -> None:
    bound = inspect.signature(model.forward).bind(*example.args, **example.kwargs).arguments
    for name, value in bound.items():
        strange = [leaf for leaf in pytree.tree_leaves(value) if leaf is not None and not isinstance(leaf, _KINDS)]
        if strange:
            hint = "leave it out, or register its class as a container with torch.utils._pytree.register_pytree_node"
            where = f"{type(model).__name__}: input {name!r} is a {type(strange[0]).__name__}"
            can = "only tensors, numbers, strings and containers of them can be traced"
            raise CaptureError(f"{where}; {can}", hint=hint)


def _required(parameters: Mapping[str, inspect.Parameter]) -> list[str]:
    return [
        name
        for name, parameter in parameters.items()
        if parameter.default is inspect.Parameter.empty and not _is_variable(parameter)
    ]


def _is_variable(parameter: inspect.Parameter) -> bool:
    return parameter.kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def _names_behind_kwargs(parameters: Mapping[str, inspect.Parameter]) -> Sequence[str] | None:
    """Names that **kwargs takes; None when it takes any."""
    for parameter in parameters.values():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            unpacked = typing.get_args(parameter.annotation)  # Unpack[SomeTypedDict]
            return list(unpacked[0].__annotations__) if unpacked else None
    return ()


def _copied(tensor: Tensor) -> Tensor:
    return tensor.detach().clone()


def _grown(tensor: Tensor, places: Sequence[int]) -> Tensor:
    for place in places:
        if tensor.ndim > place and tensor.shape[place] == 1:
            tensor = tensor.repeat_interleave(2, dim=place)
    return tensor


def _free(leaf: Any, dims: Sequence[int] | None) -> Any:
    if not isinstance(leaf, torch.Tensor):
        return None
    return {place: Dim.AUTO for place in range(leaf.ndim) if dims is None or place in dims}
