"""How the pass flash-svd makes a feed-forward layer walk its hidden width."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from regraft.graph import MlpSite, Projection
from regraft.numerics import lowrank
from regraft.numerics.blocks import mlp_blocks
from regraft.numerics.moments import Moments
from regraft.ops.lowrank_mlp import op as lowrank_mlp
from regraft.passes._flash_plan import FlashPlan, bytes_of
from regraft.passes._pass import Reject


@dataclass(frozen=True)
class Ranks:
    """How dense layers are cut: to a share of their parameters, or to a rank; not at all when both are None."""

    keep: float | None
    rank: int | None

    @property
    def cuts(self) -> bool:
        """Whether dense layers become factors."""
        return self.keep is not None or self.rank is not None

    def of(self, layer: Projection) -> int:
        """Return the rank for a dense layer."""
        if self.rank is not None:
            return self.rank
        assert self.keep is not None, "asked only where dense layers are cut"
        return lowrank.rank_for(layer.out_features, layer.in_features, self.keep)


@dataclass(frozen=True, eq=False)
class Cut:
    """A layer as factors: `down` is None where it stays dense; `error` is that of its product."""

    down: Tensor | None
    up: Tensor
    bias: Tensor | None
    error: float = 0.0

    @property
    def rank(self) -> int:
        """Rank, or the inner extent of a dense layer."""
        return int(self.up.shape[1])


def cut(layer: Projection, ranks: Ranks, moments: Mapping[str, Moments]) -> Cut | Reject:
    """Return a layer's factors: those that it has, or new ones where dense layers are cut.

    With moments of what it reads, its output on such inputs is met best, else its weight.
    """
    if layer.is_factored or not ranks.cuts:
        return Cut(layer.down, layer.up, layer.bias)
    rank = ranks.of(layer)
    shape = f"{layer.out_features}x{layer.in_features}"
    if rank < 1:
        return Reject(f"keep={ranks.keep} leaves rank 0 for {layer.name} ({shape})")
    if rank * (layer.out_features + layer.in_features) >= layer.out_features * layer.in_features:
        return Reject(f"rank {rank} would not be smaller than {layer.name} ({shape})")
    known = moments.get(layer.x.key)
    if known is None:
        factors = lowrank.truncated_svd(layer.weight, rank, layer.bias)
    else:
        factors = lowrank.output_projection(layer.weight, rank, known, layer.bias)
    return Cut(factors.down, factors.up, factors.bias, factors.error)


def plan_mlp(site: MlpSite, ranks: Ranks, blocks: int, moments: Mapping[str, Moments]) -> FlashPlan | Reject:
    """Plan a feed-forward layer in factors, or say why not; `moments` are of what its layers read, by key."""
    if not ranks.cuts and not any(layer.is_factored for layer in site.layers):
        return Reject("its layers are dense; run low-rank before, or give keep= or rank=")
    if blocks and (blocks - 1) * -(-site.hidden // blocks) >= site.hidden:
        return Reject(f"its hidden width of {site.hidden} has no {blocks} blocks of {-(-site.hidden // blocks)}")
    cuts = [cut(layer, ranks, moments) for layer in site.layers]
    refused = next((item for item in cuts if isinstance(item, Reject)), None)
    if refused is not None:
        return refused
    *inward, outer = [item for item in cuts if isinstance(item, Cut)]
    named: dict[str, Tensor | None] = {}
    for label, item in zip(("in",) if site.gate is None else ("gate", "in"), inward, strict=True):
        named |= {f"{label}_down": item.down, f"{label}_up": item.up, f"{label}_bias": item.bias}
    down, up = (outer.up, None) if outer.down is None else (outer.down, outer.up)
    named |= {"out_down": down, "out_up": up, "out_bias": outer.bias}
    tensors = {name: tensor for name, tensor in named.items() if tensor is not None}
    read = sum(item.rank for item in inward) + down.shape[0]
    count = blocks or mlp_blocks(site.hidden, read, outer.up.element_size())
    ranks_text = "/".join("dense" if item.down is None else str(item.rank) for item in (*inward, outer))
    return FlashPlan(
        lowrank_mlp.name,
        f"ranks {ranks_text}, {count} block{'s' if count > 1 else ''}",
        max(item.error for item in (*inward, outer)),
        "calibration" if moments else "isotropic",
        bytes_of(tensors),
        tensors=tensors,
        attributes={"activation": site.activation, "blocks": count},
        insert=lowrank_mlp,
    )
