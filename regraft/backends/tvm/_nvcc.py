"""CUDA source to a shared library by nvcc, and what nvcc says about the kernels in it."""

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from regraft.errors import BackendError, MissingExtraError

_USUAL: Final = Path("/usr/local/cuda")
_TIMEOUT_S: Final = 600.0

_INSTRUCTIONS: Final = {
    "wgmma": r"\bwgmma\.mma_async",
    "tma": r"\bcp\.async\.bulk\.tensor",
    "mma.sync": r"\bmma\.sync",
    "ldmatrix": r"\bldmatrix",
    "cp.async": r"\bcp\.async\.c[ag]\b",
    "dp4a": r"\bdp4a",
    "vectors": r"\bld\.global(\.nc)?(\.[\w:]+)*\.v[24]",
}
"""Families of instructions, as they look in PTX."""


@dataclass(frozen=True)
class KernelUse:
    """What ptxas says about one kernel: registers a thread, bytes spilled, bytes of shared memory that it declares."""

    name: str
    registers: int
    spilled_bytes: int
    shared_bytes: int


@dataclass(frozen=True)
class Resources:
    """What the kernels of a library take.

    Attributes:
        kernels: one by one.
        dynamic_shared_bytes: that each launch asks for, in the order of the launches.
        instructions: families that are in the code, of "wgmma", "tma", "mma.sync", "ldmatrix", "cp.async", "dp4a",
            "vectors".
    """

    kernels: tuple[KernelUse, ...]
    dynamic_shared_bytes: tuple[int, ...]
    instructions: tuple[str, ...]

    @property
    def spilled_bytes(self) -> int:
        """Of all kernels."""
        return sum(kernel.spilled_bytes for kernel in self.kernels)

    def as_json(self) -> dict[str, Any]:
        """Return it as JSON."""
        return asdict(self)

    @staticmethod
    def from_json(content: dict[str, Any]) -> "Resources":
        """Return what `as_json` wrote."""
        kernels = tuple(KernelUse(**kernel) for kernel in content["kernels"])
        return Resources(kernels, tuple(content["dynamic_shared_bytes"]), tuple(content["instructions"]))


def find_nvcc() -> Path:
    """Return the CUDA compiler: of CUDA_HOME, on PATH, or where it usually is.

    Raises:
        MissingExtraError: when there is none, saying where it was looked for.
    """
    home, on_path = os.environ.get("CUDA_HOME"), shutil.which("nvcc")
    places = [Path(home) / "bin" / "nvcc"] if home else []
    places += [Path(on_path)] if on_path else []
    places.append(_USUAL / "bin" / "nvcc")
    for place in places:
        if os.access(place, os.X_OK):
            return place
    asked = f"CUDA_HOME ({home})" if home else "CUDA_HOME (not set)"
    hint = "install the CUDA toolkit, or set CUDA_HOME to where it is"
    raise MissingExtraError(
        f"tvm backend: CUDA kernels need nvcc; it is not in {asked}, on PATH or in {_USUAL}", hint=hint
    )


@lru_cache(maxsize=4)
def nvcc_version(nvcc: Path) -> str:
    """Return what the compiler calls its build ("cuda_13.0.r13.0/compiler.36424714_0")."""
    said = _run([str(nvcc), "--version"]).stdout
    found = re.search(r"Build (\S+)", said)
    return found[1] if found else said.strip()


def compile_library(source: str, arch: str) -> tuple[bytes, Resources]:
    """Return a shared library and what its kernels take.

    Args:
        source: CUDA C++.
        arch: "sm_80" or "sm_90a".

    Raises:
        MissingExtraError: when there is no nvcc.
        BackendError: when nvcc refuses the source, with its first error.
    """
    nvcc, number = find_nvcc(), arch.removeprefix("sm_")
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        (place / "kernel.cu").write_text(source, encoding="utf-8")
        command = [str(nvcc), "-std=c++20", "-O3", "-w", "--shared", str(place / "kernel.cu")]
        command += ["-o", str(place / "kernel.so"), "-gencode", f"arch=compute_{number},code=sm_{number}"]
        command += ["-Xcompiler", "-fPIC,-fvisibility=hidden", "-Xptxas", "-v", "--keep", "--keep-dir", folder]
        command += [f"-I{include}" for include in _includes()]
        done = _run(command)
        if done.returncode != 0:
            raise BackendError(f"tvm backend: nvcc refuses the kernel for {arch}: {_first_error(done)}")
        ptx = "".join(path.read_text(encoding="utf-8") for path in sorted(place.glob("*.ptx")))
        return (place / "kernel.so").read_bytes(), _resources(source, ptx, done.stderr + done.stdout)


def compile_device_code(source: str, arch: str) -> bytes:
    """Return the kernels of a CUDA source without host code, as the driver loads them (a cubin).

    Args:
        source: CUDA C++ that includes nothing but headers of CUDA.
        arch: "sm_80" or "sm_90a".

    Raises:
        MissingExtraError: when there is no nvcc.
        BackendError: when nvcc refuses the source, with its first error.
    """
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        (place / "device.cu").write_text(source, encoding="utf-8")
        command = [str(find_nvcc()), "-std=c++17", "-O3", "-w", "--cubin", f"-arch={arch}", str(place / "device.cu")]
        done = _run([*command, "-o", str(place / "device.cubin")])
        if done.returncode != 0:
            raise BackendError(f"tvm backend: nvcc refuses TVM's kernels for {arch}: {_first_error(done)}")
        return (place / "device.cubin").read_bytes()


def _first_error(done: "subprocess.CompletedProcess[str]") -> str:
    said = done.stderr + done.stdout
    return next((line for line in said.splitlines() if "error" in line.lower()), said.strip()[:300]).strip()[:400]


def _run(command: Sequence[str]) -> "subprocess.CompletedProcess[str]":
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)  # noqa: S603
    except subprocess.TimeoutExpired:
        raise BackendError(f"tvm backend: nvcc took longer than {_TIMEOUT_S:g} s and was ended") from None
    except OSError as error:
        raise BackendError(f"tvm backend: {command[0]} cannot be run: {error.strerror or error}") from error


def _includes() -> list[Path]:
    """Folders of the headers that the source includes, without importing the packages that have them."""
    tilelang, ffi = _package("tilelang"), _package("tvm_ffi")
    return [tilelang / "src", tilelang / "3rdparty" / "cutlass" / "include", ffi / "include"]


def _package(name: str) -> Path:
    found = find_spec(name)
    if found is None or not found.submodule_search_locations:
        raise MissingExtraError(f"tvm backend: {name} is not installed", hint="pip install 'regraft[tvm]'")
    return Path(next(iter(found.submodule_search_locations)))


def _resources(source: str, ptx: str, said: str) -> Resources:
    kernels: list[KernelUse] = []
    for part in said.split("Compiling entry function ")[1:]:
        name = part.split("'")[1]
        spilled = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", part)
        registers, shared = re.search(r"Used (\d+) registers", part), re.search(r"(\d+) bytes smem", part)
        if spilled is None or registers is None:
            raise BackendError(f"tvm backend: nvcc does not say what the kernel {name} takes")
        spills = int(spilled[1]) + int(spilled[2])
        kernels.append(KernelUse(name, int(registers[1]), spills, int(shared[1]) if shared else 0))
    dynamic = tuple(int(size) for size in re.findall(r"config\.dynamicSmemBytes = (\d+);", source))
    used = tuple(name for name, pattern in _INSTRUCTIONS.items() if re.search(pattern, ptx))
    return Resources(tuple(kernels), dynamic, used)
