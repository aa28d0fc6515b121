"""Calls of CUDA kernels in Relax: memory that the caller allocates, written by a function of a kernel's library."""

import hashlib
from collections.abc import Sequence
from typing import Any, Final

from regraft.backends.tvm._compat import module
from regraft.backends.tvm._cuda import CudaCode
from regraft.backends.tvm.kernels._kernel import Argument

relax: Final[Any] = module("tvm.relax")
tirx: Final[Any] = module("tvm.tirx")


def symbol_of(key: str, code: CudaCode) -> str:
    """Return the name by which a program calls kernels: another one for others, in any program."""
    content = "\0".join([key, *(artefact.path.parent.name for artefact in code.artefacts)])
    return f"regraft_cuda_{hashlib.sha256(content.encode()).hexdigest()[:20]}"


def called_on_gpu(builder: Any, symbol: str, code: CudaCode, operands: Sequence[Any], shape: Sequence[Any]) -> Any:
    """Return the result of kernels.

    Args:
        builder: of the program.
        symbol: name of the function.
        code: the kernels.
        operands: activations, then what is packed.
        shape: of the result.
    """
    given = dict(zip(code.operands, operands, strict=True))
    extents: dict[str, Any] = {}
    seen: list[Any] = []
    for argument in code.inputs:
        dims = _dims(argument, given[argument.name])
        for name, extent in zip(argument.dims, dims, strict=True):
            if isinstance(name, str):
                extents.setdefault(name, extent)
        seen.append(_as(builder, given[argument.name], dims))
    written = [_type(argument, extents) for argument in code.written]
    found = builder.emit(relax.call_dps_packed(symbol, seen, out_sinfo=written))
    y = builder.emit(relax.TupleGetItem(found, 0)) if len(written) > 1 else found
    return builder.emit(relax.op.reshape(y, list(shape)))


def _dims(argument: Argument, x: Any) -> list[Any]:
    """The extents by which a kernel sees an operand: leading ones in one, or the last one in heads."""
    shape = list(x.struct_info.shape)
    dims = argument.dims
    fixed = [tirx.IntImm("int64", dim) for dim in dims if isinstance(dim, int)]
    if dims[0] == "rows":
        return [_product(shape[:-1]), *fixed]
    return shape if len(shape) == len(dims) else [*shape[: len(dims) - len(fixed)], *fixed]


def _as(builder: Any, x: Any, dims: Sequence[Any]) -> Any:
    return x if len(x.struct_info.shape) == len(dims) else builder.emit(relax.op.reshape(x, list(dims)))


def _type(argument: Argument, extents: dict[str, Any]) -> Any:
    dims = [extents[dim] if isinstance(dim, str) else tirx.IntImm("int64", dim) for dim in argument.dims]
    return relax.TensorStructInfo(dims, argument.dtype)


def _product(extents: Sequence[Any]) -> Any:
    total = tirx.IntImm("int64", 1)
    for extent in extents:
        total = total * extent
    return total
