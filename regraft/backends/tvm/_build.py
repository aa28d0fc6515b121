"""An op's CUDA kernel from its template to a library on disk, in one call."""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from regraft.backends.tvm._cache import Built, cached, key_of
from regraft.backends.tvm._compat import TILELANG, check_tilelang
from regraft.backends.tvm._entry import C_ENTRY, dynamic_names, with_entries
from regraft.backends.tvm._nvcc import Resources, compile_library, find_nvcc, nvcc_version
from regraft.backends.tvm._templates import cuda_source
from regraft.backends.tvm.kernels._kernel import ARCHITECTURES, Argument, Kernel, Problem, Tiling
from regraft.backends.tvm.kernels._registry import get_kernel
from regraft.errors import BackendError

_HERE: Final = Path(__file__).parent
_MAKERS: Final = ("_build.py", "_entry.py", "_nvcc.py", "_worker_main.py")
"""Files beside the templates on which a library depends."""


@dataclass(frozen=True)
class Artefact:
    """A compiled kernel.

    Attributes:
        op: what it computes.
        path: of the shared library, which needs neither TVM nor TileLang.
        source: path of its CUDA source.
        c_entry: name of its plain C function.
        ffi_entry: name of its function of tvm_ffi.
        arguments: what it takes, in order.
        extents: names of its dynamic extents, in the order of the C function.
        problem, tiling, arch: what it was built for.
        resources: registers, spills, shared memory and instructions.
    """

    op: str
    path: Path
    source: Path
    c_entry: str
    ffi_entry: str
    arguments: tuple[Argument, ...]
    extents: tuple[str, ...]
    problem: Problem
    tiling: Tiling
    arch: str
    resources: Resources


def build(op: str, problem: Problem, tiling: Tiling | None = None, arch: str = "sm_80") -> Artefact:
    """Return a kernel's compiled library, from the cache when it was built before; no GPU is needed.

    Args:
        op: name of a structured op that has a CUDA kernel.
        problem: dtype, extents and options.
        tiling: variant and tiles; those that the kernel chooses when None.
        arch: "sm_80" or "sm_90a".

    Raises:
        UnknownNameError: when the op has no CUDA kernel.
        MissingExtraError: when TileLang or nvcc is missing.
        BackendError: when the problem does not fit the kernel, or the tiles the architecture; says why.
        OutputError: when the cache cannot be written.
    """
    kernel = get_kernel(op)
    tiling = chosen_tiling(kernel, problem, tiling, arch)
    check_tilelang()
    content = _content(kernel, problem, tiling, arch)
    entry = cached(key_of(content), content, lambda: _built(kernel, problem, tiling, arch))
    arguments = kernel.arguments(problem, tiling)
    extents = tuple(dynamic_names(arguments))
    return Artefact(
        op, entry.library, entry.source, C_ENTRY, op, arguments, extents, problem, tiling, arch, entry.resources
    )


def chosen_tiling(kernel: Kernel, problem: Problem, tiling: Tiling | None, arch: str) -> Tiling:
    """Return the tiles to build with; raises BackendError when they do not fit, saying why."""
    # Tiles are chosen only for a problem that the kernel can take at all.
    reason = kernel.wrong_problem(problem)
    if reason is None:
        tiling = tiling or kernel.default(problem, arch)
        reason = kernel.fits(problem, tiling, arch)
    if reason is not None or tiling is None:
        raise BackendError(f"tvm backend: the CUDA kernel of {kernel.op}: {reason}")
    return tiling


def _built(kernel: Kernel, problem: Problem, tiling: Tiling, arch: str) -> Built:
    source = with_entries(cuda_source(kernel, problem, tiling, arch), kernel.op, kernel.arguments(problem, tiling))
    library, resources = compile_library(source, arch)
    largest, most = max(resources.dynamic_shared_bytes), ARCHITECTURES[arch]
    if largest > most:  # what `fits` foresees is an estimate
        text = f"takes {largest} bytes of shared memory; a block on {arch} has {most}"
        raise BackendError(f"tvm backend: the CUDA kernel of {kernel.op}, {tiling}, {text}")
    return Built(source, library, resources)


def _content(kernel: Kernel, problem: Problem, tiling: Tiling, arch: str) -> Mapping[str, Any]:
    """All that a library depends on; the expected number of rows is in the tiles."""
    versions = {**TILELANG, "nvcc": nvcc_version(find_nvcc())}
    described = {name: value for name, value in asdict(problem).items() if name != "rows"}
    return {
        "op": kernel.op,
        "problem": described,
        "tiling": asdict(tiling),
        "arch": arch,
        "versions": versions,
        "templates": _sources(),
    }


@lru_cache(maxsize=1)
def _sources() -> str:
    """Hash of the templates and of what makes libraries of them."""
    paths = [*(_HERE / name for name in _MAKERS), *sorted((_HERE / "kernels").glob("*.py"))]
    paths += sorted((_HERE / "kernels" / "cuda").glob("*.py"))
    content = b"".join(path.name.encode() + b"\0" + path.read_bytes() for path in paths)
    return hashlib.sha256(content).hexdigest()
