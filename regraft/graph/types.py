"""Types of values: an element type by name and a shape whose dims are numbers or symbolic expressions."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import torch

Dim = int | str
"""A known extent, or the name (or expression, such as `batch*seq`) of one that is known when the graph runs."""

_DTYPES: Final[Mapping[str, torch.dtype]] = {
    "float64": torch.float64,
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "int64": torch.int64,
    "int32": torch.int32,
    "int16": torch.int16,
    "int8": torch.int8,
    "uint8": torch.uint8,
    "bool": torch.bool,
    "complex64": torch.complex64,
    "complex128": torch.complex128,
}
_NAMES: Final[Mapping[torch.dtype, str]] = {dtype: name for name, dtype in _DTYPES.items()}


@dataclass(frozen=True, slots=True)
class TensorType:
    """What is known of a value before the graph runs.

    Attributes:
        dtype: name of the element type ("float32", "int64", ...); None when unknown.
        shape: one entry a dim; None when even the rank is unknown.
    """

    dtype: str | None = None
    shape: tuple[Dim, ...] | None = None

    def __str__(self) -> str:
        dims = "?" if self.shape is None else ", ".join(str(dim) for dim in self.shape)
        return f"{self.dtype or '?'}[{dims}]"

    @property
    def rank(self) -> int | None:
        """Number of dims, or None when unknown."""
        return None if self.shape is None else len(self.shape)

    @property
    def is_floating(self) -> bool:
        """Whether the elements are floating-point numbers (False when unknown)."""
        return self.dtype is not None and ("float" in self.dtype)


def torch_dtype(name: str) -> torch.dtype | None:
    """Return the torch dtype of that name, or None when torch has none that Regraft handles."""
    return _DTYPES.get(name)


def dtype_name(dtype: torch.dtype) -> str:
    """Return the name of a torch dtype as `TensorType` spells it ("float32")."""
    return _NAMES.get(dtype, str(dtype).removeprefix("torch."))


def dtype_bits(name: str | None) -> int:
    """Return the size of an element in bits, as its name says it; an unknown type counts as 32."""
    if name == "bool":
        return 8
    size = re.search(r"\d+", name or "")  # "uint4", "bfloat16", "float8e4m3fn"
    return int(size.group()) if size else 32


def type_of(tensor: torch.Tensor) -> TensorType:
    """Return the type of a concrete tensor."""
    return TensorType(dtype_name(tensor.dtype), tuple(int(extent) for extent in tensor.shape))
