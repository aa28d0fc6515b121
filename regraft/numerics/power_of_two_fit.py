"""Fitting weights by sums of signed powers of two: which scale each row gets, and which sums.

Sources: the nearest sum for a given scale as in DeepShift (Elhoushi et al. 2021, arXiv:1905.13298), scales by least
squares; error feedback as in ShiftAddLLM (You et al. 2024, arXiv:2406.05981), which takes it from GPTQ.
"""

from collections.abc import Iterator
from typing import Final

import torch
from torch import Tensor

from regraft.errors import DtypeError, ShapeError
from regraft.numerics.error_feedback import round_with_feedback
from regraft.numerics.power_of_two import LARGEST, PowersOfTwo, levels, nearest

_PHASES: Final = 8
"""Scales tried for one term, over a factor of two: a row's scale times two has almost the same levels."""
_REFINEMENTS: Final = 3
_CHUNK: Final = 1 << 16
"""Weights that are worked on at a time: what a processor's cache holds."""


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

    Scales are tried that put the row's largest magnitude on one of the upper levels; the best of them is mended by
    least squares while that helps. So no row's error is above that of the plain scale, largest magnitude / 64.

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
    exact = _checked(weight)
    if without is not None and len(without):
        exact = exact.index_fill(1, without.to(exact.device), 0.0)
    rows = max(1, _CHUNK // max(1, exact.shape[1]))
    found = [_quantize(part, terms, importance, search) for part in exact.split(rows)]
    values = torch.cat([part for part, _ in found])
    scale = torch.cat([part for _, part in found]).to(torch.float64 if weight.dtype == torch.float64 else torch.float32)
    # A row too small for the type of its scale is a row of zeros.
    values = torch.where(scale[:, None] == 0, torch.zeros_like(values), values)
    return PowersOfTwo(values, torch.where(scale == 0, torch.ones_like(scale), scale), terms)


def quantize_with_feedback(
    weight: Tensor, terms: int, gram: Tensor, *, damping: float, without: Tensor | None = None
) -> PowersOfTwo:
    """Return a weight as sums of powers of two whose output is close on inputs with a given moment.

    Scales are those of `quantize_rows`; sums are then chosen with error feedback, and scales mended by least squares
    for the output. On inputs with this moment (damped), no row's output is further off than with `quantize_rows`.

    Args:
        weight: [out, in], any float type; computed in float64, not changed.
        terms: 1 or 2.
        gram: E[x xᵀ] of the layer's inputs, [in, in].
        damping: share of the mean input power that is added to every direction, above 0.
        without: int64 columns that are multiplied apart: their values are 0.

    Raises:
        ShapeError, DtypeError, OptionError: as in `quantize_rows`; when the moment does not fit the weight.
    """
    base = quantize_rows(weight, terms, importance=gram.diagonal(), without=without)
    kept = torch.ones(weight.shape[1], dtype=torch.bool, device=weight.device)
    if without is not None:
        kept[without.to(kept.device)] = False
    exact, moment = _checked(weight)[:, kept], gram.to(weight.device, torch.float64)[kept][:, kept]
    steps = base.scale.double()
    sums = round_with_feedback(
        exact / steps[:, None],
        moment,
        lambda columns: nearest(columns, torch.ones_like(columns[:, 0]), terms),
        damping=damping,
    )
    scale = _output_scale(exact, sums, moment, damping)
    values = torch.zeros_like(base.values)
    values[:, kept] = sums.to(torch.int8)
    return PowersOfTwo(values, torch.where(scale > 0, scale, steps).to(base.scale.dtype), terms)


def _quantize(weight: Tensor, terms: int, importance: Tensor | None, search: bool) -> tuple[Tensor, Tensor]:
    """Values and scales (0 for a row of zeros) of a part of the rows."""
    peak = weight.abs().amax(dim=1) if weight.shape[1] else weight.new_zeros(len(weight))
    some = torch.where(peak == 0, torch.ones_like(peak), peak)
    importance = None if importance is None else importance.to(weight.device, weight.dtype)
    best = _Best(weight, terms, importance)
    for top in _tops(terms) if search else (float(LARGEST),):
        best.take(some / top)
    for _ in range(_REFINEMENTS if search else 0):
        best.take(best.refined())
    return best.values, torch.where(peak == 0, peak, best.scale)


def _checked(weight: Tensor) -> Tensor:
    """Return a weight in float64.

    Raises:
        ShapeError, DtypeError: when it is no matrix or not finite.
    """
    if weight.dim() != 2:
        raise ShapeError(f"a weight to quantize must be [out, in]; got {list(weight.shape)}")
    if not bool(torch.isfinite(weight).all()):
        raise DtypeError("a weight to quantize must be finite; it has inf or nan")
    return weight.detach().to(torch.float64)


class _Best:
    """The values and scales with the least error so far, row by row."""

    def __init__(self, weight: Tensor, terms: int, importance: Tensor | None) -> None:
        self._weight, self._terms, self._importance = weight, terms, importance
        self._error = torch.full_like(weight.sum(dim=1), torch.inf)
        self.values, self.scale = torch.zeros_like(weight, dtype=torch.int8), torch.ones_like(self._error)

    def take(self, scale: Tensor) -> None:
        """Try a scale."""
        values = nearest(self._weight, scale, self._terms)
        missed = (self._weight - scale[:, None] * values).square_()
        error = (missed if self._importance is None else missed.mul_(self._importance)).sum(dim=1)
        better = error < self._error
        self._error = torch.where(better, error, self._error)
        self.scale = torch.where(better, scale, self.scale)
        self.values = torch.where(better[:, None], values, self.values)

    def refined(self) -> Tensor:
        """The least-squares scale of the best values so far."""
        fitted = least_squares_scale(self._weight, self.values, self._importance)
        return torch.where(fitted > 0, fitted, self.scale)


def _tops(terms: int) -> Iterator[float]:
    """Levels that the largest magnitude of a row is put on, the plain one first; those below half repeat the others."""
    yield float(LARGEST)
    if terms == 1:
        yield from (LARGEST * 2 ** (phase / _PHASES - 0.5) for phase in range(_PHASES) if 2 * phase != _PHASES)
    else:
        yield from (float(level) for level in levels(terms).tolist() if level > LARGEST // 2 and level != LARGEST)


def _output_scale(weight: Tensor, values: Tensor, moment: Tensor, damping: float) -> Tensor:
    """The scale of each row with the least output error on the damped moment; 0 where the values are all 0."""
    damped = values @ moment + damping * moment.diagonal().mean() * values
    power = (damped * values).sum(dim=1)
    return torch.where(power > 0, (damped * weight).sum(dim=1) / torch.where(power > 0, power, 1.0), power)
