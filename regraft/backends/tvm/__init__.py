"""Compiles a whole graph with TVM, to code that runs without torch.

TVM is an extra (`pip install 'regraft[tvm]'`); nothing of it is imported before something is compiled or loaded, and
nothing of torch before something is compiled, so that a saved library runs where there is none.
"""

import os
from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Final

from regraft.backends.tvm._compat import check_pins
from regraft.errors import MissingExtraError, OptionError

if TYPE_CHECKING:
    from torch import nn

    from regraft.backends._kernel_use import KernelUse
    from regraft.backends.tvm._compile import TvmExecutable
    from regraft.backends.tvm._compile_cuda import CudaExecutable
    from regraft.backends.tvm._library import Library
    from regraft.frontends.torch import FxGraph
    from regraft.graph import Graph
    from regraft.tune import Line, Records, Settings

__all__ = ["TARGETS", "compile", "describe", "load", "tune_kernels", "with_kernels"]

TARGETS: Final = ("cpu", "llvm", "cuda")
"""What may be asked for; "cpu" is another word for "llvm"."""


def compile(
    graph: "Graph", target: str, *, mcpu: str | None = None, arch: str | None = None
) -> "TvmExecutable | CudaExecutable":
    """Return an executable of compiled code for a graph of either kind; batch and sequence stay dynamic.

    Structured ops that have a kernel, linear layers of constant weights and attention run on kernels; the number of
    threads is TVM_NUM_THREADS, else OMP_NUM_THREADS, else that of the processors.

    The compiled code is run once beside the original, on example inputs, before it is handed out.

    For "cuda", structured ops and attention run on our CUDA kernels, the rest on TVM's default schedules. It compiles
    and saves without a GPU; where there is none it is not run, and the executable says `verified=False`.

    Args:
        graph: what to run.
        target: "llvm", or "cpu", which is the same; or "cuda".
        mcpu: LLVM's name of the processor to compile for ("znver4"); this one by default, for "cuda" any x86-64.
            "generic" is any x86-64, for libraries that are to run elsewhere.
        arch: of the GPU, for "cuda" alone: "sm_80" or "sm_90a"; that of the GPU here by default.

    Raises:
        MissingExtraError: when TVM is not installed; for "cuda" also TileLang and nvcc.
        OptionError: when LLVM does not know the processor, or for another architecture.
        BackendError: when the graph has operators that TVM cannot take, naming all of them; or when no GPU is here to
            ask for its architecture.
        VerificationError: when the compiled code does not compute what the graph does.
    """
    if target != "cuda" and arch is not None:
        raise OptionError(f"tvm backend: arch={arch!r} is of target 'cuda'; got target {target!r}")
    check_pins()
    if target == "cuda":
        on_gpu: CudaExecutable = import_module(f"{__name__}._compile_cuda").compile_for_gpu(graph, arch, mcpu)
        return on_gpu
    executable: TvmExecutable = import_module(f"{__name__}._compile").compile_for_cpu(graph, target, mcpu)
    return executable


def load(path: str | os.PathLike[str]) -> "Library":
    """Return what `executable.save` wrote, ready to run: numpy arrays in, numpy arrays out.

    A shared library is code: load only files that you trust.

    Args:
        path: of the library.

    Raises:
        MissingExtraError: when TVM (its runtime is enough) is not installed.
        ModelNotFoundError: when there is no such file.
        ModelFileError: when it is no library that Regraft saved.
        BackendError: when this processor cannot run it, or it is for a GPU and there is no driver.
    """
    check_pins()
    library: Library = import_module(f"{__name__}._library").load_library(path)
    return library


def with_kernels(
    graph: "FxGraph", target: str = "cpu", records: "Records | None" = None
) -> "tuple[nn.Module, tuple[KernelUse, ...]]":
    """Return a captured program as a module whose structured ops run on kernels, and which of them do.

    Args:
        graph: the program; not changed.
        target: "cpu", or "cuda": the current GPU of torch, for which kernels are built by nvcc unless they were before.
        records: of tuning, from which tiles for the CPU are taken.

    Raises:
        MissingExtraError: when TVM is not installed, or for a GPU nvcc.
        VerificationError: when a kernel does not compute what its op does.
        BackendError: when a kernel cannot be compiled, or there are none for this GPU.
    """
    check_pins()
    found: tuple[nn.Module, tuple[KernelUse, ...]] = import_module(f"{__name__}._torch").with_kernels_on(
        graph, target, records
    )
    return found


def tune_kernels(
    graph: "Graph",
    records: "Records",
    settings: "Settings",
    timeout_s: float,
    report: Callable[[str, int, int], None],
) -> "tuple[Line, ...]":
    """Tune the CPU kernels of a graph's structured ops; see `Optimized.tune`."""
    check_pins()
    found: tuple[Line, ...] = import_module(f"{__name__}._tune_graph").tune_graph(
        graph, records, settings, timeout_s, report
    )
    return found


def describe() -> str:
    """Return what TVM can do here, as one phrase; compiles and runs one kernel when it is installed."""
    try:
        check_pins()
    except MissingExtraError as error:
        return str(error).removeprefix("tvm backend: ")
    phrase: str = import_module(f"{__name__}._state").describe()
    return phrase
