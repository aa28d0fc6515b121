"""Compiled kernels as they are carried to a machine with a GPU: a folder of libraries and `manifest.json`.

Needs torch alone.
"""

import ctypes
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

MANIFEST = "manifest.json"


class KernelError(RuntimeError):
    """A kernel refused its arguments or did not start; carries what it said."""


@dataclass(frozen=True)
class Argument:
    """A tensor that a kernel takes; a text among its dims is the name of an extent that is known at a call."""

    name: str
    dims: tuple[int | str, ...]
    dtype: torch.dtype
    role: str
    present: bool

    def shape(self, extents: Mapping[str, int]) -> tuple[int, ...]:
        """Return its extents in one call."""
        return tuple(extents[dim] if isinstance(dim, str) else dim for dim in self.dims)


class Library:
    """One compiled kernel, loaded when it is first called.

    Attributes:
        op: what it computes.
        dtype: of its problem ("float16", ..., "tf32").
        sizes, options: the rest of its problem.
        rows: for how many its tiles were chosen.
        tiling: variant and tiles, as one text.
        arguments: what it takes, in order.
    """

    def __init__(self, entry: Mapping[str, Any], folder: Path) -> None:
        self.op: str = entry["op"]
        self.dtype: str = entry["dtype"]
        self.sizes: Mapping[str, int] = entry["sizes"]
        self.options: Mapping[str, int | float | str] = entry["options"]
        self.rows: int = entry["rows"]
        self.tiling: str = entry["tiling"]
        self.arguments = tuple(
            Argument(item["name"], tuple(item["dims"]), getattr(torch, item["dtype"]), item["role"], item["present"])
            for item in entry["arguments"]
        )
        self._extents: list[str] = entry["extents"]
        self._path, self._names = folder / entry["library"], (entry["c_entry"], entry["c_error"])

    @cached_property
    def _functions(self) -> tuple[Any, Any]:
        """What launches, and what says the last error."""
        library = ctypes.CDLL(str(self._path))
        launch, error = (getattr(library, name) for name in self._names)
        pointers, numbers = ctypes.POINTER(ctypes.c_void_p), ctypes.POINTER(ctypes.c_int64)
        launch.argtypes = [pointers, ctypes.c_int, numbers, ctypes.c_int, ctypes.c_void_p]
        error.restype = ctypes.c_char_p
        return launch, error

    @property
    def title(self) -> str:
        """What it is, in a few words."""
        sizes = " ".join(f"{name}={extent}" for name, extent in self.sizes.items())
        options = " ".join(f"{name}={value}" for name, value in self.options.items() if value)
        return f"{self.op} {self.dtype} {sizes} {options}".strip()

    def outputs(self, extents: Mapping[str, int], device: torch.device) -> dict[str, Tensor]:
        """Return memory for what it writes; filled with NaN, or the largest integer, so that what is left out shows."""
        return {item.name: poisoned(item, extents, device) for item in self.arguments if item.role != "in"}

    def __call__(self, tensors: Mapping[str, Tensor], extents: Mapping[str, int]) -> None:
        """Launch on the current stream.

        Args:
            tensors: every present argument by name.
            extents: those that are known at the call, by name.

        Raises:
            KernelError: with what the kernel says.
        """
        addresses = [tensors[item.name].data_ptr() if item.present else None for item in self.arguments]
        given = (ctypes.c_void_p * len(addresses))(*addresses)
        numbers = (ctypes.c_int64 * max(1, len(self._extents)))(*(extents[name] for name in self._extents))
        stream = torch.cuda.current_stream().cuda_stream
        launch, error = self._functions
        if launch(given, len(addresses), numbers, len(self._extents), stream):
            raise KernelError(f"{self.title}: {error().decode()}")


def poisoned(argument: Argument, extents: Mapping[str, int], device: torch.device) -> Tensor:
    """Return memory whose every element is wrong."""
    shape, dtype = argument.shape(extents), argument.dtype
    fill = float("nan") if dtype.is_floating_point else (True if dtype == torch.bool else torch.iinfo(dtype).max)
    return torch.full(shape, fill, dtype=dtype, device=device)


def entries(folder: Path, arch: str | None = None) -> list[Mapping[str, Any]]:
    """Return what a bundle holds, for one architecture or for all.

    Raises:
        FileNotFoundError: when the folder is no bundle.
    """
    content = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    return [entry for entry in content["kernels"] if arch is None or entry["arch"] == arch]
