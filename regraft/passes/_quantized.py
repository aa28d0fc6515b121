"""What the passes that quantize linear layers share: outlier columns, measured errors, bytes, and what is too small."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

import torch
from torch import Tensor

from regraft.graph import Graph, LinearSite, NearMiss, Value, find_linear_sites
from regraft.numerics import int8
from regraft.ops import Op, evaluate
from regraft.passes._monarch_site import MonarchSite, find_monarch_sites
from regraft.passes._pass import Plan, Reject
from regraft.passes._statistics import SiteStatistics

Steps = Literal["row", "tensor"]
"""One step for each row of an activation, or one for the whole of it."""

BREAK_EVEN: Final[Mapping[tuple[Steps, Literal["fixed", "dynamic"]], int]] = {
    ("tensor", "fixed"): 40,
    ("row", "fixed"): 72,
    ("tensor", "dynamic"): 104,
    ("row", "dynamic"): 144,
}
"""Smallest in · out / (in + out) of a layer that gets faster, by activations and outliers.

The integer product saves in · out multiply-adds a row and costs steps over the row's `in` inputs and `out` results, so
the ratio of the two decides. Measured in ONNX Runtime 1.32 on two x86 cores with VNNI, 128 and 1024 rows, square and up
to 16 times as wide as high; a single row wins less, and loses with one step a row.
"""
BLOCKS_BREAK_EVEN: Final[Mapping[Steps, int]] = {"tensor": 34, "row": 48}
"""Smallest multiply-adds of a Monarch layer, for each value that it reads, holds in between (twice) or returns, with
which it gets faster, by activations.

Measured in ONNX Runtime 1.32 on one x86 core with VNNI, 128 and 1024 rows, 23 layers from 64x64 in 2x2 blocks to
768x3072 in 32x32, with and without a hundredth of the columns as outliers: from these numbers on, 0.41 to 1.00 of the
time of `monarch_linear`.
"""
ROWS: Final = 256
"""Random rows on which a layer without calibration is measured."""


@dataclass(frozen=True, eq=False)
class QuantizedPlan(Plan):
    """One quantized layer: the operands that its op has beside x and the bias, and the op's attributes."""

    tensors: dict[str, Tensor]
    attributes: dict[str, int | float]
    insert: Op


def find_layers(graph: Graph) -> tuple[list[LinearSite], list[NearMiss]]:
    """Return all linear layers, dense ones and those that an earlier pass cut into blocks."""
    (dense, misses), (blocks, others) = find_linear_sites(graph), find_monarch_sites(graph)
    return [*dense, *blocks], [*misses, *others]


def build_quantized(graph: Graph, site: LinearSite, plan: QuantizedPlan) -> None:
    """Write a plan's operands; a bias that did not change stays the same constant."""
    graph.replace(site, plan.insert, {**plan.tensors, "bias": unchanged_bias(site)}, plan.attributes)


def refuse_wide(site: LinearSite) -> Reject | None:
    """Return why a layer has too many inputs for sums in 32 bits, or None when it has not."""
    summed = site.most_summed if isinstance(site, MonarchSite) else site.in_features
    if summed <= int8.MOST_INPUTS:
        return None
    return Reject(f"sums over {summed} inputs could overflow 32 bits; at most {int8.MOST_INPUTS} fit")


def calibrated_outliers(
    site: LinearSite, statistics: SiteStatistics, *, threshold: float, relative: float, cap: float
) -> Tensor | None:
    """Return the outlier columns of a layer's input, or None when it has none; see `int8.outlier_columns`."""
    found = int8.outlier_columns(statistics.moments.peak, threshold=threshold, relative=relative, cap=cap)
    return found.to(site.weight.device) if len(found) else None


def kept_text(kept: int) -> str:
    """Return how many columns stay in floating point, as the ledger says it ("1 column kept")."""
    return "1 column kept" if kept == 1 else f"{kept} columns kept"


def refuse_small(site: LinearSite, activations: Steps, outliers: Literal["fixed", "dynamic"]) -> Reject | None:
    """Return why a layer is too small to get faster in 8-bit integers, or None when it is not."""
    if isinstance(site, MonarchSite):
        least, width = BLOCKS_BREAK_EVEN[activations], site.macs_a_value
    else:
        least = BREAK_EVEN[activations, outliers]
        width = site.in_features * site.out_features / (site.in_features + site.out_features)
    if width >= least:
        return None
    return Reject(f"a {site.shape} layer is too small to get faster in 8 bits; small=true rewrites it")


def outlier_operands(site: LinearSite, outliers: Tensor) -> dict[str, Tensor]:
    """Return the operands of columns that stay in floating point, with their original weights."""
    inliers = torch.ones(site.in_features, dtype=torch.bool, device=outliers.device)
    inliers[outliers] = False
    return {
        "inliers": inliers,
        "outliers": outliers,
        "outlier_weight": site.weight.index_select(1, outliers).contiguous(),
    }


def measured_error(
    site: LinearSite,
    statistics: SiteStatistics | None,
    op: Op,
    tensors: Mapping[str, Tensor],
    attributes: Mapping[str, int | float],
) -> float:
    """Return the error of the product on the calibration rows that the manager will check, or on rows of their kind.

    Computed in float64, so that what the graph adds to it by rounding shows in the check.
    """
    if statistics is not None:
        rows = statistics.sample.double()
    else:
        generator = torch.Generator().manual_seed(0)
        rows = torch.randn(ROWS, site.in_features, generator=generator, dtype=torch.float64)
    rows = rows.to(site.weight.device)
    operands = {name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    with torch.no_grad():
        found = evaluate(op, {"x": rows, **operands}, attributes)
    wanted = rows @ site.weight.double().t()
    total = float(wanted.norm())
    return float((wanted - found).norm()) / total if total > 0 else 0.0


def bytes_of(site: LinearSite, tensors: Mapping[str, Tensor]) -> int:
    """Return the bytes of new operands and of the bias."""
    bias = 0 if site.bias_value is None else site.out_features * site.weight.element_size()
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()) + bias


def unchanged_bias(site: LinearSite) -> Value | Tensor | None:
    """Return the bias: the same constant where an op can read it as it is, a new tensor where it cannot."""
    return site.bias_value if site.beta == 1.0 and site.bias_fits else site.bias
