"""Kernels of ours in a whole graph: their calls in Relax, and the library that they are compiled to."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from regraft.backends.tvm._compat import module
from regraft.backends.tvm.kernels.cpu._host import Host
from regraft.backends.tvm.kernels.cpu._kernel import WITHOUT, program_of_key

relax: Final[Any] = module("tvm.relax")
tirx: Final[Any] = module("tvm.tirx")


def called(
    builder: Any, symbol: str, key: str, activations: Sequence[Any], packed: Sequence[Any], shape: Sequence[Any]
) -> Any:
    """Return the result of a kernel: memory that the caller allocates, written by a function of the library.

    Args:
        builder: of the program.
        symbol: name of the function.
        key: of the kernel.
        activations: what varies.
        packed: weights.
        shape: of the result.
    """
    dtype = activations[0].struct_info.dtype
    if program_of_key(key).in_rows:
        given = [_rows(builder, x) for x in activations]
        seen = [_count(shape[:-1]), shape[-1]]
    else:
        given = [*activations[:3], *(item for mask in activations[3:] for item in _offsets(builder, mask))]
        seen = [*list(activations[0].struct_info.shape)[:-1], shape[-1]]
    result = relax.TensorStructInfo(seen, dtype)
    return builder.emit(relax.call_dps_packed(symbol, [*given, *packed], out_sinfo=result))


def library_of(kernels: Mapping[str, str], host: Host) -> Any:
    """Return kernels by key, named by their symbols, compiled together."""
    tvm = module("tvm")
    functions = {
        symbol: program_of_key(key).program().with_attr("global_symbol", symbol) for key, symbol in kernels.items()
    }
    with tvm.transform.PassContext(disabled_pass=list(WITHOUT)):
        return tvm.tirx.build(tvm.IRModule(functions), target=host.target)


def _rows(builder: Any, x: Any) -> Any:
    shape = list(x.struct_info.shape)
    if len(shape) == 2:
        return x
    return builder.emit(relax.op.reshape(x, [_count(shape[:-1]), shape[-1]]))


def _count(extents: Sequence[Any]) -> Any:
    total = tirx.IntImm("int64", 1)
    for extent in extents:
        total = total * extent
    return total


def _offsets(builder: Any, mask: Any) -> list[Any]:
    """The numbers of a mask, flat, and the strides by which it is broadcast."""
    shape = list(mask.struct_info.shape)
    as_bytes = builder.emit(relax.op.astype(mask, "uint8")) if mask.struct_info.dtype == "bool" else mask
    flat = builder.emit(relax.op.reshape(as_bytes, [_count(shape)]))
    strides = [
        tirx.IntImm("int64", 0) if isinstance(extent, tirx.IntImm) and int(extent) == 1 else _count(shape[at + 1 :])
        for at, extent in enumerate(shape)
    ]
    return [flat, *(relax.PrimValue(stride) for stride in strides)]
