"""The numeric check of sites that are more than one layer: both graphs compute the same part from the same operands."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from regraft.errors import RegraftError
from regraft.graph import Graph, Site
from regraft.graph.random_values import random_value
from regraft.graph.types import dtype_name
from regraft.passes._check import ROUNDING, SLACK, SiteCheck, error_of
from regraft.passes._pass import Plan

Operands = Mapping[str, Tensor]
"""Contents of a site's operands, by key."""


@dataclass(frozen=True)
class Region:
    """A rewritten site to be checked.

    Attributes:
        site: found in the graph before.
        plan: its announcement.
    """

    site: Site
    plan: Plan


def check_regions(
    before: Graph, after: Graph, regions: Sequence[Region], probes: Sequence[Any], *, calibrated: bool, seed: int
) -> list[SiteCheck]:
    """Compare what the two graphs compute for each site.

    Args:
        before: the graph in which the sites were found.
        after: the rewritten graph; the outputs of the sites have the same keys.
        regions: what to check; the answers come in the same order.
        probes: inputs of the whole model, whose first batch gives the operands; random ones without.
        calibrated: whether the probes are calibration inputs.
        seed: of random operands.
    """
    keys = dict.fromkeys(key for region in regions for key in region.site.operands.values())
    tapped = tapped_operands(before, [key for key in keys if not before.value(key).nested], probes, seed)
    return [
        _check(before, after, region, tapped, calibrated=calibrated and bool(probes), seed=seed) for region in regions
    ]


def tapped_operands(graph: Graph, keys: Sequence[str], probes: Sequence[Any], seed: int) -> Operands:
    """Return what values hold in the first batch, and the graph's inputs, whose extents are read along the way."""
    inputs = [value.key for value in graph.inputs()]
    if not keys:
        return {}
    if probes:
        return graph.run(probes[0], [*inputs, *keys])[1]
    drawn = _drawn(graph, inputs, seed)
    if drawn is None:
        return {}
    try:
        found = graph.run([drawn[key] for key in inputs], keys)[1]
    except (RegraftError, RuntimeError):  # numbers that this model does not take
        return drawn
    return {**found, **drawn}


def _check(before: Graph, after: Graph, region: Region, tapped: Operands, *, calibrated: bool, seed: int) -> SiteCheck:
    site, rows = region.site, "calibration" if calibrated else "random"
    given = operands_of(before, site, tapped, seed)
    if given is None:
        return SiteCheck(math.inf, 0.0, rows, "it cannot be checked: the type of an operand is not known")
    try:
        (wanted,), (got,) = (graph.evaluate([site.output], given) for graph in (before, after))
        meant = region.plan.definition({name: given[key] for name, key in site.operands.items()})
    except (RegraftError, RuntimeError) as error:
        first = next(iter(str(error).splitlines()), type(error).__name__)
        return SiteCheck(math.inf, 0.0, rows, f"it cannot be computed: {first}")
    rounding = ROUNDING.get(dtype_name(wanted.dtype), 1e-4)
    off = 0.0 if meant is None else error_of([(meant, got)])
    failure = "" if off <= rounding else f"it differs by {off:.3g} from what {region.plan.op} means"
    # What a cut of the weights does behind softmax or an activation cannot be told beforehand: it is measured.
    approximate = meant is not None and region.plan.announced_error > rounding
    allowed = math.inf if approximate else region.plan.announced_error * SLACK + rounding
    return SiteCheck(error_of([(wanted, got)]), allowed, rows, failure)


def operands_of(graph: Graph, site: Site, tapped: Operands, seed: int) -> Operands | None:
    """Return contents of a site's operands: tapped ones, else random ones; None when a type is not known."""
    inputs = {value.key: tapped[value.key] for value in graph.inputs() if value.key in tapped}
    known = {key: tapped[key] for key in site.operands.values() if key in tapped}
    if len(known) == len(set(site.operands.values())):
        return {**inputs, **known}
    drawn = _drawn(graph, [*site.operands.values()], seed, inputs)
    return None if drawn is None else {**inputs, **drawn}


def _drawn(graph: Graph, keys: Sequence[str], seed: int, beside: Operands | None = None) -> Operands | None:
    """Random content of values whose extents agree with each other, and with those of the values beside them."""
    generator = torch.Generator().manual_seed(seed)
    extents: dict[str, int] = {}
    for key, tensor in (beside or {}).items():
        pairs = zip(graph.value(key).type.shape or (), tensor.shape, strict=False)
        extents.update({dim: extent for dim, extent in pairs if isinstance(dim, str)})
    drawn = {key: random_value(graph.value(key).type, extents, generator) for key in keys}
    found = {key: tensor for key, tensor in drawn.items() if tensor is not None}
    return found if len(found) == len(drawn) else None
