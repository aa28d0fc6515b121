"""Weights as sums of signed powers of two with one scale a row, in 4 bits a term.

    weight[o, i] ≈ scale[o] · values[o, i]      values: sums of `terms` numbers out of {0, ±1, ±2, ±4, ..., ±64}

A term is a sign and an exponent e in [0, 6], standing for ±2^(6 - e), or zero: 15 numbers, so 4 bits. Counted from the
largest, exponents lie in [-6, 0] and the values are the weight's embedding in int8, without any further error: ±64 is
the largest single term, and of two terms only 64 + 64 would not fit. That pair is left out, so that no sum exceeds
64 + 32 = 96; the scale of a row moves its largest weight to another level instead.

A term's relative error is at most 1/3 (the middle of 2^k and 2^(k+1) is 1.5 · 2^k) where nothing saturates or vanishes.

Sources: Elhoushi et al. 2021, arXiv:1905.13298 (DeepShift), there without a scale and with the nearest exponent rather
than the nearest number; Li et al. 2020, arXiv:1909.13144 (sums of powers of two).
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import torch
from torch import Tensor

from regraft.errors import OptionError, ShapeError

EXPONENTS: Final = 7
"""Exponents of a term: 0 to 6 below the largest."""

LARGEST: Final = 1 << (EXPONENTS - 1)
"""Value of the largest term."""

ZERO_CODE: Final = 7
"""The code of a term that is zero; 15 means the same."""

TERM_VALUES: Final = (64, 32, 16, 8, 4, 2, 1, 0, -64, -32, -16, -8, -4, -2, -1, 0)
"""What the 16 codes of a term stand for: sign · 2^(6 - e) at the code sign bit · 8 + e."""


@dataclass(frozen=True, slots=True, eq=False)
class PowersOfTwo:
    """A weight as sums of signed powers of two.

    Attributes:
        values: int8 [out, in].
        scale: [out], above 0; in float32 (float64 for a weight in float64).
        terms: of each sum, 1 or 2.
    """

    values: Tensor
    scale: Tensor
    terms: int

    @property
    def packed(self) -> Tensor:
        """The values in 4 bits a term, as `pack` lays them out."""
        return pack(self.values, self.terms)

    def dequantize(self) -> Tensor:
        """Return scale · values, [out, in], in the scale's type."""
        return self.values.to(self.scale.dtype) * self.scale[:, None]


def levels(terms: int) -> Tensor:
    """Return the non-negative values that sums of that many terms can have, ascending, int64.

    Raises:
        OptionError: unless there are 1 or 2 terms.
    """
    return torch.tensor(sorted(value for value in _sums(terms) if value >= 0))


def nearest(weight: Tensor, scale: Tensor, terms: int) -> Tensor:
    """Return the sums of `terms` powers of two that are nearest to weight / scale.

    Args:
        weight: [out, in], float.
        scale: [out], above 0.
        terms: 1 or 2.

    Returns:
        int8 [out, in]. Halfway between two levels, the smaller magnitude is taken.
    """
    table = _roundings(terms).to(weight.device)
    ratio = weight / scale.to(weight.dtype)[:, None]
    # The middles between levels are multiples of 1/2: one level is nearest all over (j - 1)/2 < |ratio| ≤ j/2.
    halves = (ratio.abs() * 2).ceil_().clamp_max_(len(table) - 1)
    magnitude = table[halves.to(torch.int32)]
    return torch.where(ratio < 0, -magnitude, magnitude)


def pack(values: Tensor, terms: int) -> Tensor:
    """Return values in 4 bits a term, two terms a byte.

    Args:
        values: int8 [out, in], each a sum of `terms` powers of two.
        terms: 1 or 2.

    Returns:
        uint8 [out, ceil(terms · in / 2)]. A row's codes, those of all first terms and then those of all second ones,
        are cut in half: the first half stands in the lower 4 bits of the bytes, the second in the upper ones. So with
        two terms a byte is a weight. An odd row ends in the code of zero.

    Raises:
        ShapeError: when a value is no such sum.
    """
    table = _encoder(terms).to(values.device)
    codes = table[:, values.long() + 128].movedim(0, 1).flatten(1)  # [out, terms · in]
    if bool((codes > 15).any()):
        raise ShapeError(f"values to pack must be sums of {terms} powers of two up to {LARGEST}")
    if codes.shape[1] % 2:
        codes = torch.nn.functional.pad(codes, (0, 1), value=ZERO_CODE)
    lower, upper = codes.chunk(2, dim=1) if codes.shape[1] else (codes, codes)
    return lower | (upper << 4)


def unpack(packed: Tensor, terms: int, in_features: int) -> Tensor:
    """Return the values that `pack` laid out, int8 [out, in]."""
    table = torch.tensor(TERM_VALUES, dtype=torch.int8, device=packed.device)
    codes = torch.cat([packed & 15, packed >> 4], dim=1)[:, : terms * in_features]
    return table[codes.long()].unflatten(1, (terms, in_features)).sum(dim=1, dtype=torch.int8)


def packed_width(in_features: int, terms: int) -> int:
    """Return the bytes of a packed row."""
    return -(-terms * in_features // 2)


@lru_cache(maxsize=2)
def _sums(terms: int) -> dict[int, tuple[int, int]]:
    """Every value that a sum of terms can have, with its terms, the larger first (the second one 0 for one term)."""
    if terms not in (1, 2):
        raise OptionError(f"a weight is a sum of 1 or 2 powers of two; got {terms}")
    singles = sorted(set(TERM_VALUES), key=lambda value: (abs(value), value))
    found: dict[int, tuple[int, int]] = {}
    for first in singles:
        for second in singles if terms == 2 else (0,):
            if abs(second) <= abs(first) and abs(first + second) < 2 * LARGEST:
                found.setdefault(first + second, (first, second))
    return found


@lru_cache(maxsize=2)
def _encoder(terms: int) -> Tensor:
    """Codes of the terms of every value from -128 to 127, uint8 [terms, 256]; 255 where there are none."""
    table = torch.full((terms, 256), 255, dtype=torch.uint8)
    for value, pair in _sums(terms).items():
        for place in range(terms):
            table[place, value + 128] = TERM_VALUES.index(pair[place])
    return table


@lru_cache(maxsize=2)
def _roundings(terms: int) -> Tensor:
    """The level nearest to j / 2 for each j, the lower one of two, up to the largest level, int8."""
    steps = levels(terms)
    halves = torch.arange(2 * int(steps[-1]) + 1, dtype=torch.float64) / 2
    return steps[torch.bucketize(halves, (steps[1:] + steps[:-1]) / 2)].to(torch.int8)
