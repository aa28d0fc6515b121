"""A whole graph for a GPU as one file: a zip archive of shared libraries; needs neither torch nor a compiler.

    regraft.json     what there is: the architecture, and by symbol the kernels that a program calls
    model.so         the program, its host code and TVM's own device code as source
    device/*.cubin   that source, compiled; named by its hash
    kernels/*.so     our kernels

TVM compiles the source when it is loaded; here it is given what was compiled before.
"""

import ctypes
import hashlib
import json
import tempfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any, Final

from regraft.backends.tvm._compat import load_runtime, module
from regraft.errors import BackendError, ModelFileError

FORMAT: Final = 1
_RECORD, _PROGRAM = "regraft.json", "model.so"
_DRIVER: Final = "libcuda.so.1"
_COMPILE: Final = "tvm_callback_cuda_compile"

_COMPILED: Final[dict[str, bytes]] = {}
"""Device code by the hash of its source."""


@dataclass(frozen=True)
class Variant:
    """One of the kernels that a symbol names.

    Attributes:
        file: name in the archive.
        entry: name of its function.
        places: which of the arguments of the call it takes, in order.
        most_rows: that it is for; None for any number.
    """

    file: str
    entry: str
    places: tuple[int, ...]
    most_rows: int | None


@dataclass(frozen=True)
class Contents:
    """What an archive has.

    Attributes:
        arch: that all its device code is for.
        program: the library that TVM exports.
        files: other libraries, by name in the archive.
        device: device code by the hash of its source.
        symbols: by symbol the axis of the first argument whose extent chooses, and the variants to choose from.
    """

    arch: str
    program: bytes
    files: Mapping[str, bytes]
    device: Mapping[str, bytes]
    symbols: Mapping[str, tuple[int, tuple[Variant, ...]]]

    def packed(self) -> bytes:
        """Return the archive; the same contents give the same bytes."""
        symbols = {
            name: {"axis": axis, "variants": [asdict(one) for one in variants]}
            for name, (axis, variants) in self.symbols.items()
        }
        record = {"format": FORMAT, "arch": self.arch, "symbols": symbols}
        parts = {_RECORD: json.dumps(record, indent=1).encode(), _PROGRAM: self.program, **self.files}
        parts |= {f"device/{name}.cubin": code for name, code in self.device.items()}
        target = BytesIO()
        with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in parts.items():
                archive.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)
        return target.getvalue()


def hash_of(source: str) -> str:
    """Return the name of device code: the hash of its source."""
    return hashlib.sha256(source.encode()).hexdigest()


def is_archive(path: Path) -> bool:
    """Return whether a file is an archive and not a library."""
    return zipfile.is_zipfile(path)


def read_contents(path: Path) -> Contents:
    """Return what an archive has; raises ModelFileError when Regraft did not write it."""
    try:
        with zipfile.ZipFile(path) as archive:
            record = json.loads(archive.read(_RECORD))
            if record["format"] != FORMAT:
                text = f"{path}: has format {record['format']}; this version reads {FORMAT}"
                raise ModelFileError(text)
            names = [name for name in archive.namelist() if name not in (_RECORD, _PROGRAM)]
            content = {name: archive.read(name) for name in names}
            program = archive.read(_PROGRAM)
        symbols = {name: (int(one["axis"]), _variants(one["variants"])) for name, one in record["symbols"].items()}
    except (KeyError, TypeError, ValueError, zipfile.BadZipFile) as error:
        raise ModelFileError(f"{path}: is no archive that Regraft saved") from error
    device = {Path(name).stem: code for name, code in content.items() if name.startswith("device/")}
    files = {name: code for name, code in content.items() if name.startswith("kernels/")}
    return Contents(str(record["arch"]), program, files, device, symbols)


def _variants(given: Sequence[Mapping[str, Any]]) -> tuple[Variant, ...]:
    return tuple(Variant(one["file"], one["entry"], tuple(one["places"]), one["most_rows"]) for one in given)


def check_driver(name: str, arch: str) -> None:
    """Raise BackendError where there is no driver of a GPU."""
    try:
        ctypes.CDLL(_DRIVER)
    except OSError:
        text = f"{name}: is compiled for GPUs ({arch}); running it needs an NVIDIA driver ({_DRIVER}); there is none"
        raise BackendError(text) from None


def loaded_module(contents: Contents, name: str) -> Any:
    """Return the program as a module of TVM, with all that it calls; raises BackendError without a driver."""
    check_driver(name, contents.arch)
    load_runtime("tvm_runtime_extra")
    load_runtime("tvm_runtime_cuda")
    _COMPILED.update(contents.device)
    _give_compiled()
    # Libraries stay open as long as the process lives; on Linux their files need not.
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        functions = {file: _library(place / Path(file).name, code) for file, code in contents.files.items()}
        for symbol, (axis, variants) in contents.symbols.items():
            found = [(one, functions[one.file][one.entry]) for one in variants]
            module("tvm_ffi").register_global_func(symbol, dispatch(axis, found), override=True)
        (place / _PROGRAM).write_bytes(contents.program)
        return module("tvm.runtime").load_module(str(place / _PROGRAM))


def dispatch(axis: int, variants: Sequence[tuple[Variant, Callable[..., Any]]]) -> Callable[..., None]:
    """Return what chooses a kernel by the number of rows in the first argument, and calls it."""

    def call(*arguments: Any) -> None:
        rows = int(arguments[0].shape[axis])
        for variant, function in variants:
            if variant.most_rows is None or rows <= variant.most_rows:
                function(*(arguments[place] for place in variant.places))
                return
        raise AssertionError("the last variant takes any number of rows")

    return call


def _library(path: Path, content: bytes) -> Any:
    path.write_bytes(content)
    return module("tvm_ffi").load_module(str(path))


@lru_cache(maxsize=1)
def _give_compiled() -> None:
    """Let TVM ask for device code here; other source than that of an archive is compiled as before."""
    ffi = module("tvm_ffi")
    before = ffi.get_global_func(_COMPILE, allow_missing=True)

    def compiled(source: str) -> Any:
        found = _COMPILED.get(hash_of(source))
        if found is not None:
            return found
        if before is None:
            raise RuntimeError("the device code of this source is not in the archive")
        return before(source)

    ffi.register_global_func(_COMPILE, compiled, override=True)
