"""Whole graphs for a GPU: structured ops on our CUDA kernels, the rest by TVM's default schedules; no GPU is needed."""

import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch

from regraft._files import write_atomic
from regraft.backends._signature import inputs_of, outputs_of
from regraft.backends.tvm._archive import Contents, Variant, hash_of
from regraft.backends.tvm._build import Artefact, build
from regraft.backends.tvm._compat import module
from regraft.backends.tvm._compile import built, fused, ports_of, program_for, verify
from regraft.backends.tvm._cuda import FEW_ROWS, CudaCode, CudaMaker, Gpu, arch_of
from regraft.backends.tvm._extents import limits_of
from regraft.backends.tvm._importer import Importer
from regraft.backends.tvm._library import Library, load_library
from regraft.backends.tvm._nvcc import compile_device_code
from regraft.backends.tvm._ports import Ports
from regraft.backends.tvm.kernels._kernel import ARCHITECTURES
from regraft.backends.tvm.kernels.cpu._host import host_of
from regraft.errors import BackendError, OptionError
from regraft.graph import Graph
from regraft.graph.snapshot import SnapshotValue

_THREADS: Final = {"max_threads_per_block": 1024, "max_shared_memory_per_block": 49152, "thread_warp_size": 32}
"""What TVM's schedules may take of any GPU; shared memory is what a kernel has without asking for more."""


@dataclass(frozen=True, eq=False)
class CudaExecutable:
    """`Executable` over code for a GPU. Torch tensors in give torch tensors out, numpy arrays give arrays.

    Attributes:
        name: of the model.
        contents: of the file that `save` writes.
        library: what runs; None where there is no GPU of that architecture.
        verified: whether it was run beside the original, which takes a GPU.
    """

    name: str
    contents: Contents
    library: Library | None
    inputs: Sequence[SnapshotValue]
    outputs: Sequence[SnapshotValue]
    target: str = "cuda"
    backend: str = "tvm"
    verified: bool = False

    @property
    def arch(self) -> str:
        """Architecture that it is compiled for."""
        return self.contents.arch

    def __call__(self, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """Return the outputs in order; errors as in `Library`.

        Raises:
            BackendError: where there is no GPU of its architecture.
        """
        if self.library is None:
            hint = "save it, and load it where there is one"
            text = (
                f"tvm backend: {self.name} is compiled for GPUs ({self.arch}); running it needs one; there is none here"
            )
            raise BackendError(text, hint=hint)
        return self.library(*args, **kwargs)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the compiled model as one file, which `regraft.backends.tvm.load` runs where there is a GPU.

        It is a zip archive of shared libraries. It runs with numpy, apache-tvm and apache-tvm-ffi and the driver of the
        GPU, without torch or a compiler.

        Args:
            path: where to (model.so); the file appears whole or not at all.

        Returns:
            The path.

        Raises:
            OutputError: when the path cannot be written.
        """
        write_atomic(path, self.contents.packed())
        return Path(path)


def compile_for_gpu(graph: Graph, arch: str | None = None, mcpu: str | None = None) -> CudaExecutable:
    """Return an executable; see `regraft.backends.tvm.compile`."""
    here = _arch_here()
    chosen = _chosen_arch(arch, here)
    inputs, outputs = ports_of(inputs_of(graph), "input"), ports_of(outputs_of(graph), "output")
    host = host_of(mcpu or "generic")
    maker = CudaMaker(Gpu(torch.device("cpu"), chosen, build))  # weights go into the library
    program, example = program_for(fused(graph), maker)
    ports, importer = Ports(inputs, outputs, limits_of(program, inputs)), Importer()
    importer.check(program, graph.name)
    target = module("tvm.target").Target({"kind": "cuda", "arch": chosen, **_THREADS}, host=host.target)
    passes = module("tvm.relax.backend.cuda.pipeline").get_default_pipeline(target)
    code = built(graph.name, importer, program, ports, host, target, passes)
    contents = _contents(code, importer.cuda, chosen)
    described = inputs_of(graph), outputs_of(graph)
    if here != chosen:
        return CudaExecutable(graph.name, contents, None, *described)
    with tempfile.TemporaryDirectory() as folder:
        saved = Path(folder) / "model.so"
        saved.write_bytes(contents.packed())
        library = load_library(saved)
    executable = CudaExecutable(graph.name, contents, library, *described, verified=True)
    verify(graph, executable, example)
    return executable


def _arch_here() -> str | None:
    if not torch.cuda.is_available():
        return None
    device = torch.cuda.current_device()
    return arch_of(torch.cuda.get_device_capability(device), torch.cuda.get_device_name(device))


def _chosen_arch(arch: str | None, here: str | None) -> str:
    known = " or ".join(f"arch={name!r}" for name in ARCHITECTURES)
    if arch is None and here is None:
        raise BackendError(f"tvm backend: target 'cuda' needs {known} where no GPU can be asked; there is none")
    if arch is not None and arch not in ARCHITECTURES:
        raise OptionError(f"tvm backend: target 'cuda' needs {known}; got {arch!r}")
    found = arch or here
    assert found is not None, "one of them is known"
    return found


def _contents(code: Any, kernels: Mapping[str, CudaCode], arch: str) -> Contents:
    """What goes into the file: the program, its device code compiled, and the kernels that it calls."""
    device = {hash_of(source): compile_device_code(source, arch) for source in dict.fromkeys(_sources(code.mod))}
    artefacts = [artefact for kernel in kernels.values() for artefact in kernel.artefacts]
    files = {_file_of(artefact): artefact.path.read_bytes() for artefact in artefacts}
    symbols = {symbol: variants_of(kernel) for symbol, kernel in kernels.items()}
    with tempfile.TemporaryDirectory() as folder:
        linked = Path(folder) / "model.so"
        code.export_library(str(linked))
        return Contents(arch, linked.read_bytes(), files, device, symbols)


def _file_of(artefact: Artefact) -> str:
    return f"kernels/{artefact.path.parent.name}.so"


def variants_of(kernel: CudaCode) -> tuple[int, tuple[Variant, ...]]:
    """Return the axis of the first argument whose extent chooses, and the kernels to choose from."""
    arguments = [*kernel.inputs, *kernel.written]
    variants = tuple(
        Variant(
            _file_of(artefact),
            artefact.ffi_entry,
            tuple(arguments.index(item) for item in artefact.arguments if item.present),
            FEW_ROWS if artefact is kernel.few else None,
        )
        for artefact in kernel.artefacts
    )
    axis = next(place for place, dim in enumerate(arguments[0].dims) if dim in ("rows", "queries"))
    return axis, variants


def _sources(found: Any) -> list[str]:
    """CUDA source of a module and of those that it imports."""
    own = [str(found.inspect_source())] if found.kind == "cuda" else []
    return own + [source for part in found.imports for source in _sources(part)]
