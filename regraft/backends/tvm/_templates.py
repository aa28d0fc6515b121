"""What TileLang's process does with a kernel template: its CUDA source, or its result on arrays."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regraft.backends.tvm._wire import from_wire, numpy_dtype, to_wire
from regraft.backends.tvm._worker import Worker, shared_worker
from regraft.backends.tvm.kernels._kernel import Argument, Kernel, Problem, Tiling
from regraft.errors import ShapeError

Array = NDArray[Any]


def cuda_source(kernel: Kernel, problem: Problem, tiling: Tiling, arch: str, worker: Worker | None = None) -> str:
    """Return the CUDA source of a template, as TileLang writes it; raises BackendError when it cannot."""
    request = {"do": "source", "arch": arch, "simt": kernel.simt(problem), **_named(kernel, problem, tiling)}
    answer = (worker or shared_worker()).ask(request)
    source: str = answer["source"]
    return source


def interpret(
    kernel: Kernel, problem: Problem, tiling: Tiling, arrays: Mapping[str, Array], worker: Worker | None = None
) -> dict[str, Array]:
    """Return what a template computes, run by the interpreter without a GPU.

    Args:
        kernel: whose template.
        problem: what it computes.
        tiling: its tiles.
        arrays: the inputs by name, in the dtypes of the kernel's arguments.
        worker: that runs it.

    Returns:
        The outputs by name.

    Raises:
        ShapeError: when an input is missing, or does not fit the extents of the others.
        BackendError: when the template fails or does what no kernel may (see `_interpreter`).
    """
    arguments = kernel.arguments(problem, tiling)
    extents = _extents(kernel.op, arguments, arrays)
    wires = {
        argument.name: to_wire(arrays[argument.name] if argument.role == "in" else _blank(argument, extents))
        if argument.present
        else None
        for argument in arguments
    }
    request = {"do": "run", "arrays": wires, **_named(kernel, problem, tiling)}
    answer = (worker or shared_worker()).ask(request)["arrays"]
    outputs = [argument.name for argument in arguments if argument.role == "out"]
    return {name: array for name in outputs if (array := from_wire(answer[name])) is not None}


def _named(kernel: Kernel, problem: Problem, tiling: Tiling) -> dict[str, Any]:
    return {"template": kernel.template, "problem": asdict(problem), "tiling": asdict(tiling)}


def _extents(op: str, arguments: tuple[Argument, ...], arrays: Mapping[str, Array]) -> dict[str, int]:
    """The dynamic extents, from the inputs."""
    found: dict[str, int] = {}
    for argument in arguments:
        if argument.role != "in" or not argument.present:
            continue
        if argument.name not in arrays:
            raise ShapeError(f"{op}: {argument.name} is missing")
        array = arrays[argument.name]
        known = [found.get(dim, dim) if isinstance(dim, str) else dim for dim in argument.dims]
        fits = len(known) == array.ndim and all(
            isinstance(dim, str) or dim == extent for dim, extent in zip(known, array.shape, strict=True)
        )
        if not fits or array.dtype != numpy_dtype(argument.dtype):
            shown = ", ".join(map(str, known))
            raise ShapeError(
                f"{op}: {argument.name} must be [{shown}] of {argument.dtype}; got {list(array.shape)} of {array.dtype}"
            )
        found |= {dim: extent for dim, extent in zip(argument.dims, array.shape, strict=True) if isinstance(dim, str)}
    return found


def _blank(argument: Argument, extents: Mapping[str, int]) -> Array:
    """A buffer to write, of a content that shows where nothing was written."""
    shape = [extents[dim] if isinstance(dim, str) else dim for dim in argument.dims]
    dtype = numpy_dtype(argument.dtype)
    return np.full(shape, 85 if dtype.kind in "iu" else np.nan).astype(dtype)
