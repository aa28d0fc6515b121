"""The processor that code is compiled for: its name, features, width of vectors and threads."""

import os
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, Final

from regraft.backends.tvm._compat import module

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
            settings["mattr"] = [f"+{name}" for name in sorted(self.features & _CHECKED)]
        return module("tvm.target").Target(settings)


_CHECKED: Final = frozenset(
    {
        *("avx", "avx2", "fma", "f16c"),
        *("avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl", "avx512vnni", "avx512bf16", "avx512vbmi"),
    }
)


@lru_cache(maxsize=1)
def this_host() -> Host:
    """Return the processor that this process runs on."""
    found = module("tvm").get_global_func("tvm.codegen.llvm.GetHostCPUFeatures")()
    features = frozenset(str(name) for name, there in found.items() if int(there))
    name = str(module("tvm").get_global_func("target.llvm_get_system_cpu")())
    return Host(name, features, exact=True)


def threads() -> int:
    """Return how many threads kernels run on: TVM_NUM_THREADS, else OMP_NUM_THREADS, else all processors."""
    for name in ("TVM_NUM_THREADS", "OMP_NUM_THREADS"):
        text = os.environ.get(name, "")
        if text.isdecimal() and int(text) > 0:
            return int(text)
    return os.cpu_count() or 1
