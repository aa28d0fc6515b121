"""Compiles a whole graph with TVM, to code that runs without torch.

TVM is an extra (`pip install 'regraft[tvm]'`); nothing of it is imported before something is compiled or loaded, and
nothing of torch before something is compiled, so that a saved library runs where there is none.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Final

from regraft.backends.tvm._compat import check_pins
from regraft.errors import BackendError, MissingExtraError

if TYPE_CHECKING:
    from torch import nn

    from regraft.backends._kernel_use import KernelUse
    from regraft.backends.tvm._compile import TvmExecutable
    from regraft.backends.tvm._library import Library
    from regraft.frontends.torch import FxGraph
    from regraft.graph import Graph

__all__ = ["TARGETS", "compile", "describe", "load", "with_kernels"]

TARGETS: Final = ("cpu", "llvm", "cuda")
"""What may be asked for; "cpu" is another word for "llvm"."""


def compile(graph: "Graph", target: str, *, mcpu: str | None = None) -> "TvmExecutable":
    """Return an executable of compiled code for a graph of either kind; batch and sequence stay dynamic.

    Structured ops that have a kernel, linear layers of constant weights and attention run on kernels; the number of
    threads is TVM_NUM_THREADS, else OMP_NUM_THREADS, else that of the processors.

    The compiled code is run once beside the original, on example inputs, before it is handed out.

    Args:
        graph: what to run.
        target: "llvm", or "cpu", which is the same.
        mcpu: LLVM's name of the processor to compile for ("znver4"); this one by default. "generic" is any x86-64, for
            libraries that are to run elsewhere.

    Raises:
        MissingExtraError: when TVM is not installed.
        OptionError: when LLVM does not know the processor.
        BackendError: when the graph has operators that TVM cannot take, naming all of them; or for the target "cuda".
        VerificationError: when the compiled code does not compute what the graph does.
    """
    if target == "cuda":
        hint = "target='llvm' compiles for the CPU"
        raise BackendError(
            "tvm backend: target 'cuda' is not there yet; it needs kernels that are not written", hint=hint
        )
    check_pins()
    executable: TvmExecutable = import_module(f"{__name__}._compile").compile_for_cpu(graph, target, mcpu)
    return executable


def load(path: str | os.PathLike[str]) -> "Library":
    """Return a library that `executable.save` wrote, ready to run: numpy arrays in, numpy arrays out.

    A shared library is code: load only files that you trust.

    Args:
        path: of the library.

    Raises:
        MissingExtraError: when TVM (its runtime is enough) is not installed.
        ModelNotFoundError: when there is no such file.
        ModelFileError: when it is no library that Regraft saved.
    """
    check_pins()
    library: Library = import_module(f"{__name__}._library").load_library(path)
    return library


def with_kernels(graph: "FxGraph", target: str = "cpu") -> "tuple[nn.Module, tuple[KernelUse, ...]]":
    """Return a captured program as a module whose structured ops run on kernels, and which of them do.

    Args:
        graph: the program; not changed.
        target: "cpu", or "cuda": the current GPU of torch, for which kernels are built by nvcc unless they were before.

    Raises:
        MissingExtraError: when TVM is not installed, or for a GPU nvcc.
        VerificationError: when a kernel does not compute what its op does.
        BackendError: when a kernel cannot be compiled, or there are none for this GPU.
    """
    check_pins()
    found: tuple[nn.Module, tuple[KernelUse, ...]] = import_module(f"{__name__}._torch").with_kernels_on(graph, target)
    return found


def describe() -> str:
    """Return what TVM can do here, as one phrase; compiles and runs one kernel when it is installed."""
    try:
        check_pins()
    except MissingExtraError as error:
        return str(error).removeprefix("tvm backend: ")
    phrase: str = import_module(f"{__name__}._state").describe()
    return phrase
