"""What a CPU kernel of an op is, and one that was compiled for the weights of a layer."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import torch
from torch import Tensor

from regraft.backends.tvm._compat import module
from regraft.backends.tvm.kernels.cpu._host import Host, this_host
from regraft.backends.tvm.kernels.cpu._ir import NAME
from regraft.errors import BackendError, InputError, OptionError
from regraft.ops import AttributeValue

Tiles = Mapping[str, int]
WITHOUT: Final = ("s_tir.CompactBufferAllocation", "tirx.CommonSubexprElim")
"""Passes that take most of the time and change nothing: buffers are as small as they can be, and LLVM does the rest."""
ALIGNMENT: Final = 64
"""Bytes; vectors of activations are read as if they began at a multiple."""


@dataclass(frozen=True)
class Operands:
    """What is known of a call when its kernel is compiled.

    Attributes:
        constants: weights by the name of their operand; absent operands are left out.
        activations: dtypes of what varies, by name, in the order of the op.
        attributes: of the op.
        shapes: extents of activations; None for those that are known at run time only.
    """

    constants: Mapping[str, Tensor]
    activations: Mapping[str, torch.dtype]
    attributes: Mapping[str, AttributeValue]
    shapes: Mapping[str, tuple[int | None, ...]]

    def dtype(self, *others: str) -> str | None:
        """Return "float32" or "float64" when the activations and these constants all have it, else None."""
        kinds = {*self.activations.values(), *(self.constants[name].dtype for name in others if name in self.constants)}
        names = {torch.float32: "float32", torch.float64: "float64"}
        return names.get(next(iter(kinds))) if len(kinds) == 1 else None


@dataclass(frozen=True)
class Plan:
    """A kernel for the weights of one layer, not compiled yet.

    Attributes:
        problem: all that its code depends on beside op, tiles and processor.
        packed: weights in the order in which the code reads them.
        program: writes the code.
        arguments: activations -> what the code takes before the weights, dense.
        shape: activations -> shape of the result.
        seen: (activations, result) -> the result in the shape that the code knows.
        in_rows: whether activations and result are seen as [rows, width].
    """

    problem: Mapping[str, Any]
    packed: tuple[Tensor, ...]
    program: Callable[[], Any]
    arguments: Callable[[Sequence[Tensor]], list[Any]]
    shape: Callable[[Sequence[Tensor]], Sequence[Any]]
    seen: Callable[[Sequence[Tensor], Tensor], Tensor]
    in_rows: bool = True


@dataclass(frozen=True)
class CpuKernel:
    """A kernel of an op for the CPU.

    Attributes:
        op: the structured op that it implements.
        activations: operands that may vary; all others must be constants.
        tiles: tile parameters by name, with the values that make sense: the space that a tuner searches.
        default: processor -> tiles.
        plan: (operands, tiles, processor) -> plan, or why the kernel does not fit.
    """

    op: str
    activations: tuple[str, ...]
    tiles: Mapping[str, tuple[int, ...]]
    default: Callable[[Host], Tiles]
    plan: Callable[[Operands, Tiles, Host], Plan | str]


@dataclass(frozen=True, eq=False)
class Compiled:
    """A compiled kernel with the weights of a layer.

    Attributes:
        key: names the code; kernels of one key differ in weights alone.
        plan: what it was compiled from.
        tuned: whether its tiles come from records.
    """

    key: str
    plan: Plan
    tuned: bool = False

    @property
    def packed(self) -> tuple[Tensor, ...]:
        """Weights in the order in which the code reads them."""
        return self.plan.packed

    def __call__(self, *activations: Tensor) -> Tensor:
        """Return the result of the op."""
        return run(self.key, activations, self.plan.packed)


@dataclass(frozen=True, eq=False)
class _Code:
    """Code that is compiled when it is first run: a whole graph compiles its kernels once more, together."""

    op: str
    plan: Plan
    host: Host
    dtypes: tuple[torch.dtype, ...]

    @cached_property
    def entry(self) -> Any:
        return _build(self.op, self.plan, self.host)


_CODE: Final[dict[str, _Code]] = {}
"""By key; the weights of its plan are those of the layer that was compiled first, and are not used."""


def compile_kernel(
    kernel: CpuKernel, operands: Operands, tiles: Tiles | None = None, host: Host | None = None
) -> Compiled | str:
    """Return a kernel for a layer, compiled when it is first run, or why it does not fit.

    Args:
        kernel: of the op.
        operands: of the call.
        tiles: tile parameters that shall not have their default.
        host: processor to compile for; this one by default.

    Raises:
        OptionError: for a tile parameter or a value that the kernel does not have.
    """
    processor = host or this_host()
    chosen = {**kernel.default(processor), **(tiles or {})}
    for name, value in chosen.items():
        if value not in kernel.tiles.get(name, ()):
            space = ", ".join(f"{key} ({'|'.join(map(str, values))})" for key, values in kernel.tiles.items())
            raise OptionError(f"tvm kernel {kernel.op}: has no tile {name}={value}; it has: {space}")
    plan = kernel.plan(operands, chosen, processor)
    if isinstance(plan, str):
        return plan
    described = {"op": kernel.op, "problem": dict(plan.problem), "tiles": chosen, "cpu": processor.cpu}
    key = json.dumps(described, sort_keys=True)
    if key not in _CODE:
        _CODE[key] = _Code(kernel.op, plan, processor, tuple(operands.activations.values()))
    return Compiled(key, plan)


def _build(op: str, plan: Plan, host: Host) -> Any:
    tvm = module("tvm")
    try:
        with module("tvm").transform.PassContext(disabled_pass=list(WITHOUT)):
            return tvm.compile(tvm.IRModule({NAME: plan.program()}), target=host.target)[NAME]
    except (RuntimeError, ValueError, TypeError) as error:
        first = next(iter(str(error).splitlines()), type(error).__name__)
        raise BackendError(f"tvm kernel {op}: cannot be compiled: {first}") from error


def run(key: str, activations: Sequence[Tensor], packed: Sequence[Tensor]) -> Tensor:
    """Run compiled code.

    Args:
        key: of `Compiled`.
        activations: those that were announced, in order, of any strides.
        packed: weights, as the plan packed them.

    Raises:
        InputError: when an activation has another dtype, or lies on another device.
        BackendError: when TVM cannot compile it.
    """
    code = _CODE[key]
    for tensor, dtype in zip(activations, code.dtypes, strict=True):
        if tensor.dtype != dtype or tensor.device.type != "cpu":
            op = json.loads(key)["op"]
            raise InputError(f"tvm kernel {op}: needs {dtype} on cpu; got {tensor.dtype} on {tensor.device.type}")
    result = activations[0].new_empty(tuple(code.plan.shape(activations)))
    if result.numel():
        code.entry(*code.plan.arguments(activations), *packed, code.plan.seen(activations, result))
    return result


def result_like(key: str, activations: Sequence[Tensor]) -> Tensor:
    """Return an empty tensor of the type of the result, whose extents may be symbols."""
    return activations[0].new_empty(tuple(_CODE[key].plan.shape(activations)))


def program_of_key(key: str) -> Plan:
    """Return the plan of compiled code; its weights are not those of the caller."""
    return _CODE[key].plan


def dense(tensor: Tensor) -> Tensor:
    """Return the tensor in the order of its dims, at an address that vectors can be read from."""
    found = tensor.detach().contiguous()
    return found if found.data_ptr() % ALIGNMENT == 0 else found.clone()


def as_rows(width: int) -> Callable[[Sequence[Tensor]], list[Any]]:
    """Return what gives the first activation as [rows, width], and the others likewise."""

    def arguments(activations: Sequence[Tensor]) -> list[Any]:
        first, *others = activations
        return [dense(first.reshape(-1, width)), *(dense(other.reshape(-1, other.shape[-1])) for other in others)]

    return arguments


def with_columns(columns: int) -> Callable[[Sequence[Tensor]], Sequence[Any]]:
    """Return what gives the shape of the first activation with another last extent."""
    return lambda activations: (*activations[0].shape[:-1], columns)


def in_rows(activations: Sequence[Tensor], result: Tensor) -> Tensor:
    """Return a result as [rows, columns]."""
    del activations
    return result.view(-1, result.shape[-1])
