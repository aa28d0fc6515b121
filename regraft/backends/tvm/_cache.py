"""Compiled kernels on disk, by the hash of all that made them; private to the user, written whole or not at all.

A shared library is code: folders can be entered by their owner alone, files read by their owner alone, and a library is
used only while its content has the hash that was written beside it. What is damaged is built again.
"""

import hashlib
import json
import os
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from regraft._files import write_atomic
from regraft.backends.tvm._nvcc import Resources
from regraft.errors import OutputError

_FOLDER_MODE: Final = 0o700
_FILE_MODE: Final = 0o600
_SOURCE, _LIBRARY, _RECORD = "kernel.cu", "kernel.so", "kernel.json"


@dataclass(frozen=True)
class Built:
    """What a build makes: source, library, and what its kernels take."""

    source: str
    library: bytes
    resources: Resources


@dataclass(frozen=True)
class Entry:
    """A kernel in the cache: paths of its library and source, and what its kernels take."""

    library: Path
    source: Path
    resources: Resources


def cache_folder() -> Path:
    """Return where compiled kernels are kept: REGRAFT_CACHE, else `regraft` in XDG_CACHE_HOME or ~/.cache."""
    given = os.environ.get("REGRAFT_CACHE")
    if given:
        return Path(given) / "kernels"
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "regraft" / "kernels"


def key_of(content: Mapping[str, Any]) -> str:
    """Return the name under which something made from this content is kept."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def cached(key: str, description: Mapping[str, Any], make: Callable[[], Built]) -> Entry:
    """Return the entry of that name, made first when it is not there or damaged.

    Args:
        key: of `key_of`.
        description: what it is, for people; kept beside it.
        make: builds it.

    Raises:
        OutputError: when the folder cannot be written, or belongs to someone else.
    """
    folder = _private_folder(cache_folder()) / key
    found = _read(folder)
    if found is None:
        _write(_private_folder(folder), description, make())
        found = _read(folder)
    if found is None:
        raise OutputError(f"{folder}: what was written there is not what is read back")
    return found


def _private_folder(folder: Path) -> Path:
    try:
        folder.mkdir(mode=_FOLDER_MODE, parents=True, exist_ok=True)
        found = folder.stat()
        if hasattr(os, "getuid") and found.st_uid != os.getuid():
            raise OutputError(f"{folder}: belongs to another user", hint="set REGRAFT_CACHE to a folder of your own")
        if stat.S_IMODE(found.st_mode) != _FOLDER_MODE:
            folder.chmod(_FOLDER_MODE)
    except OSError as error:
        if isinstance(error, OutputError):
            raise
        raise OutputError(f"{folder}: cannot be made: {error.strerror or error}") from error
    return folder


def _read(folder: Path) -> Entry | None:
    """The entry, or None when it is not there, not whole or not what was written."""
    try:
        record = json.loads((folder / _RECORD).read_text(encoding="utf-8"))
        for name in (_LIBRARY, _SOURCE):
            if hashlib.sha256((folder / name).read_bytes()).hexdigest() != record["sha256"][name]:
                return None
        resources = Resources.from_json(record["resources"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return Entry(folder / _LIBRARY, folder / _SOURCE, resources)


def _write(folder: Path, description: Mapping[str, Any], built: Built) -> None:
    """The record last: without it there is no entry."""
    contents = {_SOURCE: built.source.encode(), _LIBRARY: built.library}
    record = {
        **description,
        "resources": built.resources.as_json(),
        "sha256": {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()},
    }
    contents[_RECORD] = json.dumps(record, indent=1).encode()
    for name, content in contents.items():
        write_atomic(folder / name, content)
        (folder / name).chmod(_FILE_MODE)
