"""The MODEL argument: an .onnx file, or `package.module:function` that makes a PyTorch model."""

import inspect
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, Final, TypeVar

import torch
from torch import nn

from regraft.cli._inputs import load_inputs
from regraft.errors import CaptureError, ModelNotFoundError, ModelTypeError

FORMS: Final = "an .onnx file, or package.module:function that returns an nn.Module or (nn.Module, example_inputs)"
CHECKPOINTS: Final = (".pt", ".pth", ".bin", ".ckpt", ".safetensors", ".pkl")

T = TypeVar("T")


@dataclass(frozen=True)
class Model:
    """A model as the public functions take it.

    Attributes:
        spelling: what was typed.
        source: the path of an ONNX file, or a PyTorch model.
        example_inputs: what to capture or measure it with, or None.
    """

    spelling: str
    source: Any
    example_inputs: Any = None

    @property
    def file(self) -> Path | None:
        """The ONNX file, or None for a PyTorch model."""
        return self.source if isinstance(self.source, Path) else None


def load_model(text: str, inputs: Path | None = None) -> Model:
    """Return the model that an argument names.

    Args:
        text: the argument.
        inputs: an .npz file whose arrays take the place of the model's own example inputs.

    Raises:
        ModelNotFoundError: when there is no such file, module or attribute.
        ModelTypeError: when it is no model.
        CaptureError: when the user's code raises.
    """
    given = None if inputs is None else load_inputs(inputs)
    if is_function(text):
        module, example = _module_from(text)
        return Model(text, module, example if given is None else given)
    return Model(text, _file(text), given)


def is_function(text: str) -> bool:
    """Whether an argument means a Python attribute rather than a file."""
    module, separator, attribute = text.rpartition(":")
    is_named = all(part.isidentifier() for part in (*module.split("."), *attribute.split(".")))
    return bool(separator) and is_named and not Path(text).exists()


def _file(text: str) -> Path:
    path = Path(text)
    if path.suffix == ".onnx":
        if not path.exists():
            raise ModelNotFoundError(f"model {text} does not exist")
        return path
    if path.suffix in CHECKPOINTS:
        hint = "a checkpoint holds weights and no program: write a function that builds the model and loads them"
        raise ModelTypeError(f"MODEL must be {FORMS}; got {text!r}", hint=hint)
    raise ModelTypeError(f"MODEL must be {FORMS}; got {text!r}")


def _module_from(text: str) -> tuple[Any, Any]:
    module_name, _, attribute = text.rpartition(":")
    folder = str(Path.cwd())
    if folder not in sys.path:  # console scripts do not look for modules where they are run
        sys.path.insert(0, folder)
    found: Any = _import(module_name, text)
    for name in attribute.split("."):
        found = _attribute(found, name, text)
    made = found if _is_model(found) else _call(found, text)
    module, example = made if _is_pair(made) else (made, None)
    if not _is_model(module):
        raise ModelTypeError(f"{text} gave {_type_name(made)}; an nn.Module or (nn.Module, example_inputs) is needed")
    return module, example


def _import(name: str, text: str) -> ModuleType:
    try:
        return _guarded(lambda: import_module(name), f"importing {name} for {text} failed with")
    except CaptureError as error:
        missing = error.__cause__
        # A part of the name itself is missing, rather than something that the module imports.
        if isinstance(missing, ModuleNotFoundError) and missing.name and f"{name}.".startswith(f"{missing.name}."):
            hint = f"modules are looked for in {Path.cwd()} and among the installed packages"
            raise ModelNotFoundError(f"{text}: there is no module {missing.name!r}", hint=hint) from None
        raise


def _attribute(owner: Any, name: str, text: str) -> Any:
    if hasattr(owner, name):
        return getattr(owner, name)
    known = [key for key, value in vars(owner).items() if not key.startswith("_") and _can_make(value, owner)]
    owner_name = getattr(owner, "__name__", type(owner).__name__)
    raise ModelNotFoundError(f"{text}: {owner_name} has no {name!r}; it has: {', '.join(sorted(known)) or 'nothing'}")


def _can_make(value: Any, owner: Any) -> bool:
    is_own = getattr(value, "__module__", None) == getattr(owner, "__name__", "")
    return _is_model(value) or (callable(value) and is_own)


def _call(found: Any, text: str) -> Any:
    if not callable(found):
        raise ModelTypeError(f"{text} is {_type_name(found)}; a function or an nn.Module is needed")
    try:
        inspect.signature(found).bind()
    except TypeError as error:
        raise ModelTypeError(f"{text} must be callable without arguments: {error}") from None
    return _guarded(found, f"{text} raised")


def _guarded(action: Callable[[], T], what: str) -> T:
    try:
        return action()
    except (Exception, SystemExit) as error:  # the user's code may raise anything
        lines = str(error).splitlines() or ["no message"]
        frame = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(frame.filename).name}, line {frame.lineno}"
        raise CaptureError(f"{what} {type(error).__name__}: {lines[-1]} ({where})") from error


def _is_model(value: Any) -> bool:
    return isinstance(value, nn.Module | torch.export.ExportedProgram)


def _is_pair(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) == 2


def _type_name(value: Any) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
