"""Kernels of structured ops for the CPU, compiled by TVM: one file an op, found by its name."""

from collections.abc import Mapping
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

from regraft.backends.tvm.kernels.cpu._kernel import Compiled, CpuKernel, Operands, Plan, compile_kernel

__all__ = ["Compiled", "CpuKernel", "Operands", "Plan", "compile_kernel", "cpu_kernels"]


@lru_cache(maxsize=1)
def cpu_kernels() -> Mapping[str, CpuKernel]:
    """Return the kernels by the name of their op, in alphabetical order."""
    found = sorted(item.name for item in iter_modules([str(Path(__file__).parent)]) if not item.name.startswith("_"))
    return {name: import_module(f"{__package__}.{name}").kernel for name in found}
