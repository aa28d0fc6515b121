"""Which linear layers a compression pass is asked to rewrite, and which have numbers that it can work on."""

import torch

from regraft.graph import LinearSite
from regraft.passes._heads import head_reason
from regraft.passes._pass import Reject, is_selected, not_asked_for
from regraft.passes._statistics import SiteStatistics


def refuse_layer(site: LinearSite, *, targets: tuple[str, ...], exclude: tuple[str, ...], heads: bool) -> Reject | None:
    """Return why a layer is left alone: not asked for, its weight is tied, or a head that was not named; else None."""
    refused = _not_asked_for(site, targets, exclude)
    if refused:
        return Reject(refused)
    if site.weight_readers:
        return Reject(f"its weight is also read by {site.weight_readers[0]}, so the dense one would stay")
    head = "" if heads or targets else head_reason(site)
    return Reject(f"{head}; heads=true rewrites it") if head else None


def _not_asked_for(site: LinearSite, targets: tuple[str, ...], exclude: tuple[str, ...]) -> str:
    """Why a layer, or one that shares its weight and would be rewritten with it, is not asked for, or ""."""
    wanted = [layer for layer in site.layers if is_selected(layer, targets, exclude)]
    unwanted = [layer for layer in site.layers if layer not in wanted]
    if not unwanted:
        return ""
    why = not_asked_for(unwanted[0], targets, exclude)
    if not wanted:
        return why
    if unwanted[0] == site.name:
        return f"{why}; {wanted[0]} shares its weight and is kept with it"
    return f"it shares its weight with {unwanted[0]}, which is {why}"


def refuse_not_finite(site: LinearSite, statistics: SiteStatistics | None) -> Reject | None:
    """Return why nothing can be made of a layer: inf or nan in it or its inputs, or no inputs at all; else None."""
    if not bool(torch.isfinite(site.weight).all()):
        return Reject("its weight holds numbers that are not finite")
    if statistics is not None and statistics.moments.rows == 0:
        return Reject("no row of the calibration inputs reaches it")
    if statistics is not None and not bool(torch.isfinite(statistics.moments.second).all()):
        return Reject("its calibration inputs hold numbers that are not finite")
    return None
