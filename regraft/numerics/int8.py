"""Weights in 8 bits: one scale a row, symmetric, without a zero point; and which input columns are outliers.

    weight[o, i] ≈ scale[o] · codes[o, i]       codes in [-127, 127], |error| ≤ scale[o] / 2

Source: Dettmers et al. 2022, arXiv:2208.07339 (LLM.int8()); its codes and row maxima are those of bitsandbytes.
"""

import math
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from regraft.errors import DtypeError, ShapeError

LEVELS: Final = 127
"""Largest code."""

MOST_INPUTS: Final = 2**31 // (255 * LEVELS)
"""Widest layer whose sums of products, of 8-bit activations by these codes, stay within int32 (66 311)."""


@dataclass(frozen=True, slots=True, eq=False)
class Quantized:
    """A weight in 8 bits.

    Attributes:
        codes: int8 [out, in].
        scale: [out], in float32 (float64 for a weight in float64); above 0.
    """

    codes: Tensor
    scale: Tensor

    def dequantize(self) -> Tensor:
        """Return scale · codes, [out, in], in the scale's type."""
        return self.codes.to(self.scale.dtype) * self.scale[:, None]

    @property
    def bytes(self) -> int:
        """Size of codes and scales."""
        return self.codes.numel() + self.scale.numel() * self.scale.element_size()


def quantize_rows(weight: Tensor, without: Tensor | None = None) -> Quantized:
    """Return a weight in 8 bits, each row scaled by its largest magnitude.

    Args:
        weight: [out, in], any float type; not changed.
        without: int64 columns that are multiplied apart: their codes are 0, and they do not count for the scale.

    Returns:
        Codes within half a step of the weight. A row of zeros has the scale 1.

    Raises:
        ShapeError: when the weight is no matrix.
        DtypeError: when it is not finite.
    """
    if weight.dim() != 2:
        raise ShapeError(f"a weight to quantize must be [out, in]; got {list(weight.shape)}")
    if not bool(torch.isfinite(weight).all()):
        raise DtypeError("a weight to quantize must be finite; it has inf or nan")
    scale_dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
    exact = weight.to(torch.float64)
    if without is not None and len(without):
        exact = exact.index_fill(1, without.to(exact.device), 0.0)
    scale = (exact.abs().amax(dim=1) / LEVELS).to(scale_dtype)
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    codes = torch.round(exact / scale.double()[:, None]).clamp(-LEVELS, LEVELS)
    return Quantized(codes.to(torch.int8), scale)


def outlier_columns(peak: Tensor, *, threshold: float, relative: float, cap: float) -> Tensor:
    """Return the columns of an activation that 8 bits would not do justice to.

    A column is one when its largest magnitude reaches `threshold`, the scale of hidden states in transformers, or, for
    networks of another scale, `relative` times the median of all columns' magnitudes.

    Args:
        peak: largest magnitude of each column over the calibration inputs, [in].
        threshold: absolute limit; 0 or below turns the rule off.
        relative: limit as a multiple of the median; 0 or below turns the rule off.
        cap: largest share of the columns, in [0, 1]; of more outliers, the largest are taken. A share above 0 allows
            one column at least.

    Returns:
        int64 columns in ascending order.
    """
    reaches = torch.zeros_like(peak, dtype=torch.bool)
    if threshold > 0:
        reaches |= peak >= threshold
    if relative > 0 and len(peak) and float(peak.median()) > 0:
        reaches |= peak >= relative * peak.median()
    most = column_budget(len(peak), cap)
    columns = torch.nonzero(reaches).flatten()
    if len(columns) > most:
        order = torch.argsort(peak[columns], descending=True, stable=True)
        columns = columns[order[:most]]
    return columns.sort().values


def column_budget(features: int, share: float) -> int:
    """Return how many of `features` columns a share allows, rounded up."""
    return min(features, math.ceil(share * features))


def from_bitsandbytes(codes: Tensor, row_maxima: Tensor) -> Quantized:
    """Return a weight as bitsandbytes' Linear8bitLt stores it, without quantizing it anew.

    Args:
        codes: `CB` (in a state dict "weight"), int8 [out, in].
        row_maxima: `SCB`, the largest magnitude of each row, [out], any float type.

    Raises:
        ShapeError, DtypeError: when they are something else.
    """
    if codes.dim() != 2 or row_maxima.shape != (codes.shape[0],):
        raise ShapeError(
            f"bitsandbytes weights need CB [out, in] and SCB [out]; got {list(codes.shape)} and "
            f"{list(row_maxima.shape)}"
        )
    if codes.dtype != torch.int8 or not row_maxima.is_floating_point():
        raise DtypeError(f"bitsandbytes weights need CB int8 and SCB float; got {codes.dtype} and {row_maxima.dtype}")
    if not bool((torch.isfinite(row_maxima) & (row_maxima >= 0)).all()):
        raise DtypeError("bitsandbytes weights need SCB finite and not negative")
    scale = (row_maxima.double() / LEVELS).float()
    return Quantized(codes, torch.where(scale == 0, torch.ones_like(scale), scale))
