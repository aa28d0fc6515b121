"""The pass `flash-svd`: attention and feed-forward layers in factors never hold a full-size activation."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from regraft.errors import OptionError
from regraft.graph import (
    AttentionBlock,
    Graph,
    MlpSite,
    NearMiss,
    Numbering,
    Projection,
    attention_with_residual,
    find_attention_blocks,
    find_mlp_sites,
    mlp_with_residual,
)
from regraft.passes._flash_attention import plan_attention
from regraft.passes._flash_mlp import Ranks, plan_mlp
from regraft.passes._flash_plan import FlashPlan
from regraft.passes._masks import with_one_mask
from regraft.passes._pass import Reject, SitePass, check_patterns, not_asked_for
from regraft.passes._statistics import SiteStatistics

FlashSite = AttentionBlock | MlpSite


@dataclass(frozen=True)
class FlashSVD(SitePass[FlashSite, FlashPlan]):
    """Replace attention with its projections by `lowrank_attention`, feed-forward layers by `lowrank_mlp`.

    Layers that are factors already (after low-rank) keep the same function; dense ones are cut when keep, rank or
    head_rank is given, with calibration inputs so that scores, values and outputs on them are met best. Attention goes
    to rank space where that takes fewer multiply-adds.

    Attributes:
        keep: share of the parameters of dense layers to keep, in (0, 1); nothing dense is cut without keep or ranks.
        rank: rank of dense feed-forward and output layers.
        head_rank: head size of attention in rank space, at most the model's.
        attention: whether attention is rewritten.
        mlp: whether feed-forward layers are rewritten.
        blocks: parts in which heads, or the hidden width, are walked; chosen for the cache when 0.
        targets: modules to rewrite, as globs or `re:` patterns; all when empty.
        exclude: modules to leave alone, as globs or `re:` patterns.
    """

    tells_misses: ClassVar[bool] = True
    name: ClassVar[str] = "flash-svd"
    uses_calibration: ClassVar[bool] = True
    after: ClassVar[tuple[str, ...]] = ("low-rank",)

    keep: float | None = None
    rank: int | None = None
    head_rank: int | None = None
    attention: bool = True
    mlp: bool = True
    blocks: int = 0
    targets: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.keep is not None and not 0 < self.keep < 1:
            raise OptionError(f"flash-svd: keep must be above 0 and below 1; got {self.keep}")
        for option in ("rank", "head_rank"):
            value = getattr(self, option)
            if value is not None and value < 1:
                raise OptionError(f"flash-svd: {option} must be at least 1; got {value}")
        if self.keep is not None and (self.rank is not None or self.head_rank is not None):
            raise OptionError(f"flash-svd: keep={self.keep} and ranks exclude each other; give one")
        if self.blocks < 0:
            raise OptionError(f"flash-svd: blocks must be at least 1, or 0 to choose; got {self.blocks}")
        if not self.attention and not self.mlp:
            raise OptionError("flash-svd: attention=false and mlp=false leave nothing to rewrite")
        check_patterns(self.name, (*self.targets, *self.exclude))

    def find(self, graph: Graph) -> tuple[list[FlashSite], list[NearMiss]]:
        """Return attention and feed-forward layers in graph order, each with the addition behind it if there is one."""
        blocks, misses = find_attention_blocks(graph) if self.attention else ([], [])
        layers, others = find_mlp_sites(graph) if self.mlp else ([], [])
        found: list[FlashSite] = [attention_with_residual(graph, block) or block for block in blocks]
        found += [mlp_with_residual(layer) or layer for layer in layers]
        place = {value.key: count for count, node in enumerate(graph.nodes()) for value in node.outputs}
        found.sort(key=lambda site: place[site.output])
        numbering = Numbering()
        return [numbering.apart(site) for site in found], [*misses, *others]

    def refuse(self, site: FlashSite) -> Reject | None:
        """Refuse what is not asked for, and weights that something else reads."""
        refused = not_asked_for(site.name, self.targets, self.exclude)
        if refused:
            return Reject(refused)
        return Reject("one of its weights is read elsewhere, too") if site.shared else None

    def taps(self, site: FlashSite) -> Mapping[str, int]:
        """Return what the layers read, where something of them is to be cut."""
        if site.nested or not self._cuts(site):
            return {}
        return {layer.x.key: layer.in_features for layer in _layers(site)}

    def _cuts(self, site: FlashSite) -> bool:
        ranks = Ranks(self.keep, self.rank)
        dense = any(not layer.is_factored for layer in _layers(site))
        return (ranks.cuts and dense) or (self.head_rank is not None and isinstance(site, AttentionBlock))

    def plan(self, site: FlashSite, statistics: SiteStatistics | None) -> FlashPlan | Reject:
        """Choose the form with the fewest multiply-adds; refuse where that is no gain, with its numbers."""
        layers = _layers(site)
        moments = {} if statistics is None else {key: item.moments for key, item in statistics.layers.items()}
        if any(found.rows == 0 or not bool(torch.isfinite(found.second).all()) for found in moments.values()):
            return Reject("calibration gave no rows for it, or numbers that are not finite")
        if not all(bool(torch.isfinite(layer.weight).all()) for layer in layers):
            return Reject("a weight holds numbers that are not finite")
        ranks = Ranks(self.keep, self.rank)
        if isinstance(site, MlpSite):
            return plan_mlp(site, ranks, self.blocks, moments)
        return plan_attention(site, ranks, self.head_rank, self.blocks, moments)

    def build(self, graph: Graph, site: FlashSite, plan: FlashPlan) -> None:
        """Write the op."""
        graph.replace(with_one_mask(graph, site, self.name), plan.insert, plan.tensors, plan.attributes)


def _layers(site: FlashSite) -> tuple[Projection, ...]:
    return site.projections if isinstance(site, AttentionBlock) else site.layers
