"""The numeric checks: of a rewritten site against the dense layer, and of a whole model against the original."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import torch
from torch import Tensor

from regraft.graph import Graph
from regraft.graph.graph import Outputs
from regraft.graph.site import LinearSite
from regraft.graph.types import dtype_name, torch_dtype
from regraft.passes._pass import Plan

RANDOM_ROWS: Final = 256
SLACK: Final = 1.5
"""How far above its announcement a measured error may be: it is measured on a sample of rows."""

ROUNDING: Final[Mapping[str, float]] = {"float64": 1e-10, "float32": 1e-4, "float16": 1e-2, "bfloat16": 6e-2}
"""Relative error of a layer's product that rounding alone may cause, by element type."""


@dataclass(frozen=True, slots=True)
class SiteCheck:
    """What was measured on a rewritten site.

    Attributes:
        error: ‖y - ŷ‖ / ‖W x‖ over the rows, y in float64 from the dense layer, ŷ from the rewritten graph.
        allowed: largest error that the plan's announcement covers.
        rows: where the rows came from.
    """

    error: float
    allowed: float
    rows: Literal["calibration", "random"]

    @property
    def holds(self) -> bool:
        """Whether the site keeps its promise."""
        return self.error <= self.allowed

    def __str__(self) -> str:
        return f"measured error {self.error:.3g} on {self.rows} inputs, at most {self.allowed:.3g} was announced"


def check_site(
    graph: Graph, site: LinearSite, plan: Plan, sample: Tensor | None, generator: torch.Generator
) -> SiteCheck:
    """Compare a rewritten site with the dense layer that stood there.

    Args:
        graph: the rewritten graph.
        site: found in the graph before.
        plan: its announcement; promised on "calibration" inputs it is measured on `sample`, else on isotropic ones.
        sample: calibration rows [rows, in], or None.
        generator: source of random rows.
    """
    on_sample = plan.announced_on == "calibration" and sample is not None
    dtype = torch_dtype(site.input_type.dtype or "") or site.weight.dtype
    if on_sample and sample is not None:
        rows = sample.to(dtype)
    else:
        rows = torch.randn(RANDOM_ROWS, site.in_features, generator=generator).to(site.weight.device, dtype)
    (rewritten,) = graph.evaluate([site.output], {site.input: _with_rank(rows, site.input_type.rank)})
    error = _site_error(site, rows, rewritten.reshape(-1, site.out_features))
    rounding = ROUNDING.get(dtype_name(dtype), 1e-4)
    return SiteCheck(error, plan.announced_error * SLACK + rounding, "calibration" if on_sample else "random")


def error_on(graph: Graph, site: LinearSite, sample: Tensor) -> float:
    """Return ‖y - ŷ‖ / ‖W x‖ of a rewritten site on given rows."""
    (rewritten,) = graph.evaluate([site.output], {site.input: _with_rank(sample, site.input_type.rank)})
    return _site_error(site, sample, rewritten.reshape(-1, site.out_features))


def model_error(original: Sequence[Outputs], rewritten: Sequence[Outputs]) -> float:
    """Return the largest relative error among a model's floating-point outputs, over all batches together.

    The error of one output is ‖y - ŷ‖ / ‖y‖ (Frobenius). Outputs of another shape, or not finite where the original's
    are, count as infinitely wrong.
    """
    worst = 0.0
    for place in range(len(original[0]) if original else 0):
        pairs = [(before[place], after[place]) for before, after in zip(original, rewritten, strict=True)]
        if pairs[0][0].is_floating_point():
            worst = max(worst, _relative_error(pairs))
    return worst


def _relative_error(pairs: Sequence[tuple[Tensor, Tensor]]) -> float:
    difference = total = 0.0
    for before, after in pairs:
        if before.shape != after.shape:
            return math.inf
        finite = torch.isfinite(before)
        y, z = before[finite].double(), after[finite].double().to(before.device)
        difference += float((y - z).square().sum())
        total += float(y.square().sum())
    if not math.isfinite(difference):
        return math.inf
    return (difference / total) ** 0.5 if total > 0 else (0.0 if difference == 0 else math.inf)


def _site_error(site: LinearSite, rows: Tensor, rewritten: Tensor) -> float:
    wanted = site.reference(rows)
    product = wanted if site.bias is None else wanted - site.bias.double()
    difference = float((wanted - rewritten.double().to(wanted.device)).norm())
    total = float(product.norm())
    if not math.isfinite(difference):
        return math.inf
    return difference / total if total > 0 else difference


def _with_rank(rows: Tensor, rank: int | None) -> Tensor:
    """[rows, n] with leading dims of one, so that it has the rank that the graph declares."""
    return rows.reshape(*[1] * max((rank or 2) - 2, 0), *rows.shape)
