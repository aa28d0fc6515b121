"""What a captured program takes: binds inputs given by position or by name, and checks them before anything runs."""

# torch has no public name for some of what is used here.
# pyright: reportPrivateUsage=false

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, cast

import numpy as np
import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx
from torch.export import Dim

from regraft.errors import InputError
from regraft.graph.graph import Inputs
from regraft.graph.symbols import is_plain_symbol
from regraft.graph.types import TensorType, type_of


@dataclass(frozen=True, slots=True)
class Leaf:
    """One input of the graph.

    Attributes:
        name: of its placeholder.
        type: of the tensor or symbolic number; None for a constant that was fixed when the program was captured.
        constant: that constant.
    """

    name: str
    type: TensorType | None
    constant: Any = None


@dataclass(frozen=True)
class Signature:
    """Parameters of the module's forward, and the flat inputs that they hold.

    Attributes:
        model: name of the model, for messages.
        parameters: names, positional ones first.
        positional: how many of them are positional.
        leaves: inputs of the graph in order.
        spec: structure of (args, kwargs), or None when parameters and inputs are the same thing.
    """

    model: str
    parameters: tuple[str, ...]
    positional: int
    leaves: tuple[Leaf, ...]
    spec: pytree.TreeSpec | None = None
    _owners: tuple[slice, ...] = field(init=False)

    def __post_init__(self) -> None:
        ends = [0]
        for child in self._children():
            ends.append(ends[-1] + child)
        owners = tuple(slice(begin, end) for begin, end in pairwise(ends))
        object.__setattr__(self, "_owners", owners)

    def _children(self) -> list[int]:
        if self.spec is None:
            return [1] * len(self.parameters)
        args, kwargs = self.spec.children()
        return [child.num_leaves for group in (args, kwargs) for child in group.children()]

    def bind(self, inputs: Inputs) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return positional and keyword arguments of the module.

        Raises:
            InputError: naming the input, what it needs and what was given.
        """
        args, kwargs, _ = self._bound(inputs)
        return args, kwargs

    def flat(self, inputs: Inputs) -> list[Any]:
        """Return the graph's inputs in order; errors as in `bind`."""
        return self._bound(inputs)[2]

    def arguments(self, flat: Sequence[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the graph's inputs, given in order, as arguments of the module."""
        if self.spec is None:
            return tuple(flat), {}
        args, kwargs = pytree.tree_unflatten(flat, self.spec)
        return tuple(args), dict(zip(self.parameters[self.positional :], kwargs.values(), strict=True))

    def dynamic_shapes(self) -> dict[str, Any]:
        """Return what torch.export takes as dynamic_shapes: `Dim.AUTO` for every symbolic dim, by parameter."""
        args, kwargs = self.arguments([_dynamic(leaf) for leaf in self.leaves])
        return {**dict(zip(self.parameters, args, strict=False)), **kwargs}

    def _bound(self, inputs: Inputs) -> tuple[tuple[Any, ...], dict[str, Any], list[Any]]:
        given = self._named(inputs)
        values = [given[name] if name in given else self._absent(place) for place, name in enumerate(self.parameters)]
        args = tuple(values[: self.positional])
        kwargs = dict(zip(self.parameters[self.positional :], values[self.positional :], strict=True))
        flat = self._flatten(args, kwargs)
        self._check(flat)
        return args, kwargs, flat

    def _named(self, inputs: Inputs) -> Mapping[str, Any]:
        if isinstance(inputs, Mapping):
            given = {str(name): _as_tensors(value) for name, value in inputs.items()}
        else:
            by_place: Sequence[Any] = (inputs,) if isinstance(inputs, Tensor | np.ndarray) else inputs
            if not isinstance(cast(Any, by_place), Sequence) or isinstance(by_place, str):
                given = type(inputs).__name__
                raise InputError(f"{self.model}: inputs must be tensors, by position or by name; got one {given}")
            if len(by_place) > len(self.parameters):
                wanted = f"takes {len(self.parameters)} inputs ({', '.join(self.parameters)})"
                raise InputError(f"{self.model} {wanted}; got {len(by_place)}")
            given = dict(zip(self.parameters, map(_as_tensors, by_place), strict=False))
        unknown = [name for name, value in given.items() if name not in self.parameters and value is not None]
        if unknown:
            hint = "inputs that the example inputs did not have are not part of the captured program"
            names = ", ".join(self.parameters)
            raise InputError(f"{self.model} has no input {unknown[0]!r}; it has: {names}", hint=hint)
        return given

    def _absent(self, place: int) -> Any:
        leaves = self.leaves[self._owners[place]]
        if len(leaves) == 1 and leaves[0].type is None:
            return leaves[0].constant
        needed = ", ".join(f"{leaf.name!r} needs {_shown(leaf.type)}" for leaf in leaves if leaf.type is not None)
        raise InputError(f"input {needed or repr(self.parameters[place])}, it was not given")

    def _flatten(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
        if self.spec is None:
            return [*args, *kwargs.values()]
        flat = pytree.tree_leaves((args, kwargs))
        if len(flat) != len(self.leaves):
            needed = ", ".join(leaf.name for leaf in self.leaves)
            raise InputError(f"{self.model} takes {len(self.leaves)} values ({needed}); the inputs hold {len(flat)}")
        return flat

    def _check(self, flat: Sequence[Any]) -> None:
        extents: dict[str, tuple[int, str]] = {}
        for leaf, value in zip(self.leaves, flat, strict=True):
            if leaf.type is None:
                if isinstance(value, Tensor) or value != leaf.constant:
                    got = _shown(type_of(value)) if isinstance(value, Tensor) else repr(value)
                    raise InputError(f"input {leaf.name!r} was captured as {leaf.constant!r}, got {got}")
            elif leaf.type.shape == () and not isinstance(value, Tensor):
                continue
            elif not isinstance(value, Tensor):
                raise InputError(f"input {leaf.name!r} needs {_shown(leaf.type)}, got {type(value).__name__}")
            else:
                _check_tensor(leaf.name, leaf.type, value, extents)


def _as_tensors(value: Any) -> Any:
    """The value with numpy arrays in it as tensors, which share their memory where it may be written to."""
    return pytree.tree_map_only(np.ndarray, _as_tensor, value)


def _as_tensor(array: Any) -> Any:
    try:
        return torch.from_numpy(array if array.flags.writeable else array.copy())
    except TypeError:  # of text or objects: `_check` says what is needed
        return array


def _check_tensor(name: str, wanted: TensorType, value: Tensor, extents: dict[str, tuple[int, str]]) -> None:
    given = type_of(value)
    problem = f"input {name!r} needs {_shown(wanted)}, got {_shown(given)}"
    if wanted.dtype not in (None, given.dtype):
        raise InputError(problem)
    if wanted.shape is None:
        return
    if wanted.rank != given.rank:
        raise InputError(problem)
    for needed, extent in zip(wanted.shape, value.shape, strict=True):
        if isinstance(needed, int) and needed != extent:
            raise InputError(problem)
        if is_plain_symbol(needed):
            first, where = extents.setdefault(str(needed), (extent, name))
            if first != extent:
                raise InputError(f"{problem}: {needed} is {first} in {where!r}")


def _dynamic(leaf: Leaf) -> Any:
    if leaf.type is None or leaf.type.shape is None:
        return None
    return {place: Dim.AUTO for place, dim in enumerate(leaf.type.shape) if isinstance(dim, str)} or None


def _shown(kind: TensorType | None) -> str:
    if kind is None:
        return "a constant"
    dims = "?" if kind.shape is None else ", ".join(map(str, kind.shape))
    return f"{kind.dtype or 'a tensor'} [{dims}]"


def signature_of(model: str, graph: fx.Graph, leaves: Sequence[Leaf]) -> Signature:
    """Return the signature that the graph's code generator declares."""
    info = getattr(graph._codegen, "pytree_info", None)
    if info is None:
        return Signature(model, tuple(leaf.name for leaf in leaves), len(leaves), tuple(leaves))
    spec = info.in_spec
    names = tuple(name for name in info.orig_args if name != "self")
    if not _is_args_and_kwargs(spec):
        spec = pytree.TreeSpec(tuple, None, [spec, pytree.TreeSpec(dict, [], [])])
    return Signature(model, names, spec.children()[0].num_children, tuple(leaves), spec)


def _is_args_and_kwargs(spec: pytree.TreeSpec) -> bool:
    children = spec.children()
    return spec.type is tuple and len(children) == 2 and children[0].type is tuple and children[1].type is dict
