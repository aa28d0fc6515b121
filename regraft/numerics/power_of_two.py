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

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import torch
from torch import Tensor

from regraft.errors import DtypeError, OptionError, ShapeError

EXPONENTS: Final = 7
"""Exponents of a term: 0 to 6 below the largest."""

LARGEST: Final = 1 << (EXPONENTS - 1)
"""Value of the largest term."""

ZERO_CODE: Final = 7
"""The code of a term that is zero; 15 means the same."""

TERM_VALUES: Final = (64, 32, 16, 8, 4, 2, 1, 0, -64, -32, -16, -8, -4, -2, -1, 0)
"""What the 16 codes of a term stand for: sign · 2^(6 - e) at the code sign bit · 8 + e."""

_PHASES: Final = 8
"""Scales tried for one term, over a factor of two: a row's scale times two has almost the same levels."""
_REFINEMENTS: Final = 2
_CHUNK: Final = 1 << 21
"""Weights that are worked on at a time, so that a large layer does not take many times its size."""


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
    steps = levels(terms).to(weight.device)
    middles = (steps[1:] + steps[:-1]).to(weight.dtype) / 2
    ratio = weight / scale.to(weight.dtype)[:, None]
    magnitude = steps[torch.bucketize(ratio.abs(), middles)]
    return torch.where(ratio < 0, -magnitude, magnitude).to(torch.int8)


def least_squares_scale(weight: Tensor, values: Tensor, importance: Tensor | None = None) -> Tensor:
    """Return the scale of each row with the least error Σ importance · (weight - scale · values)².

    Args:
        weight: [out, in], float.
        values: [out, in], of any type.
        importance: [in], not negative; ones when None.

    Returns:
        [out] in the weight's type; 0 for a row whose values are all 0.
    """
    exact = values.to(weight.dtype)
    weighted = exact if importance is None else exact * importance.to(weight.dtype)
    power = (weighted * exact).sum(dim=1)
    return torch.where(
        power > 0, (weighted * weight).sum(dim=1) / power.clamp_min(torch.finfo(power.dtype).tiny), power
    )


def quantize_rows(
    weight: Tensor,
    terms: int,
    *,
    importance: Tensor | None = None,
    without: Tensor | None = None,
    search: bool = True,
) -> PowersOfTwo:
    """Return a weight as sums of powers of two, each row with the scale that suits it best.

    Scales are tried that put the row's largest magnitude on one of the upper levels, each mended by least squares, and
    the best of all is taken; so the error of no row is above that of the plain scale, largest magnitude / 64.

    Args:
        weight: [out, in], any float type; computed in float64, not changed.
        terms: 1 or 2.
        importance: how much an error in each column matters, [in] (the mean square of the layer's inputs).
        without: int64 columns that are multiplied apart: their values are 0, and they do not count for the scale.
        search: try scales and mend them; the plain scale when False.

    Raises:
        ShapeError: when the weight is no matrix.
        DtypeError: when it is not finite.
        OptionError: unless there are 1 or 2 terms.
    """
    exact = checked(weight)
    if without is not None and len(without):
        exact = exact.index_fill(1, without.to(exact.device), 0.0)
    rows = max(1, _CHUNK // max(1, exact.shape[1]))
    found = [_quantize(part, terms, importance, search) for part in exact.split(rows)]
    values = torch.cat([part for part, _ in found])
    scale = torch.cat([part for _, part in found]).to(torch.float64 if weight.dtype == torch.float64 else torch.float32)
    # A row too small for the type of its scale is a row of zeros.
    values = torch.where(scale[:, None] == 0, torch.zeros_like(values), values)
    return PowersOfTwo(values, torch.where(scale == 0, torch.ones_like(scale), scale), terms)


def checked(weight: Tensor) -> Tensor:
    """Return a weight in float64.

    Raises:
        ShapeError, DtypeError: when it is no matrix or not finite.
    """
    if weight.dim() != 2:
        raise ShapeError(f"a weight to quantize must be [out, in]; got {list(weight.shape)}")
    if not bool(torch.isfinite(weight).all()):
        raise DtypeError("a weight to quantize must be finite; it has inf or nan")
    return weight.detach().to(torch.float64)


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


def _quantize(weight: Tensor, terms: int, importance: Tensor | None, search: bool) -> tuple[Tensor, Tensor]:
    """Values and scales (0 for a row of zeros) of a part of the rows."""
    peak = weight.abs().amax(dim=1) if weight.shape[1] else weight.new_zeros(len(weight))
    some = torch.where(peak == 0, torch.ones_like(peak), peak)
    importance = None if importance is None else importance.to(weight.device, weight.dtype)
    best = _Best(weight, terms, importance)
    for top in _tops(terms) if search else (float(LARGEST),):
        scale = some / top
        best.take(scale)
        for _ in range(_REFINEMENTS if search else 0):
            scale = best.refined(scale)
            best.take(scale)
    return best.values, torch.where(peak == 0, peak, best.scale)


class _Best:
    """The values and scales with the least error so far, row by row."""

    def __init__(self, weight: Tensor, terms: int, importance: Tensor | None) -> None:
        self._weight, self._terms, self._importance = weight, terms, importance
        self._tried = torch.zeros_like(weight, dtype=torch.int8)
        self._error = torch.full_like(weight[:, 0] if weight.shape[1] else weight.sum(1), torch.inf)
        self.values, self.scale = self._tried, torch.ones_like(self._error)

    def take(self, scale: Tensor) -> None:
        """Try a scale."""
        self._tried = nearest(self._weight, scale, self._terms)
        missed = (self._weight - scale[:, None] * self._tried).square()
        error = (missed if self._importance is None else missed * self._importance).sum(dim=1)
        better = error < self._error
        self._error = torch.where(better, error, self._error)
        self.scale = torch.where(better, scale, self.scale)
        self.values = torch.where(better[:, None], self._tried, self.values)

    def refined(self, scale: Tensor) -> Tensor:
        """The least-squares scale of the values that were tried last."""
        fitted = least_squares_scale(self._weight, self._tried, self._importance)
        return torch.where(fitted > 0, fitted, scale)


def _tops(terms: int) -> Iterator[float]:
    """Levels that the largest magnitude of a row is put on, the plain one first; those below half repeat the others."""
    yield float(LARGEST)
    if terms == 1:
        yield from (LARGEST * 2 ** (phase / _PHASES - 0.5) for phase in range(_PHASES) if 2 * phase != _PHASES)
    else:
        yield from (float(level) for level in levels(terms).tolist() if level > LARGEST // 2 and level != LARGEST)


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
