"""From a path to a parsed model file: everything that can be wrong with the file itself, in one line each."""

from pathlib import Path
from typing import Final

import onnx
from google.protobuf.message import DecodeError

from regraft.errors import ModelFileError, ModelNotFoundError, UnsafeModelError

LARGEST_PROTOBUF: Final = 2**31 - 1

_ZIP: Final = b"PK\x03\x04"
_PICKLE: Final = tuple(b"\x80" + bytes([protocol]) for protocol in range(2, 6))
_LFS: Final = b"version https://git-lfs"


def read_model(path: Path) -> onnx.ModelProto:
    """Return the parsed file; external data is not touched.

    Raises:
        ModelNotFoundError: when there is no such file.
        ModelFileError: when it is no ONNX model.
        UnsafeModelError: when it is a pickle.
    """
    _check_path(path)
    content = path.read_bytes()
    _check_kind(path, content)
    try:
        proto = onnx.ModelProto.FromString(content)
    except DecodeError as error:
        raise ModelFileError(f"{path.name}: truncated, or no ONNX model ({len(content)} bytes)") from error
    if not proto.HasField("graph"):
        raise ModelFileError(f"{path.name}: no graph in it; truncated, or no ONNX model ({len(content)} bytes)")
    return proto


def _check_path(path: Path) -> None:
    if path.is_dir():
        raise ModelFileError(f"{path}: a directory; the path of an .onnx file is needed")
    if not path.exists():
        raise ModelNotFoundError(f"{path}: no such file")
    if not path.is_file():
        raise ModelFileError(f"{path}: not a regular file; the path of an .onnx file is needed")
    size = path.stat().st_size
    if size > LARGEST_PROTOBUF:
        raise ModelFileError(
            f"{path.name}: {size / 1e9:.1f} GB in one protobuf, which ends at 2 GB",
            hint="save the model with its weights as external data",
        )


def _check_kind(path: Path, content: bytes) -> None:
    if not content:
        raise ModelFileError(f"{path.name}: the file is empty")
    if content.startswith(_ZIP):
        raise UnsafeModelError(
            f"{path.name}: a zip archive, as torch.save writes, not an ONNX model; pickles are not opened",
            hint="load it in your own code and pass the module",
        )
    if content.startswith(_PICKLE):
        raise UnsafeModelError(
            f"{path.name}: a pickle, not an ONNX model; pickles are not opened",
            hint="load it in your own code and pass the module",
        )
    if content.startswith(_LFS):
        raise ModelFileError(f"{path.name}: a Git LFS pointer, not the model itself", hint="run: git lfs pull")
    if _is_text(content[:512]):
        raise ModelFileError(f"{path.name}: a text file, not an ONNX model")


def _is_text(head: bytes) -> bool:
    try:
        text = head.decode("utf-8", errors="strict")
    except UnicodeDecodeError:
        return False
    return all(character.isprintable() or character.isspace() for character in text)
