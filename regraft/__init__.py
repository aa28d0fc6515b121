"""Regraft: a compiler-style graph rewriting framework for neural networks.

    import regraft
    optimized = regraft.optimize(model, passes=["low-rank{keep=0.5}"], example_inputs=(ids, mask))
    print(optimized.ledger)
    optimized.export("model.onnx")

The names below are loaded when they are first used, so that importing the package costs next to nothing.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from regraft.api import diff, explain, load
    from regraft.errors import RegraftError, RegraftWarning
    from regraft.optimize import optimize
    from regraft.passes import Budget
    from regraft.result import Optimized

__version__: Final = "0.1.0"

__all__ = ["Budget", "Optimized", "RegraftError", "RegraftWarning", "diff", "explain", "load", "optimize"]

_HOMES: Final = {
    "Budget": "regraft.passes",
    "Optimized": "regraft.result",
    "RegraftError": "regraft.errors",
    "RegraftWarning": "regraft.errors",
    "diff": "regraft.api",
    "explain": "regraft.api",
    "load": "regraft.api",
    "optimize": "regraft.optimize",
}


class _Face(ModuleType):
    """The package: two of its public functions share their names with modules, and stay functions."""

    def __getattr__(self, name: str) -> Any:
        if name not in _HOMES:
            raise AttributeError(f"module 'regraft' has no attribute {name!r}")
        found = getattr(import_module(_HOMES[name]), name)
        self.__dict__[name] = found
        return found

    def __setattr__(self, name: str, value: Any) -> None:
        # Importing regraft.optimize would bind the module to the function's name.
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *__all__})


sys.modules[__name__].__class__ = _Face
