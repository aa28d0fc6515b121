"""The one place that imports TVM: pins checked by version, and a clear error when the extra is missing.

Programs in this package import TVM's modules with `module`, so that everything else of Regraft works without them.
"""

import sys
from collections.abc import Mapping
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType
from typing import Any, Final

from regraft.errors import MissingExtraError

PINS: Final = {"apache-tvm": "0.25.0.post1", "apache-tvm-ffi": "0.1.12"}
"""Other versions of the two import together, but crash when they compile."""

TILELANG: Final = {"tilelang": "0.1.15", "apache-tvm-ffi": "0.1.12"}
"""What CUDA kernels are made with, in a process of its own."""

_HINT: Final = "pip install 'regraft[tvm]'"


def check_pins() -> None:
    """Raise MissingExtraError, naming what is needed and what is there, unless the pinned versions are installed."""
    _check(PINS)


def check_tilelang() -> None:
    """Raise MissingExtraError, naming what is needed and what is there, unless TileLang is installed as pinned."""
    _check(TILELANG)


def _check(pins: Mapping[str, str]) -> None:
    needed = ", ".join(f"{name} {pin}" for name, pin in pins.items())
    for name, pin in pins.items():
        try:
            found = version(name)
        except PackageNotFoundError:
            raise MissingExtraError(f"tvm backend: needs {needed}; {name} is not installed", hint=_HINT) from None
        if found != pin:
            raise MissingExtraError(f"tvm backend: needs {needed}; {name} is {found}", hint=_HINT)


def module(name: str) -> ModuleType:
    """Return a module of TVM, imported.

    Args:
        name: with dots ("tvm.relax"); what compiles is missing where only TVM's runtime is installed.

    Raises:
        MissingExtraError: when TVM is not installed as pinned, does not load, or cannot share this process.
    """
    check_pins()
    if "tilelang" in sys.modules:
        hint = "compile in another process"
        raise MissingExtraError("tvm backend: TVM cannot share a process with tilelang, which is imported", hint=hint)
    hook = sys.excepthook
    try:
        return import_module(name)
    except (ImportError, OSError, RuntimeError) as error:
        first = next(iter(str(error).splitlines()), type(error).__name__)
        raise MissingExtraError(f"tvm backend: importing {name} fails: {first}", hint=_HINT) from error
    finally:
        sys.excepthook = hook  # TVM's own ends every child process of the program


def load_extras() -> None:
    """Load the part of TVM's runtime that sorts, which TVM itself loads only beside its compiler."""
    load_runtime("tvm_runtime_extra")


def load_runtime(name: str) -> None:
    """Load a part of TVM's runtime unless it is loaded ("tvm_runtime_extra", "tvm_runtime_cuda")."""
    base = module("tvm.base")
    loaded: dict[str, Any] = base._LOADED_LIBS
    if name not in loaded:
        folders = module("tvm.libinfo").package_lib_paths()
        loaded[name] = base.load_lib_ctypes("tvm", name, "RTLD_LOCAL", extra_lib_paths=folders)
