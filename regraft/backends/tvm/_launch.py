"""Runs a built CUDA kernel on torch tensors: on the current stream of their device, without waiting for it."""

import ctypes
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from regraft.backends.tvm._build import Artefact
from regraft.backends.tvm._entry import C_ERROR
from regraft.errors import BackendError


def launch(artefact: Artefact, tensors: Sequence[Tensor | None], extents: Sequence[int]) -> None:
    """Start a kernel.

    Args:
        artefact: the kernel.
        tensors: its arguments in order, dense and aligned, on one device; None for an absent one.
        extents: its dynamic extents in order.

    Raises:
        BackendError: when CUDA refuses it.
    """
    device = next(tensor.device for tensor in tensors if tensor is not None)
    if device.type != "cuda":
        _start(artefact, tensors, extents, None)
        return
    with torch.cuda.device(device):
        _start(artefact, tensors, extents, torch.cuda.current_stream(device).cuda_stream)


def _start(artefact: Artefact, tensors: Sequence[Tensor | None], extents: Sequence[int], stream: int | None) -> None:
    library = _library(artefact.path)
    addresses = (ctypes.c_void_p * len(tensors))(*(None if x is None else x.data_ptr() for x in tensors))
    numbers = (ctypes.c_int64 * max(1, len(extents)))(*extents)
    status = getattr(library, artefact.c_entry)(
        addresses, ctypes.c_int(len(tensors)), numbers, ctypes.c_int(len(extents)), ctypes.c_void_p(stream)
    )
    if status:
        text = getattr(library, C_ERROR)().decode(errors="replace").strip()
        raise BackendError(f"cuda kernel {artefact.op}: {text}")


@cache
def _library(path: Path) -> ctypes.CDLL:
    library = ctypes.CDLL(str(path))
    getattr(library, C_ERROR).restype = ctypes.c_char_p
    return library
