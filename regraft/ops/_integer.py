"""Exact products of 8-bit integers in torch, by the fastest way that a device has.

torch has one integer product that is fast, `torch._int_mm`, of int8 by int8. It takes two matrices; on CUDA more than
16 rows and extents that are multiples of 8; on a CPU it is exact where oneDNN finds VNNI instructions (older ones
saturate in 16 bits), and wrong for a single column (torch 2.13: the strides of such a matrix are ambiguous). Everywhere
else a product in double precision is exact, too, and far faster than torch's product of 32-bit integers.
"""

from typing import Final

import torch
from torch import Tensor

_CPU_HAS_INT8: Final = torch.backends.mkldnn.is_available() and bool(
    torch.cpu._is_vnni_supported()  # pyright: ignore[reportPrivateUsage] - there is no public name in every version
)
_OFFSET: Final = 128
"""Between uint8 codes and int8 ones."""


def linear_integer(codes: Tensor, weight: Tensor, zero_point: Tensor) -> Tensor:
    """Return (codes - zero_point) · weightᵀ, exactly.

    Args:
        codes: uint8 [..., in].
        weight: int8 [out, in], with in at most 66 311, so that no sum overflows.
        zero_point: uint8 of rank 0.

    Returns:
        int32 [..., out].
    """
    rows = codes.reshape(-1, codes.shape[-1])
    product = _by_int8(rows, weight, zero_point) if _has_int8(rows, weight) else _by_double(rows, weight, zero_point)
    return product.reshape(*codes.shape[:-1], weight.shape[0])


def matmul_integer(codes: Tensor, weight: Tensor, zero_point: Tensor) -> Tensor:
    """Return (codes - zero_point) · weight of every block, exactly.

    Args:
        codes: uint8 [blocks, rows, in].
        weight: int8 [blocks, in, out], with in at most 66 311, so that no sum overflows.
        zero_point: uint8 of rank 0.

    Returns:
        int32 [blocks, rows, out].
    """
    blocks = zip(codes.unbind(), weight.unbind(), strict=True)
    return torch.stack([linear_integer(rows, block.t(), zero_point) for rows, block in blocks])


def _has_int8(rows: Tensor, weight: Tensor) -> bool:
    out_features, in_features = weight.shape
    if rows.device.type == "cpu":
        return _CPU_HAS_INT8 and in_features > 1
    return rows.device.type == "cuda" and rows.shape[0] > 16 and in_features % 8 == 0 and out_features % 8 == 0


def _by_int8(rows: Tensor, weight: Tensor, zero_point: Tensor) -> Tensor:
    shifted = (rows ^ _OFFSET).view(torch.int8)  # codes - 128: flipping the top bit
    missing = (_OFFSET - zero_point.to(torch.int32)) * weight.sum(dim=1, dtype=torch.int32)
    return torch._int_mm(shifted, weight.t()) + missing  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]


def _by_double(rows: Tensor, weight: Tensor, zero_point: Tensor) -> Tensor:
    return ((rows.double() - zero_point.double()) @ weight.double().t()).to(torch.int32)
