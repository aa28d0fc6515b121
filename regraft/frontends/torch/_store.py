"""The tensors of a captured program, in a tree of modules named like the user's model."""

# torch has no public name for some of what is used here.
# pyright: reportPrivateUsage=false

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from torch import Tensor, nn

from regraft.errors import GraphError
from regraft.frontends.torch._module import CapturedModule


class TensorStore:
    """Parameters and buffers by full name; several names of one tensor (tied weights) are aliases.

    Attributes:
        module: the tree; a GraphModule, whose graph is set when somebody wants to call it.
    """

    def __init__(self) -> None:
        self.module: Final = CapturedModule()
        self._aliases: Final[dict[str, list[str]]] = {}
        self._opaque: Final[list[str]] = []

    @classmethod
    def of(cls, module: nn.Module, targets: Iterable[str]) -> "TensorStore":
        """Return a store of what `module` has under these names, and under every other name of the same tensors.

        Nothing is copied. Tensors that are plain attributes become buffers that are not saved, so that they move with
        the module.
        """
        store, known = cls(), _names_by_tensor(module)
        for target in targets:
            value = attribute(module, target)
            if not isinstance(value, Tensor):
                store._attach(target, value)
            elif target not in store._aliases:
                names = known.get(id(value), [target])
                for name in names:
                    store._put(name, value, persistent=_is_saved(module, name))
                shared = list(names)
                store._aliases.update((name, shared) for name in names)
        return store

    def copy(self) -> "TensorStore":
        """Return a store of its own over the same tensors."""
        store = TensorStore()
        for name, names in self._aliases.items():
            store._put(name, attribute(self.module, name), persistent=_is_saved(self.module, name))
            store._aliases[name] = store._aliases.get(names[0]) or list(names)
        for name in self._opaque:
            store._attach(name, attribute(self.module, name))
        return store

    def get(self, name: str) -> Any:
        """Return what stands under a name.

        Raises:
            GraphError: when nothing does.
        """
        return attribute(self.module, name)

    def aliases(self, name: str) -> Sequence[str]:
        """Return all names of a tensor, the first one first."""
        return self._aliases.get(name, [name])

    def free_name(self, path: str, leaf: str) -> str:
        """Return a name for a new tensor of a layer, "<path>.<leaf>" as far as that can be a name and is not taken."""
        owner: nn.Module | None = self.module
        parts: list[str] = []
        for part in path.split(".") if path else ():
            wanted = re.sub(r"\W", "_", part) or "_"
            parts.append(wanted if owner is None else _unused(owner, wanted, allow_module=True))
            owner = None if owner is None else owner._modules.get(parts[-1])
        return ".".join([*parts, leaf if owner is None else _unused(owner, leaf, allow_module=False)])

    def add(self, name: str, tensor: Tensor, *, requires_grad: bool) -> None:
        """Put a new tensor: a parameter when it holds floating-point numbers, else a buffer."""
        tensor = tensor.detach().contiguous()
        if tensor.is_floating_point() or tensor.is_complex():
            tensor = nn.Parameter(tensor, requires_grad=requires_grad)
        self._put(name, tensor, persistent=True)
        self._aliases[name] = [name]

    def drop(self, name: str) -> None:
        """Remove a tensor under all its names."""
        for alias in list(self.aliases(name)):
            self.forget(alias)

    def forget(self, name: str) -> None:
        """Remove one name, and modules that hold nothing any more."""
        self._aliases.pop(name, [name]).remove(name)
        path, _, leaf = name.rpartition(".")
        delattr(self.module.get_submodule(path), leaf)
        while path and not any(True for _ in _content(self.module.get_submodule(path))):
            parent, _, child = path.rpartition(".")
            delattr(self.module.get_submodule(parent), child)
            path = parent

    def _put(self, name: str, tensor: Tensor, *, persistent: bool) -> None:
        owner, leaf = self._owner(name)
        if isinstance(tensor, nn.Parameter):
            owner.register_parameter(leaf, tensor)
        else:
            owner.register_buffer(leaf, tensor, persistent=persistent)

    def _attach(self, name: str, value: Any) -> None:
        owner, leaf = self._owner(name)
        setattr(owner, leaf, value)
        self._opaque.append(name)

    def _owner(self, name: str) -> tuple[nn.Module, str]:
        *path, leaf = name.split(".")
        owner: nn.Module = self.module
        for part in path:
            child = owner._modules.get(part)
            if child is None:
                child = nn.Module()
                owner.add_module(part, child)
            owner = child
        return owner, leaf


def attribute(module: nn.Module, name: str) -> Any:
    """Return what stands under a full name.

    Raises:
        GraphError: when nothing does.
    """
    found: Any = module
    for part in name.split("."):
        if not hasattr(found, part):
            raise GraphError(f"the graph reads {name!r}, which its module does not have")
        found = getattr(found, part)
    return found


def _names_by_tensor(module: nn.Module) -> Mapping[int, list[str]]:
    found: dict[int, list[str]] = {}
    named = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
    for name, tensor in named:
        found.setdefault(id(tensor), []).append(name)
    return found


def _is_saved(module: nn.Module, name: str) -> bool:
    """Whether a tensor is a parameter, or a buffer that is part of the state dict."""
    path, _, leaf = name.rpartition(".")
    owner = module.get_submodule(path)
    return leaf in owner._parameters or (leaf in owner._buffers and leaf not in owner._non_persistent_buffers_set)


def _unused(owner: nn.Module, leaf: str, *, allow_module: bool) -> str:
    """The name itself, or with a number behind it when something else has it in that module."""
    name, count = leaf, 0
    while hasattr(owner, name) and not (allow_module and name in owner._modules):
        count += 1
        name = f"{leaf}_{count}"
    return name


def _content(module: nn.Module) -> Iterable[str]:
    if type(module) is not nn.Module:
        yield "a module of its own kind"
    yield from module._parameters
    yield from module._buffers
    yield from module._modules
