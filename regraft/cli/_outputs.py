"""Checks of output paths, made before any long work; the writing itself is atomic and made elsewhere."""

import os
from collections.abc import Sequence
from pathlib import Path

from regraft.errors import OptionError, OutputError


def check_suffix(option: str, path: Path, suffixes: Sequence[str]) -> None:
    """Raise OptionError unless the path ends in one of the suffixes."""
    if path.suffix not in suffixes:
        raise OptionError(f"{option} must end in {' or '.join(suffixes)}; got {str(path)!r}")


def check_outputs(outputs: Sequence[Path], inputs: Sequence[Path]) -> None:
    """Raise unless all outputs can be written without touching an input or each other.

    Raises:
        OutputError: for a missing or read-only folder, a folder in the file's place, or an input.
        OptionError: for two outputs of one name.
    """
    for place, path in enumerate(outputs):
        _check_writable(path)
        for source in inputs:
            if _same_file(path, source):
                hint = "give another name; an input file is never changed in place"
                raise OutputError(f"{path} is an input of this command", hint=hint)
        if any(_same_file(path, other) for other in outputs[:place]):
            raise OptionError(f"{path} is named for two outputs; each needs a file of its own")


def model_bytes(path: Path) -> int:
    """Return the size of an ONNX file, with the data file beside it if there is one."""
    data = path.with_name(path.name + ".data")
    return path.stat().st_size + (data.stat().st_size if data.is_file() else 0)


def _check_writable(path: Path) -> None:
    folder = path.parent
    if path.is_dir():
        raise OutputError(f"{path} is a folder; the name of a file is needed")
    if not folder.is_dir():
        raise OutputError(f"the folder of {path} does not exist", hint=f"mkdir -p '{folder}'")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(f"the folder of {path} cannot be written to")


def _same_file(first: Path, second: Path) -> bool:
    if first.exists() and second.exists():
        return first.samefile(second)
    return first.resolve() == second.resolve()
