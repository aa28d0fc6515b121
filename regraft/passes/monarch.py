"""The pass `monarch`: a dense linear layer becomes two block-diagonal factors with a permutation between them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Final, Literal

import torch

from regraft.errors import OptionError
from regraft.graph import Graph, LinearSite, NearMiss, find_linear_sites
from regraft.numerics import monarch, monarch_refit
from regraft.numerics.partition import Partition
from regraft.ops import monarch_linear
from regraft.passes._pass import Plan, Reject, SitePass, check_patterns
from regraft.passes._selection import refuse_layer
from regraft.passes._statistics import SiteStatistics

Order = Literal["auto", "contiguous", "strided-results", "strided-inputs", "strided"]

ORDERS: Final[Mapping[str, tuple[tuple[bool, bool], ...]]] = {
    "auto": monarch.ORDERS,
    "contiguous": ((False, False),),
    "strided-results": ((False, True),),
    "strided-inputs": ((True, False),),
    "strided": ((True, True),),
}
"""(in_strided, out_strided) that each choice allows."""

COPY: Final = 44
"""Multiply-adds that take as long as putting one value in another place.

The op saves multiply-adds and moves every intermediate and every result once. Measured in ONNX Runtime on one core, 256
rows, 247 layers from 64x64 to 2048x1024: 0.77 ns a value, 0.018 ns a multiply-add; with this number, the four layers
that get slower and are not told from the others are 64x64.
"""


@dataclass(frozen=True, eq=False)
class MonarchPlan(Plan):
    """Factors for one layer."""

    factors: monarch.Factors


@dataclass(frozen=True)
class Monarch(SitePass[LinearSite, MonarchPlan]):
    """Replace `linear` by `monarch_linear`: a grid of blocks of low rank, applied as two batched products.

    A weight that is a Monarch matrix (a trained Monarch layer, a discrete Fourier transform) is found out and stays
    exact, at the block rank that it has. Any other becomes the closest one: for a generic trained layer somewhat
    further off than low-rank factors of the same size, and slower, so a start for fine-tuning rather than a result.

    Attributes:
        blocks: block count of inputs and of outputs; need not divide them.
        out_blocks: block count of the outputs, where it is another.
        keep: share of the layer's parameters to keep at most, in (0, 1); not looked at when block_rank is given.
        block_rank: largest rank of a block, for every layer.
        order: which features form a block: "contiguous" ones are the fastest; "strided-results", as published, takes
            every l-th output, "strided-inputs" every k-th input, "strided" both; "auto" is contiguous unless another
            order is exact or less than half as far off.
        refit: with calibration inputs, fit the factors to the layer's output on them, from the analytic projection or
            better.
        centred: when refitting, keep the mean output on calibration inputs exact, by a new bias.
        ridge: when refitting, share of the mean input power added to every direction; less only with much calibration.
        targets: layers to rewrite, as globs or `re:` patterns; all when empty.
        exclude: layers to leave alone, as globs or `re:` patterns.
        heads: also rewrite classifier heads, poolers and layers that the model returns directly; naming a layer in
            targets does so, too.
        slower: also rewrite layers that get smaller but, as many values as they move about, hardly faster.
    """

    name: ClassVar[str] = "monarch"
    uses_calibration: ClassVar[bool] = True

    blocks: int = 4
    out_blocks: int | None = None
    keep: float = 0.5
    block_rank: int | None = None
    order: Order = "auto"
    refit: bool = True
    centred: bool = True
    ridge: float = 0.1
    targets: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    heads: bool = False
    slower: bool = False

    def __post_init__(self) -> None:
        if self.blocks < 1 or (self.out_blocks is not None and self.out_blocks < 1):
            count = self.blocks if self.blocks < 1 else self.out_blocks
            raise OptionError(f"monarch: block counts must be at least 1; got {count}")
        if self.blocks == 1 and self.out_blocks in (None, 1):
            raise OptionError("monarch: one block is a low-rank layer; at least 2 are needed", hint="use low-rank")
        if not 0 < self.keep < 1:
            raise OptionError(f"monarch: keep must be above 0 and below 1; got {self.keep}")
        if self.block_rank is not None and self.block_rank < 1:
            raise OptionError(f"monarch: block_rank must be at least 1; got {self.block_rank}")
        if self.order not in ORDERS:
            raise OptionError(f"monarch: order must be one of {', '.join(ORDERS)}; got {self.order!r}")
        if not 0 <= self.ridge < math.inf:
            raise OptionError(f"monarch: ridge must be at least 0; got {self.ridge}")
        check_patterns(self.name, (*self.targets, *self.exclude))

    def find(self, graph: Graph) -> tuple[list[LinearSite], list[NearMiss]]:
        """Return all linear layers."""
        return find_linear_sites(graph)

    def refuse(self, site: LinearSite) -> Reject | None:
        """Refuse what is not asked for, tied weights, and heads that were not asked for by name."""
        return refuse_layer(site, targets=self.targets, exclude=self.exclude, heads=self.heads)

    def plan(self, site: LinearSite, statistics: SiteStatistics | None) -> MonarchPlan | Reject:
        """Choose the blocks, refuse those that do not make the layer smaller, and project."""
        problem = self._problem(site, statistics)
        if problem:
            return Reject(problem)
        largest = self._partition(site)
        choice = monarch.choose_blocks(site.weight, largest, self._rank(largest), ORDERS[self.order])
        if not (self.slower or _gets_faster(choice)):
            shown = f"{choice.partition.out_blocks}x{choice.partition.in_blocks} blocks of rank {choice.rank}"
            return Reject(f"a {site.shape} layer in {shown} would not get faster; slower=true rewrites it")
        fitted = None if choice.exact or not self.refit else statistics
        factors = self._factorize(site, choice, fitted)
        size = factors.partition.parameters(factors.rank) + (0 if factors.bias is None else site.out_features)
        if size * site.weight.element_size() >= site.bytes:
            shown = f"blocks of rank {factors.rank}"
            return Reject(f"{shown} with its new bias would not be smaller than the dense {site.shape} layer")
        return MonarchPlan(
            op=monarch_linear.op.name,
            after=_after(factors),
            announced_error=_announced(site, factors, fitted),
            announced_on="isotropic" if fitted is None else "calibration",
            bytes_after=size * site.weight.element_size(),
            factors=factors,
        )

    def build(self, graph: Graph, site: LinearSite, plan: MonarchPlan) -> None:
        """Write the factors; a bias that did not change stays the same constant."""
        factors = plan.factors
        keeps_bias = factors.bias is site.bias and site.beta == 1.0 and site.bias_fits
        tensors = {
            "right": factors.right,
            "left": factors.left,
            "bias": site.bias_value if keeps_bias else factors.bias,
        }
        graph.replace(
            site, monarch_linear.op, tensors, monarch_linear.layer_attributes(factors.partition, factors.rank)
        )

    def _partition(self, site: LinearSite) -> Partition:
        return Partition(site.in_features, site.out_features, self.blocks, self.out_blocks or self.blocks)

    def _rank(self, partition: Partition) -> int:
        return partition.rank_for(self.keep) if self.block_rank is None else self.block_rank

    def _problem(self, site: LinearSite, statistics: SiteStatistics | None) -> str:
        out_blocks = self.out_blocks or self.blocks
        if self.blocks > site.in_features or out_blocks > site.out_features:
            return f"a {site.shape} layer cannot be cut into {out_blocks}x{self.blocks} blocks"
        partition = self._partition(site)
        rank, break_even = self._rank(partition), partition.break_even_rank
        if rank < 1:
            return f"keep={self.keep} leaves block rank 0 for the {site.shape} layer"
        if rank >= break_even:
            return f"block_rank must be below {break_even} for a {site.shape} layer to get smaller; got {rank}"
        if not bool(torch.isfinite(site.weight).all()):
            return "its weight holds numbers that are not finite"
        if self.refit and statistics is not None and not bool(torch.isfinite(statistics.moments.second).all()):
            return "its calibration inputs hold numbers that are not finite"
        return ""

    def _factorize(
        self, site: LinearSite, choice: monarch.Choice, statistics: SiteStatistics | None
    ) -> monarch.Factors:
        if statistics is None:
            return monarch.project(site.weight, choice.partition, choice.rank, site.bias)
        return monarch_refit.fit_outputs(
            site.weight,
            choice.partition,
            choice.rank,
            statistics.moments,
            site.bias,
            centred=self.centred,
            ridge=self.ridge,
        )


def _gets_faster(choice: monarch.Choice) -> bool:
    cut = choice.partition
    saved = cut.in_features * cut.out_features - cut.parameters(choice.rank)
    moved = cut.in_blocks * cut.out_blocks * choice.rank + cut.out_features
    return saved > COPY * moved


def _announced(site: LinearSite, factors: monarch.Factors, statistics: SiteStatistics | None) -> float:
    """The error over all calibration rows, or on the sample that the layer is checked on, whichever is larger.

    A few rows of huge activations can dominate the former and be absent from the latter.
    """
    if statistics is None:
        return factors.error
    return max(factors.error, monarch_refit.sample_error(site.weight, factors, statistics.sample, site.bias))


def _after(factors: monarch.Factors) -> str:
    cut = factors.partition
    sides = [name for name, strided in (("inputs", cut.in_strided), ("results", cut.out_strided)) if strided]
    order = f", {' and '.join(sides)} strided" if sides else ""
    return f"{cut.out_blocks}x{cut.in_blocks} blocks of rank {factors.rank}{order}"
