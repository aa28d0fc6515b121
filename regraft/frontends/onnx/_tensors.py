"""Tensors and types of ONNX as those of torch and Regraft, and back; contents are shared where they can be."""

from collections.abc import Mapping
from typing import Final

import numpy as np
import onnx_ir as ir
import torch
from onnx_ir.tensor_adapters import TorchTensor, from_torch_dtype

from regraft.graph.types import Dim, TensorType

_NAMES: Final[Mapping[ir.DataType, str]] = {
    ir.DataType.FLOAT: "float32",
    ir.DataType.DOUBLE: "float64",
}

_TORCH: Final[Mapping[ir.DataType, torch.dtype]] = {
    ir.DataType.FLOAT: torch.float32,
    ir.DataType.DOUBLE: torch.float64,
    ir.DataType.FLOAT16: torch.float16,
    ir.DataType.BFLOAT16: torch.bfloat16,
    ir.DataType.INT64: torch.int64,
    ir.DataType.INT32: torch.int32,
    ir.DataType.INT16: torch.int16,
    ir.DataType.INT8: torch.int8,
    ir.DataType.UINT8: torch.uint8,
    ir.DataType.BOOL: torch.bool,
    ir.DataType.COMPLEX64: torch.complex64,
    ir.DataType.COMPLEX128: torch.complex128,
}


def dtype_label(dtype: ir.DataType | None) -> str | None:
    """Return the element type's name as `TensorType` spells it; None when unknown."""
    if dtype is None or dtype == ir.DataType.UNDEFINED:
        return None
    return _NAMES.get(dtype, dtype.name.lower())


def onnx_dtype(name: str) -> ir.DataType:
    """Return the ONNX element type of that name ("float32")."""
    by_name = {label: dtype for dtype, label in _NAMES.items()}
    return by_name[name] if name in by_name else ir.DataType[name.upper()]


def value_type(value: ir.Value) -> TensorType:
    """Return what the model says of a value; a dim without a name gets one of its own ("<value>.dim0")."""
    if value.type is not None and not isinstance(value.type, ir.TensorType):
        return TensorType()  # sequences, optionals and sparse tensors: no tensor to speak of
    tensor = value.const_value if value.is_initializer() or value.shape is None else None
    shape, dtype = value.shape, value.dtype
    if tensor is not None:  # a stored tensor knows better than its annotation
        return TensorType(dtype_label(tensor.dtype), tuple(int(extent) for extent in tensor.shape.numpy()))
    if shape is None:
        return TensorType(dtype_label(dtype))
    dims = tuple(_dim(extent, value.name or "", axis) for axis, extent in enumerate(shape))
    return TensorType(dtype_label(dtype), dims)


def _dim(extent: int | ir.SymbolicDim, name: str, axis: int) -> Dim:
    if isinstance(extent, ir.SymbolicDim):
        return extent.value or f"{name}.dim{axis}"
    return int(extent)


def tensor_type(tensor: ir.TensorProtocol) -> TensorType:
    """Return the type of a stored tensor."""
    return TensorType(dtype_label(tensor.dtype), tuple(int(extent) for extent in tensor.shape.numpy()))


def to_torch(tensor: ir.TensorProtocol) -> torch.Tensor | None:
    """Return a stored tensor's content: a view of the mapped file where there is one, read-only by convention.

    Returns:
        None for element types that Regraft does not compute with (strings, 4-bit and 8-bit floats, ...).
    """
    dtype = _TORCH.get(tensor.dtype)
    if dtype is None:
        return None
    array = tensor.numpy()
    if tensor.dtype == ir.DataType.BFLOAT16:  # numpy has none of its own; torch reads the bits
        return _from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return _from_numpy(array)


def to_numpy(tensor: torch.Tensor) -> np.ndarray:
    """Return a tensor as an array of the same memory; of types that numpy lacks (bfloat16) as onnx gives them."""
    return TorchTensor(tensor.detach().cpu().contiguous()).numpy()


def raw_bytes(tensor: ir.TensorProtocol) -> bytes:
    """Return the content as a file holds it, whatever the element type; texts each with their length before them."""
    if isinstance(tensor, ir.StringTensor):
        texts = [bytes(text) for text in tensor.string_data()]
        return b"".join(len(text).to_bytes(8, "little") + text for text in texts)
    return tensor.tobytes()


class _Writable:
    """A read-only array presented as a writable one, so that torch takes its memory; keeps the array alive."""

    def __init__(self, array: np.ndarray) -> None:
        self._array = array
        self.__array_interface__ = {**array.__array_interface__, "data": (array.ctypes.data, False)}


def _from_numpy(array: np.ndarray) -> torch.Tensor:
    native = array.astype(array.dtype.newbyteorder("="), copy=False)
    if native.size == 0 or native.flags.writeable:
        return torch.from_numpy(native.copy() if native.size == 0 else native)
    return torch.from_numpy(np.asarray(_Writable(native)))


def from_torch(tensor: torch.Tensor, name: str) -> ir.TensorProtocol:
    """Return a torch tensor as a named ONNX tensor; shares its memory when it is contiguous and on the CPU."""
    return TorchTensor(tensor.detach().cpu().contiguous(), name=name)


def onnx_dtype_of(tensor: torch.Tensor) -> ir.DataType:
    """Return the ONNX element type of a torch tensor."""
    return from_torch_dtype(tensor.dtype)
