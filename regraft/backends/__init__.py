"""From a graph to something that runs: one folder a backend, found by its name."""

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from inspect import signature
from pathlib import Path
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Any, Final

from regraft._timing import Comparison, Timing, compare
from regraft.backends._executable import Executable
from regraft.errors import OptionError, UnknownNameError

if TYPE_CHECKING:  # graphs need torch, which is not there where a compiled library runs
    from regraft.graph import Graph

__all__ = ["TARGETS", "Comparison", "Executable", "Timing", "backend_names", "compare", "compile_graph"]

TARGETS: Final = ("cpu", "cuda")
"""Of a backend that has no list of its own."""


def backend_names() -> tuple[str, ...]:
    """Return the names of the backends that exist."""
    folder = str(Path(__file__).parent)
    return tuple(sorted(item.name for item in iter_modules([folder]) if not item.name.startswith("_")))


def compile_graph(graph: "Graph", backend: str, target: str = "cpu", **options: Any) -> Executable:
    """Lower a graph to a backend.

    Args:
        graph: what to run.
        backend: name of a folder of this package ("onnxruntime", "torch", "tvm").
        target: "cpu" or "cuda"; for "tvm" also "llvm".
        options: passed on to the backend's `compile`, which takes them by name only.

    Raises:
        UnknownNameError: when backend or target does not exist.
        OptionError: when the backend has no such option.
        BackendError: when the backend cannot run the graph on the target.
    """
    names = backend_names()
    if backend not in names:
        raise UnknownNameError(f"regraft.backends has no {backend!r}; it has: {', '.join(names)}")
    found = import_module(f"{__name__}.{backend}")
    targets: Sequence[str] = getattr(found, "TARGETS", TARGETS)
    if target not in targets:
        raise UnknownNameError(f"{backend} backend: target must be one of {', '.join(targets)}; got {target!r}")
    compile_for: Callable[..., Executable] = found.compile
    _check_options(backend, compile_for, options)
    return compile_for(graph, target, **options)


def _check_options(backend: str, compile_for: Callable[..., Executable], options: Mapping[str, Any]) -> None:
    known = [name for name, item in signature(compile_for).parameters.items() if item.kind is item.KEYWORD_ONLY]
    unknown = [name for name in options if name not in known]
    if unknown:
        listed = ", ".join(known) or "none"
        raise OptionError(f"{backend} backend has no option {unknown[0]!r}; it has: {listed}")
