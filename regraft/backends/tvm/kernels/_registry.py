"""CUDA kernels by the op that they implement, found by listing the folder."""

from collections.abc import Mapping
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

from regraft.backends.tvm.kernels._kernel import Kernel
from regraft.errors import UnknownNameError


@lru_cache(maxsize=1)
def all_kernels() -> Mapping[str, Kernel]:
    """Return the CUDA kernels by the name of their op, in alphabetical order."""
    found = sorted(item.name for item in iter_modules([str(Path(__file__).parent)]) if not item.ispkg)
    return {name: import_module(f"{__package__}.{name}").kernel for name in found if not name.startswith("_")}


def get_kernel(op: str) -> Kernel:
    """Return the CUDA kernel of an op.

    Raises:
        UnknownNameError: with the ops that have one.
    """
    kernels = all_kernels()
    if op not in kernels:
        raise UnknownNameError(f"tvm backend: no CUDA kernel for {op!r}; there are: {', '.join(kernels)}")
    return kernels[op]
