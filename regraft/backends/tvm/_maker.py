"""What makes kernels for calls of ops: one for the CPU here, one for a GPU in `_cuda`."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol

import torch
from torch import Tensor

from regraft.backends.tvm._tuning import CpuTask, tuned_tiles
from regraft.backends.tvm.kernels.cpu import Operands, compile_kernel, cpu_kernels
from regraft.backends.tvm.kernels.cpu import _dense as dense
from regraft.backends.tvm.kernels.cpu._host import Host
from regraft.graph.types import dtype_name
from regraft.tune import Content

_MATRIX: Final = 2


@dataclass(frozen=True)
class Varying:
    """An operand that is computed in each call.

    Attributes:
        dtype: of its elements.
        shape: its extents; None for those that are known at run time only.
        expected: its extents in the example inputs, or a guess; at least 2 for one that is known at run time only.
    """

    dtype: torch.dtype
    shape: tuple[int | None, ...]
    expected: tuple[int, ...]

    def with_width(self, width: int) -> "Varying":
        """Return the same with another last extent."""
        return Varying(self.dtype, (*self.shape[:-1], width), (*self.expected[:-1], width))


class Made(Protocol):
    """A kernel with the weights of a layer.

    Attributes:
        key: what `torch.ops.regraft_kernels.run` knows it by.
        packed: weights as it reads them.
    """

    @property
    def key(self) -> str: ...
    @property
    def packed(self) -> tuple[Tensor, ...]: ...
    def __call__(self, *activations: Tensor) -> Tensor:
        """Return the result of the op."""
        ...


class Maker(Protocol):
    """Makes the kernels of one target.

    Attributes:
        dense: whether dense linear layers of a whole graph run on its kernels.
    """

    @property
    def dense(self) -> bool: ...

    def has(self, op: str) -> bool:
        """Return whether there is a kernel of an op; "linear" is a dense layer."""
        ...

    def may_vary(self, op: str) -> Collection[str] | None:
        """Return the operands that may vary, None when all may."""
        ...

    def make(
        self,
        op: str,
        constants: Mapping[str, Tensor],
        varying: Mapping[str, Varying],
        attributes: Mapping[str, Any],
    ) -> Made | str:
        """Return the kernel of a call, or why there is none."""
        ...


@dataclass(frozen=True)
class CpuMaker:
    """Kernels for the CPU; for this processor when `host` is None.

    Attributes:
        records: of tuning, from which tiles are taken.
        tasks: what was made is noted there, to be tuned.
    """

    host: Host | None = None
    dense: bool = True
    records: Content | None = None
    tasks: list[CpuTask] | None = None

    def has(self, op: str) -> bool:
        """Return whether there is a kernel of an op."""
        return op == "linear" or op in cpu_kernels()

    def may_vary(self, op: str) -> Collection[str] | None:
        """Return the operands that may vary."""
        return dense.kernel.activations if op == "linear" else cpu_kernels()[op].activations

    def make(
        self,
        op: str,
        constants: Mapping[str, Tensor],
        varying: Mapping[str, Varying],
        attributes: Mapping[str, Any],
    ) -> Made | str:
        """Return the kernel of a call, or why there is none."""
        if op == "linear" and (constants["weight"].dim() != _MATRIX or _is_no_row(constants.get("bias"))):
            return "weight must be a matrix, and bias one row"
        kernel = dense.kernel if op == "linear" else cpu_kernels()[op]
        types = {name: value.dtype for name, value in varying.items()}
        shapes = {name: value.shape for name, value in varying.items()}
        task = _task(op, constants, varying, attributes)
        tiles = None if self.records is None else tuned_tiles(self.records, task)
        made = compile_kernel(kernel, Operands(constants, types, attributes, shapes), tiles, self.host)
        if self.tasks is not None and not isinstance(made, str):
            self.tasks.append(task)
        return made if isinstance(made, str) else replace(made, tuned=tiles is not None)


def _task(
    op: str, constants: Mapping[str, Tensor], varying: Mapping[str, Varying], attributes: Mapping[str, Any]
) -> CpuTask:
    shapes = {name: value.expected for name, value in varying.items()}
    shapes |= {name: tuple(tensor.shape) for name, tensor in constants.items()}
    types = {name: value.dtype for name, value in varying.items()}
    types |= {name: tensor.dtype for name, tensor in constants.items()}
    return CpuTask(op, shapes, {name: dtype_name(dtype) for name, dtype in types.items()}, dict(attributes))


def _is_no_row(bias: Tensor | None) -> bool:
    return bias is not None and bias.dim() != 1
