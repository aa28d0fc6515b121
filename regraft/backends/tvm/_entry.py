"""The ways into a compiled kernel, as C++ behind TileLang's source: a plain C function, and one of tvm_ffi.

    int regraft_launch(void* const* tensors, int count, const int64_t* extents, int extent_count, void* stream)
    const char* regraft_error(void)

takes the addresses of the kernel's arguments in order (null for an absent one), its dynamic extents in the order in
which they first appear, and a CUDA stream of the current device; it returns 0, or else what `regraft_error` says.

The function of tvm_ffi has the name of the op. It takes the present arguments as tensors (torch's and TVM's, without a
copy), checks each for dtype, extents, strides, alignment and device, and runs on the current stream of their device.
Both are in one library, which needs tvm_ffi only when that function is called.
"""

import re
from collections.abc import Sequence
from typing import Final

from regraft.backends.tvm._entry_text import C_TEXT, FFI_TEXT, PROLOGUE
from regraft.backends.tvm.kernels._kernel import Argument
from regraft.errors import BackendError

C_ENTRY: Final = "regraft_launch"
C_ERROR: Final = "regraft_error"

_LAUNCH: Final = "cudaLaunchKernelEx(&config"
_WITH_ATTRIBUTE: Final = "config.numAttrs = 1;"
_ERROR_BUFFER: Final = "static char error_buf"

_TYPES: Final = {
    "float16": "2, 16, 1",
    "bfloat16": "4, 16, 1",
    "float32": "2, 32, 1",
    "int64": "0, 64, 1",
    "int32": "0, 32, 1",
    "int8": "0, 8, 1",
    "uint8": "1, 8, 1",
    "bool": "6, 8, 1",
}
"""Code, bits and lanes in DLPack."""


def with_entries(source: str, op: str, arguments: Sequence[Argument]) -> str:
    """Return TileLang's source, its launches made safe, with the two entries behind it.

    Raises:
        BackendError: when the source is not what the entries are written for.
    """
    types, extents = _signature(source)
    if len(types) != len(arguments):
        raise BackendError(
            f"tvm backend: the kernel of {op} takes {len(types)} tensors; {len(arguments)} are described"
        )
    order = dynamic_names(arguments)
    if set(extents) - set(order):
        raise BackendError(f"tvm backend: the kernel of {op} takes the extents {extents}; {order} are described")
    values = ", ".join(f"(int)extents[{order.index(name)}]" for name in extents)
    tensors = ", ".join(f"({kind})tensors[{place}]" for place, kind in enumerate(types))
    outputs = [argument for argument in arguments if argument.role == "out"]
    empty = [f"extents[{order.index(dim)}] == 0" for item in outputs for dim in item.dims if isinstance(dim, str)]
    return (
        PROLOGUE
        + _safe(source)
        + C_TEXT.format(
            count=len(arguments),
            extent_count=len(order),
            required=", ".join(str(int(argument.present)) for argument in arguments),
            alignment=", ".join(str(argument.alignment) for argument in arguments),
            names=_quoted([argument.name for argument in arguments]),
            empty=" || ".join(empty) or "false",
            call=", ".join(filter(None, (tensors, values))),
        )
        + _ffi_text(op, arguments, order)
    )


def dynamic_names(arguments: Sequence[Argument]) -> list[str]:
    """Return the names of the extents that are known when the kernel runs, in the order in which they appear."""
    return list(dict.fromkeys(dim for argument in arguments for dim in argument.dims if isinstance(dim, str)))


def _safe(source: str) -> str:
    """Launches without the attribute that lets a kernel start before the one whose results it reads has finished."""
    launches = source.count(_LAUNCH)
    if launches == 0 or source.count(_WITH_ATTRIBUTE) != launches or "<<<" in source or "numAttrs = 2" in source:
        raise BackendError("tvm backend: TileLang launches this kernel in a way that is not known to be safe")
    if source.count(_ERROR_BUFFER) != 1:
        raise BackendError("tvm backend: TileLang keeps the text of errors in a way that is not known")
    source = source.replace(_WITH_ATTRIBUTE, "config.numAttrs = 0;")
    return source.replace(_ERROR_BUFFER, "static thread_local char error_buf")


def _signature(source: str) -> tuple[list[str], list[str]]:
    """Types of the tensors and names of the extents that the generated `call` takes, in order."""
    found = re.search(r"TL_EXPORT int call\((.*), cudaStream_t stream=cudaStreamDefault\)", source)
    if found is None:
        raise BackendError("tvm backend: TileLang's source has no function `call` that the entry knows")
    parameters = [part.strip() for part in found[1].split(",")]
    tensors = [part.split("*")[0].strip() + "*" for part in parameters if "*" in part]
    return tensors, [part.removeprefix("int ").strip() for part in parameters if "*" not in part]


def _ffi_text(op: str, arguments: Sequence[Argument], order: Sequence[str]) -> str:
    present = [argument for argument in arguments if argument.present]
    checks = "\n".join(
        f'  if (regraft_check("{item.name}", tensor[{place}], DLDataType{{{_TYPES[item.dtype]}}}, "{item.dtype}", '
        f"{{{', '.join(_dim(dim, order) for dim in item.dims)}}}, extents, {item.alignment})) return -1;"
        for place, item in enumerate(present)
    )
    places = {item.name: place for place, item in enumerate(present)}
    addresses = (f"regraft_address(*tensor[{places[item.name]}])" if item.present else "nullptr" for item in arguments)
    return FFI_TEXT.format(
        op=op,
        names=_quoted(order) or '""',
        present_names=_quoted([item.name for item in present]),
        present_list=", ".join(item.name for item in present),
        present_count=len(present),
        extents=", ".join("-1" for _ in order) or "-1",
        checks=checks,
        addresses=", ".join(addresses),
        count=len(arguments),
        extent_count=len(order),
    )


def _quoted(names: Sequence[str]) -> str:
    return ", ".join(f'"{name}"' for name in names)


def _dim(dim: int | str, order: Sequence[str]) -> str:
    """An extent, or for a dynamic one -1 - its place."""
    return str(dim) if isinstance(dim, int) else str(-1 - list(order).index(dim))
