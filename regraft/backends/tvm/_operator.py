"""The one opaque operator that kernels are called by, `torch.ops.regraft_kernels.run`, on the CPU and on a GPU.

It knows its types without running, so that torch.compile and torch.export take a whole module. A key names the code:
that of a CPU kernel, of CUDA kernels, or of an op that is composed of kernels.
"""

from collections.abc import Sequence
from typing import Final, Protocol

import torch
from torch import Tensor

from regraft.backends.tvm.kernels.cpu._kernel import result_like, run


class Code(Protocol):
    """What a key names."""

    def run(self, activations: Sequence[Tensor], packed: Sequence[Tensor]) -> Tensor:
        """Return the result of the op."""
        ...

    def result_like(self, activations: Sequence[Tensor]) -> Tensor:
        """Return an empty tensor of the type of the result, whose extents may be symbols."""
        ...


_CODES: Final[dict[str, Code]] = {}
"""Of other kernels than those for the CPU, which keep their own."""


def register(key: str, code: Code) -> None:
    """Let a key name a code, which every layer of that key shares."""
    _CODES[key] = code


def code_of(key: str) -> Code | None:
    """Return what a key names; None for one of a CPU kernel."""
    return _CODES.get(key)


def _run(activations: Sequence[Tensor], packed: Sequence[Tensor], key: str) -> Tensor:
    code = _CODES.get(key)
    return run(key, activations, packed) if code is None else code.run(activations, packed)


def _type(activations: Sequence[Tensor], packed: Sequence[Tensor], key: str) -> Tensor:
    del packed
    code = _CODES.get(key)
    return result_like(key, activations) if code is None else code.result_like(activations)


_LIBRARY: Final = torch.library.Library("regraft_kernels", "DEF")  # its operators vanish when it is collected
_LIBRARY.define("run(Tensor[] activations, Tensor[] packed, str key) -> Tensor", tags=(torch.Tag.pt2_compliant_tag,))
_LIBRARY.impl("run", _run, "CPU")
_LIBRARY.impl("run", _run, "CUDA")
_LIBRARY.impl("run", _type, "Meta")
