"""From a graph to something that runs: one folder a backend, found by its name."""

from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any, Final

from regraft.backends._executable import Executable
from regraft.backends._measure import Comparison, Timing, compare
from regraft.errors import UnknownNameError
from regraft.graph import Graph

__all__ = ["TARGETS", "Comparison", "Executable", "Timing", "backend_names", "compare", "compile_graph"]

TARGETS: Final = ("cpu", "cuda")


def backend_names() -> tuple[str, ...]:
    """Return the names of the backends that exist."""
    folder = str(Path(__file__).parent)
    return tuple(sorted(item.name for item in iter_modules([folder]) if not item.name.startswith("_")))


def compile_graph(graph: Graph, backend: str, target: str = "cpu", **options: Any) -> Executable:
    """Lower a graph to a backend.

    Args:
        graph: what to run.
        backend: name of a folder of this package ("onnxruntime", "torch").
        target: "cpu" or "cuda".
        options: passed on to the backend's `compile`.

    Raises:
        UnknownNameError: when backend or target does not exist.
        BackendError: when the backend cannot run the graph on the target.
    """
    names = backend_names()
    if backend not in names:
        raise UnknownNameError(f"regraft.backends has no {backend!r}; it has: {', '.join(names)}")
    if target not in TARGETS:
        raise UnknownNameError(f"{backend} backend: target must be one of {', '.join(TARGETS)}; got {target!r}")
    return import_module(f"{__name__}.{backend}").compile(graph, target, **options)
