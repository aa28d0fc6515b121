"""Inputs for a model from .npz files: named arrays, one batch a file."""

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from regraft.errors import InputError, ModelNotFoundError


def load_inputs(path: Path) -> dict[str, Tensor] | tuple[Tensor, ...]:
    """Return the arrays of an .npz file by name, or in order when they were saved without names (arr_0, arr_1, ...).

    Nothing in the file is executed: arrays of Python objects are refused.

    Raises:
        ModelNotFoundError: when there is no such file.
        InputError: when it holds something else than arrays of numbers.
    """
    if not path.is_file():
        raise ModelNotFoundError(f"inputs {path} do not exist, or are no file")
    tensors = {name: _tensor(path, name, array) for name, array in _arrays(path).items()}
    if not tensors:
        raise InputError(f"{path} holds no array; at least one is needed")
    unnamed = [f"arr_{place}" for place in range(len(tensors))]
    return tuple(tensors[name] for name in unnamed) if set(tensors) == set(unnamed) else tensors


def _arrays(path: Path) -> dict[str, Any]:
    if not zipfile.is_zipfile(path):
        raise InputError(f"{path} is not an .npz archive", hint="write one with numpy.savez(path, input_ids=...)")
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        lines = str(error).splitlines() or ["damaged"]
        raise InputError(f"{path} holds something else than plain arrays: {lines[0]}") from error


def _tensor(path: Path, name: str, array: Any) -> Tensor:
    if not isinstance(array, np.ndarray):
        raise InputError(f"{path}: {name!r} is no array")
    try:
        return torch.from_numpy(array)
    except TypeError:
        raise InputError(f"{path}: array {name!r} must hold numbers or booleans; got {array.dtype}") from None
