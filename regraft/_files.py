"""Writing files so that a reader sees the old content or the new one, never half of it."""

import os
import stat
import uuid
from pathlib import Path

from regraft.errors import OutputError


def write_atomic(path: str | os.PathLike[str], data: bytes) -> None:
    """Write `data` to `path`: temporary file in the same folder, fsync, rename.

    A file that is there is replaced and keeps its permissions; a link is followed. When anything fails, what was there
    is unchanged and nothing is left behind.

    Raises:
        OutputError: when the folder is missing, or the path is a folder or cannot be written.
    """
    shown = Path(path)
    target = Path(os.path.realpath(shown))
    _check(shown, target)
    temporary = target.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        _write(temporary, data)
        if target.exists():
            temporary.chmod(stat.S_IMODE(target.stat().st_mode))
        temporary.replace(target)
        _sync_folder(target.parent)
    except OSError as error:
        raise OutputError(f"{shown}: cannot be written: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def _check(shown: Path, target: Path) -> None:
    if target.is_dir():
        raise OutputError(f"{shown}: is a directory; the name of a file is needed")
    if not target.parent.exists():
        raise OutputError(f"{shown}: the folder {target.parent} does not exist", hint="create the folder first")
    if not target.parent.is_dir():
        raise OutputError(f"{shown}: {target.parent} is not a folder")


def _write(path: Path, data: bytes) -> None:
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":  # elsewhere a folder cannot be opened
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
