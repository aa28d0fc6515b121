"""The processor that code is compiled for: its name, features, width of vectors and threads."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, Final

from regraft.backends.tvm._compat import module
from regraft.backends.tvm._processor import CHECKED
from regraft.errors import BackendError, OptionError

_BYTES: Final = {"avx512f": 64, "avx2": 32}
"""Vector registers by feature; 16 elsewhere."""


@dataclass(frozen=True)
class Host:
    """A processor, as LLVM knows it.

    Attributes:
        cpu: LLVM's name of it ("znver4", "x86-64").
        features: what it has ("avx512f", "avx512vnni").
        exact: whether the features were read from a processor, so that they stand beside its name.
    """

    cpu: str
    features: frozenset[str]
    exact: bool = False

    @property
    def has_vnni(self) -> bool:
        """Whether it multiplies and adds four pairs of bytes in one instruction of 512 bits."""
        return {"avx512f", "avx512bw", "avx512vnni"} <= self.features

    def lanes(self, bits: int) -> int:
        """Return how many numbers of so many bits one register holds."""
        wide = next((size for feature, size in _BYTES.items() if feature in self.features), 16)
        return wide * 8 // bits

    @cached_property
    def target(self) -> Any:
        """TVM's target."""
        settings: dict[str, Any] = {"kind": "llvm", "mcpu": self.cpu}
        if self.exact:
            settings["mattr"] = [f"{'+' if name in self.features else '-'}{name}" for name in CHECKED]
        return module("tvm.target").Target(settings)

    @property
    def needs(self) -> str:
        """What a processor must have to run code for this one, as `check_processor` reads it."""
        return f"{self.cpu}: {' '.join(name for name in CHECKED if name in self.features)}"


def host_of(mcpu: str | None) -> Host:
    """Return a processor by LLVM's name; this one for None, any x86-64 for "generic".

    Raises:
        OptionError: for a name that LLVM does not know.
        BackendError: when this processor, on which compiled code is tried, cannot run code for that one.
    """
    if mcpu is None:
        return this_host()
    tvm = module("tvm")
    name = "x86-64" if mcpu == "generic" else mcpu
    known = [str(item) for item in tvm.get_global_func("target.llvm_get_cpu_archlist")(this_host().target)]
    if name not in known:
        raise OptionError(f"tvm backend: mcpu must be 'generic' or a name that LLVM knows ('znver4'); got {mcpu!r}")
    target = tvm.target.Target({"kind": "llvm", "mcpu": name})
    found = tvm.get_global_func("target.llvm_get_cpu_features")(target)
    host = Host(name, frozenset(str(feature) for feature in found))
    missing = [name for name in CHECKED if name in host.features - this_host().features]
    if missing:
        text = f"tvm backend: code for mcpu={mcpu!r} cannot be tried here: this processor has no {', '.join(missing)}"
        raise BackendError(text)
    return host


@lru_cache(maxsize=1)
def this_host() -> Host:
    """Return the processor that this process runs on."""
    features = frozenset(name for name, there in _features_here().items() if there)
    name = str(module("tvm").get_global_func("target.llvm_get_system_cpu")())
    return Host(name, features, exact=True)


def _features_here() -> Mapping[str, bool]:
    """All extensions that LLVM can look for, and whether they are there."""
    found = module("tvm").get_global_func("tvm.codegen.llvm.GetHostCPUFeatures")()
    return {str(name): bool(int(there)) for name, there in found.items()}


def threads() -> int:
    """Return how many threads kernels run on: TVM_NUM_THREADS, else OMP_NUM_THREADS, else all processors."""
    for name in ("TVM_NUM_THREADS", "OMP_NUM_THREADS"):
        text = os.environ.get(name, "")
        if text.isdecimal() and int(text) > 0:
            return int(text)
    return os.cpu_count() or 1
