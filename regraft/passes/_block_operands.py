"""The blocks of a Monarch layer in 8-bit integers or as sums of powers of two: operands of the ops that hold them.

Both stacks are quantized as matrices: a row is a column of a block, so that each has a scale of its own.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from regraft.numerics import int8
from regraft.numerics.monarch import Factors, hidden_moments
from regraft.numerics.power_of_two import PowersOfTwo
from regraft.passes._monarch_site import MonarchSite
from regraft.passes._statistics import SiteStatistics

Fit = Callable[[Tensor, Tensor | None, Tensor | None], PowersOfTwo]
"""(matrix [out, in], moment E[x xᵀ] of its inputs or None, columns that do not count or None) -> its sums."""


def int8_blocks(site: MonarchSite, outliers: Tensor | None) -> dict[str, Tensor]:
    """Return the blocks in 8 bits; what belongs to outlier columns of x is 0 and does not count for the scales."""
    operands: dict[str, Tensor] = {}
    for name, stack in (("right", _without(site, outliers)), ("left", site.factors.left)):
        blocks, inputs, outputs = stack.shape
        found = int8.quantize_rows(_as_rows(stack))
        operands[name] = found.codes.reshape(blocks, outputs, inputs).transpose(1, 2).contiguous()
        operands[f"{name}_scale"] = found.scale.reshape(blocks, 1, outputs)
    return operands


def shift_blocks(
    site: MonarchSite, statistics: SiteStatistics | None, outliers: Tensor | None, fit: Fit
) -> dict[str, Tensor]:
    """Return the blocks as sums of powers of two, every block fitted to its own inputs where there is calibration.

    The second stack is fitted to what the first one gives once it is quantized.
    """
    right = _without(site, outliers)
    if statistics is None:
        first, second = fit(_as_rows(right), None, None), fit(_as_rows(site.factors.left), None, None)
        return {**_packed("right", first, right), **_packed("left", second, site.factors.left)}
    moment = _without_moment(site, statistics.moments.gram.to(right.device), outliers)
    k, p, _ = right.shape
    kept = None if outliers is None else _inliers(site, outliers)
    parts: list[PowersOfTwo] = []
    for a in range(k):
        run = slice(a * p, (a + 1) * p)
        without = None if kept is None else torch.nonzero(~kept[a]).flatten()
        parts.append(fit(right[a].t(), moment[run, run], without))
    first = _joined(parts)
    restored = first.dequantize().reshape(k, -1, p).transpose(1, 2)
    hidden = hidden_moments(moment, Factors(site.partition, restored, site.factors.left, None, 0.0))
    second = _joined([fit(block.t(), seen, None) for block, seen in zip(site.factors.left, hidden, strict=True)])
    return {**_packed("right", first, right), **_packed("left", second, site.factors.left)}


def _as_rows(stack: Tensor) -> Tensor:
    """[blocks, inputs, outputs] as a matrix [blocks · outputs, inputs]."""
    return stack.transpose(1, 2).reshape(-1, stack.shape[1])


def _joined(parts: list[PowersOfTwo]) -> PowersOfTwo:
    values, scale = torch.cat([part.values for part in parts]), torch.cat([part.scale for part in parts])
    return PowersOfTwo(values, scale, parts[0].terms)


def _packed(name: str, found: PowersOfTwo, stack: Tensor) -> dict[str, Tensor]:
    blocks, _, outputs = stack.shape
    return {f"{name}_codes": found.packed, f"{name}_scale": found.scale.reshape(blocks, 1, outputs)}


def _inliers(site: MonarchSite, outliers: Tensor) -> Tensor:
    """Which inputs of each run count, [k, p]."""
    kept = torch.ones(site.in_features, dtype=torch.bool, device=outliers.device)
    kept[outliers] = False
    return site.partition.runs(kept)


def _without(site: MonarchSite, outliers: Tensor | None) -> Tensor:
    right = site.factors.right
    return right if outliers is None else right * _inliers(site, outliers)[:, :, None]


def _without_moment(site: MonarchSite, gram: Tensor, outliers: Tensor | None) -> Tensor:
    """E[x xᵀ] in the order of the runs, as if outlier columns were 0, as they are once they are masked."""
    moment = gram if outliers is None else gram.index_fill(0, outliers, 0.0).index_fill(1, outliers, 0.0)
    return site.partition.cut_inputs(moment)
