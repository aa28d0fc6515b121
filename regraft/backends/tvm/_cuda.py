"""CUDA kernels of structured ops for the calls of a program: which are built, and how one is run on torch tensors.

A call has up to two kernels, one for few rows and one for the rows of the example inputs; how many rows there are
decides which of them runs.
"""

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import prod
from typing import Any, Final

import torch
from torch import Tensor

from regraft.backends.tvm._build import Artefact, build
from regraft.backends.tvm._launch import launch
from regraft.backends.tvm._maker import Made, Varying
from regraft.backends.tvm._operator import register
from regraft.backends.tvm.kernels._kernel import Argument, Kernel, Problem, Tiling
from regraft.backends.tvm.kernels._registry import all_kernels
from regraft.errors import BackendError, InputError

FEW_ROWS: Final = 16
"""Up to so many rows, a kernel is bound by reading the weights."""
_DECODE_ROWS: Final = 4
"""That the kernel for few rows is built for, where examples have more: between one token and a batch of them."""
_MANY_ROWS: Final = 512
"""That the other one is built for, where examples have few."""

_ALIGNMENT: Final = 16
_CAPABILITIES: Final = {8: "sm_80", 9: "sm_90a"}


@dataclass(frozen=True)
class Gpu:
    """Where kernels run.

    Attributes:
        device: that tensors are on.
        arch: that kernels are built for.
        build: makes a kernel.
        launch: starts one.
    """

    device: torch.device
    arch: str
    build: Callable[[str, Problem, Tiling, str], Artefact] = build
    launch: Callable[[Artefact, Sequence[Tensor | None], Sequence[int]], None] = launch


def arch_of(capability: tuple[int, int], name: str) -> str:
    """Return the architecture to build for.

    Args:
        capability: of the GPU, as torch tells it.
        name: of the GPU, for the message.

    Raises:
        BackendError: for a GPU that there are no kernels for.
    """
    major, minor = capability
    if major not in _CAPABILITIES or (major > 8 and minor):
        needed = "compute capability 8.x or 9.0"
        raise BackendError(f"torch backend: kernels='tvm' needs a GPU of {needed}; {name} has {major}.{minor}")
    return _CAPABILITIES[major]


def this_gpu() -> Gpu:
    """Return the current GPU of torch; raises BackendError for one that there are no kernels for."""
    device = torch.device("cuda", torch.cuda.current_device())
    return Gpu(device, arch_of(torch.cuda.get_device_capability(device), torch.cuda.get_device_name(device)))


@dataclass(frozen=True, eq=False)
class CudaCode:
    """The kernels of a call.

    Attributes:
        op: what they compute.
        few: for at most `FEW_ROWS` rows; None where the other one serves.
        many: for any number of rows.
        operands: names of what it is called with, activations first, then what is packed.
        width: last extent of the result.
        flat: whether the result has one extent for all leading ones of the first activation.
        launch: starts a kernel.
    """

    op: str
    few: Artefact | None
    many: Artefact
    operands: tuple[str, ...]
    width: int
    flat: bool
    launch: Callable[[Artefact, Sequence[Tensor | None], Sequence[int]], None]

    @property
    def artefacts(self) -> tuple[Artefact, ...]:
        """All kernels, that for few rows first."""
        return (self.many,) if self.few is None else (self.few, self.many)

    @property
    def inputs(self) -> tuple[Argument, ...]:
        """What every kernel reads, in order."""
        return tuple(item for item in self.many.arguments if item.role == "in" and item.present)

    @property
    def written(self) -> tuple[Argument, ...]:
        """The result, and then all memory that one of the kernels is lent."""
        found = [item for artefact in self.artefacts for item in artefact.arguments if item.role != "in"]
        return tuple(dict.fromkeys(sorted(found, key=lambda item: item.role != "out")))

    def result_like(self, activations: Sequence[Tensor]) -> Tensor:
        """Return an empty tensor of the type of the result."""
        lead = activations[0].shape[:-1]
        return activations[0].new_empty((prod(lead), self.width) if self.flat else (*lead, self.width))

    def run(self, activations: Sequence[Tensor], packed: Sequence[Tensor]) -> Tensor:
        """Return the result of the op; memory is torch's, and nothing waits for the GPU.

        Raises:
            InputError: when an activation has another shape or element type than the kernel takes.
            BackendError: when CUDA refuses the kernel.
        """
        result = self.result_like(activations)
        if not result.numel():
            return result
        given = dict(zip(self.operands, (*activations, *packed), strict=True))
        extents: dict[str, int] = {}
        inputs = {argument.name: self._input(argument, given[argument.name], extents) for argument in self.inputs}
        artefact = self.chosen(extents)
        tensors = [self._tensor(argument, inputs, extents, result) for argument in artefact.arguments]
        self.launch(artefact, tensors, [extents[name] for name in artefact.extents])
        return result

    def chosen(self, extents: Mapping[str, int]) -> Artefact:
        """Return the kernel for so many rows (queries, in attention)."""
        rows = extents["rows"] if "rows" in extents else extents["queries"]
        return self.few if self.few is not None and rows <= FEW_ROWS else self.many

    def _input(self, argument: Argument, tensor: Tensor, extents: dict[str, int]) -> Tensor:
        """An operand as the kernel sees it, dense and aligned; its dynamic extents are noted."""
        seen = _seen(argument, tensor)
        known = [extents.get(dim, dim) if isinstance(dim, str) else dim for dim in argument.dims]
        fits = seen is not None and all(
            isinstance(dim, str) or dim == extent for dim, extent in zip(known, seen.shape, strict=True)
        )
        if seen is None or not fits or tensor.dtype != getattr(torch, argument.dtype):
            needed = f"{argument.dtype} that can be seen as [{', '.join(map(str, known))}]"
            got = f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
            raise InputError(f"cuda kernel {self.op}: {argument.name} must be {needed}; got {got}")
        extents |= {dim: extent for dim, extent in zip(argument.dims, seen.shape, strict=True) if isinstance(dim, str)}
        return dense(seen)

    def _tensor(
        self, argument: Argument, inputs: Mapping[str, Tensor], extents: Mapping[str, int], result: Tensor
    ) -> Tensor | None:
        if not argument.present:
            return None
        if argument.role != "scratch":
            return result if argument.role == "out" else inputs[argument.name]
        shape = [extents[dim] if isinstance(dim, str) else dim for dim in argument.dims]
        return torch.empty(shape, dtype=getattr(torch, argument.dtype), device=result.device)


def _seen(argument: Argument, tensor: Tensor) -> Tensor | None:
    """The tensor with its leading extents in one, or its last one in heads; None when it has not enough numbers."""
    dims = argument.dims
    if tensor.dim() == len(dims) and not _is_rows(argument):
        return tensor
    fixed = [dim for dim in dims if isinstance(dim, int)]
    if _is_rows(argument):
        return tensor.reshape(-1, *fixed) if prod(tensor.shape[-1:]) == prod(fixed) else None
    lead = tensor.shape[: len(dims) - len(fixed)]
    return tensor.reshape(*lead, *fixed) if tensor.numel() == prod(lead) * prod(fixed) else None


def _is_rows(argument: Argument) -> bool:
    return argument.dims[0] == "rows"


def dense(tensor: Tensor) -> Tensor:
    """Return the tensor in the order of its dims, at an address that vectors can be read from."""
    found = tensor.detach().contiguous()
    return found if found.data_ptr() % _ALIGNMENT == 0 else found.clone()


@dataclass(frozen=True, eq=False)
class CudaMade:
    """CUDA kernels with the weights of a layer, which are on the GPU."""

    key: str
    packed: tuple[Tensor, ...]
    code: CudaCode

    def __call__(self, *activations: Tensor) -> Tensor:
        """Return the result of the op."""
        return self.code.run(activations, self.packed)


@dataclass(frozen=True)
class CudaMaker:
    """Kernels for a GPU; dense layers have none, they are the vendor's."""

    gpu: Gpu
    dense: bool = False

    def has(self, op: str) -> bool:
        """Return whether there is a kernel of an op."""
        return op in all_kernels()

    def may_vary(self, op: str) -> Collection[str] | None:
        """Return None: kernels read all operands as they are."""
        del op
        return None

    def make(
        self, op: str, constants: Mapping[str, Tensor], varying: Mapping[str, Varying], attributes: Mapping[str, Any]
    ) -> Made | str:
        """Return the kernels of a call, or why there are none."""
        kernel, first = all_kernels()[op], next(iter(varying), "")
        if first not in ("x", "q"):
            return "what it is applied to is a constant"
        shapes = {name: value.expected for name, value in varying.items()}
        shapes |= {name: tuple(tensor.shape) for name, tensor in constants.items()}
        problem = kernel.problem(shapes, attributes, str(varying[first].dtype).removeprefix("torch."))
        found = tilings(kernel, problem, self.gpu.arch)
        if isinstance(found, str):
            return found
        arguments = {one.name: one for one in kernel.arguments(problem, found[-1])}
        reason = _wrong_types(arguments, constants, varying) or _wrong_places(constants, problem)
        if reason is not None:
            return reason
        packed = tuple(
            dense(tensor.detach().to(self.gpu.device, getattr(torch, arguments[name].dtype)))
            for name, tensor in constants.items()
        )
        code = self._code(kernel, problem, found, (*varying, *constants), attributes)
        described = {"cuda": op, "arch": self.gpu.arch, "problem": asdict(problem), "operands": code.operands}
        described |= {"tilings": [asdict(tiling) for tiling in found], "flat": code.flat}
        key = json.dumps(described, sort_keys=True)
        register(key, code)
        return CudaMade(key, packed, code)

    def _code(
        self,
        kernel: Kernel,
        problem: Problem,
        found: Sequence[Tiling],
        operands: tuple[str, ...],
        attributes: Mapping[str, Any],
    ) -> CudaCode:
        *few, many = (self.gpu.build(kernel.op, problem, tiling, self.gpu.arch) for tiling in found)
        (result,) = (argument for argument in many.arguments if argument.role == "out")
        fixed = [dim for dim in result.dims if isinstance(dim, int)]
        merged = result.dims[0] == "rows" or problem.has("split")
        width = prod(fixed) if merged else fixed[-1]
        flat = bool(attributes.get("rows", 0))
        return CudaCode(kernel.op, few[0] if few else None, many, operands, width, flat, self.gpu.launch)


def tilings(kernel: Kernel, problem: Problem, arch: str) -> list[Tiling] | str:
    """Return tiles for few rows, where they differ, and for the expected ones, or why there are none."""
    reason = kernel.wrong_problem(problem)
    if reason is not None:
        return reason
    is_few = problem.rows <= FEW_ROWS
    many = replace(problem, rows=_MANY_ROWS if is_few else problem.rows)
    few = problem if is_few else replace(problem, rows=_DECODE_ROWS)
    usual, decode = kernel.default(many, arch), kernel.default(few, arch)
    reason = kernel.fits(many, usual, arch)
    if reason is not None:
        return reason
    return [decode, usual] if decode != usual and kernel.fits(few, decode, arch) is None else [usual]


def _wrong_types(
    arguments: Mapping[str, Argument], constants: Mapping[str, Tensor], varying: Mapping[str, Varying]
) -> str | None:
    """Why the element types do not fit; constants are widened where that changes nothing."""
    for name, tensor in constants.items():
        needed = getattr(torch, arguments[name].dtype)
        if torch.promote_types(tensor.dtype, needed) != needed:
            return f"{name} must be {arguments[name].dtype}; it is {str(tensor.dtype).removeprefix('torch.')}"
    for name, value in varying.items():
        if value.dtype != getattr(torch, arguments[name].dtype):
            return f"{name} must be {arguments[name].dtype}; it is {str(value.dtype).removeprefix('torch.')}"
    return None


def _wrong_places(constants: Mapping[str, Tensor], problem: Problem) -> str | None:
    """Why columns are none of x, which a kernel would read outside of its memory."""
    places = constants.get("outliers")
    if places is None or bool(((places >= 0) & (places < problem.sizes["in_features"])).all()):
        return None
    return f"outliers must be places from 0 to {problem.sizes['in_features'] - 1}"
