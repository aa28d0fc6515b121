"""Which linear layers a compression pass is asked to rewrite, and which have numbers that it can work on."""

import torch

from regraft.graph import LinearSite
from regraft.passes._heads import head_reason
from regraft.passes._pass import Reject, is_selected
from regraft.passes._statistics import SiteStatistics


def refuse_layer(site: LinearSite, *, targets: tuple[str, ...], exclude: tuple[str, ...], heads: bool) -> Reject | None:
    """Return why a layer is left alone: not asked for, its weight is tied, or a head that was not named; else None."""
    if not is_selected(site.name, targets, exclude):
        return Reject("not among the targets" if not is_selected(site.name, targets, ()) else "excluded")
    own = [reader for reader in site.weight_readers if reader == site.name.partition("#")[0]]
    if own:
        calls = len(site.weight_readers) + 1
        return Reject(f"its weight is shared by {calls} calls of the layer, and they cannot be rewritten one by one")
    if site.weight_readers:
        return Reject(f"its weight is also read by {site.weight_readers[0]}, so the dense one would stay")
    head = "" if heads or targets else head_reason(site)
    return Reject(f"{head}; heads=true rewrites it") if head else None


def refuse_not_finite(site: LinearSite, statistics: SiteStatistics | None) -> Reject | None:
    """Return why nothing can be made of a layer whose weight or calibration inputs hold inf or nan, else None."""
    if not bool(torch.isfinite(site.weight).all()):
        return Reject("its weight holds numbers that are not finite")
    if statistics is not None and not bool(torch.isfinite(statistics.moments.second).all()):
        return Reject("its calibration inputs hold numbers that are not finite")
    return None
