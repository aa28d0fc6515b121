"""The pass `low-rank`: a dense linear layer becomes two thin factors."""

import math
from dataclasses import dataclass
from typing import ClassVar

from regraft.errors import OptionError
from regraft.graph import Graph, LinearSite, NearMiss, find_linear_sites
from regraft.numerics import lowrank
from regraft.ops import lowrank_linear
from regraft.passes._pass import Plan, Reject, SitePass, check_patterns
from regraft.passes._selection import refuse_layer, refuse_not_finite
from regraft.passes._statistics import SiteStatistics


@dataclass(frozen=True, eq=False)
class LowRankPlan(Plan):
    """Factors for one layer."""

    factors: lowrank.Factors


@dataclass(frozen=True)
class LowRank(SitePass[LinearSite, LowRankPlan]):
    """Replace `linear` by `lowrank_linear`: two products through a rank smaller than either extent.

    With calibration inputs the factors reproduce the layer's output on them best (LoRD/AFM), else the weight (SVD).

    Attributes:
        keep: share of the layer's parameters to keep, in (0, 1); not looked at when rank or energy is given.
        rank: the rank itself, for every layer.
        energy: smallest rank that keeps this share of the squared singular values (of the output's energy, when
            calibrated), in (0, 1).
        targets: layers to rewrite, as globs or `re:` patterns; all when empty.
        exclude: layers to leave alone, as globs or `re:` patterns.
        heads: also rewrite classifier heads, poolers and layers that the model returns directly; naming a layer in
            targets does so, too.
        centred: keep the mean output on calibration inputs exact, by a new bias.
        ridge: share of the mean input power added to every direction; 0.1 helps when calibration is short.
    """

    name: ClassVar[str] = "low-rank"
    uses_calibration: ClassVar[bool] = True

    keep: float = 0.5
    rank: int | None = None
    energy: float | None = None
    targets: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    heads: bool = False
    centred: bool = True
    ridge: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.keep < 1:
            raise OptionError(f"low-rank: keep must be above 0 and below 1; got {self.keep}")
        if self.rank is not None and self.rank < 1:
            raise OptionError(f"low-rank: rank must be at least 1; got {self.rank}")
        if self.energy is not None and not 0 < self.energy < 1:
            raise OptionError(f"low-rank: energy must be above 0 and below 1; got {self.energy}")
        if self.rank is not None and self.energy is not None:
            raise OptionError(f"low-rank: rank={self.rank} and energy={self.energy} exclude each other; give one")
        if not 0 <= self.ridge < math.inf:
            raise OptionError(f"low-rank: ridge must be at least 0; got {self.ridge}")
        check_patterns(self.name, (*self.targets, *self.exclude))

    def find(self, graph: Graph) -> tuple[list[LinearSite], list[NearMiss]]:
        """Return all linear layers."""
        return find_linear_sites(graph)

    def refuse(self, site: LinearSite) -> Reject | None:
        """Refuse what is not asked for, tied weights, and heads that were not asked for by name."""
        return refuse_layer(site, targets=self.targets, exclude=self.exclude, heads=self.heads)

    def plan(self, site: LinearSite, statistics: SiteStatistics | None) -> LowRankPlan | Reject:
        """Choose the rank, refuse one that does not make the layer smaller, and factorize."""
        refused = refuse_not_finite(site, statistics)
        if refused is not None:
            return refused
        rank = self._rank(site, statistics)
        problem = self._rank_problem(site, rank)
        if problem:
            return Reject(problem)
        factors = self._factorize(site, rank, statistics)
        width = site.in_features + site.out_features
        elements = rank * width + (0 if factors.bias is None else site.out_features)
        if elements * site.weight.element_size() >= site.bytes:
            return Reject(f"rank {rank} with its new bias would not be smaller than the dense {site.shape} layer")
        return LowRankPlan(
            op=lowrank_linear.op.name,
            after=f"rank {rank}",
            announced_error=_announced(site, factors, statistics),
            announced_on="isotropic" if statistics is None else "calibration",
            bytes_after=elements * site.weight.element_size(),
            factors=factors,
        )

    def build(self, graph: Graph, site: LinearSite, plan: LowRankPlan) -> None:
        """Write the factors; a bias that did not change stays the same constant."""
        factors = plan.factors
        keeps_bias = factors.bias is site.bias and site.beta == 1.0 and site.bias_fits
        bias = site.bias_value if keeps_bias else factors.bias
        graph.replace(site, lowrank_linear.op, {"down": factors.down, "up": factors.up, "bias": bias})

    def _rank_problem(self, site: LinearSite, rank: int) -> str:
        if rank < 1:
            return f"keep={self.keep} leaves rank 0 for the {site.shape} layer"
        if rank < site.break_even_rank:
            return ""
        if self.rank is None:
            return f"rank {rank} would not be smaller than the dense {site.shape} layer"
        return f"rank must be below {site.break_even_rank} for a {site.shape} layer to get smaller; got {rank}"

    def _rank(self, site: LinearSite, statistics: SiteStatistics | None) -> int:
        if self.rank is not None:
            return self.rank
        if self.energy is None:
            return lowrank.rank_for(site.out_features, site.in_features, self.keep)
        if statistics is None:
            return lowrank.rank_for_energy(lowrank.weight_energies(site.weight), self.energy)
        energies = lowrank.output_energies(site.weight, statistics.moments, centred=self.centred, ridge=self.ridge)
        return lowrank.rank_for_energy(energies, self.energy)

    def _factorize(self, site: LinearSite, rank: int, statistics: SiteStatistics | None) -> lowrank.Factors:
        if statistics is None:
            return lowrank.truncated_svd(site.weight, rank, site.bias)
        return lowrank.output_projection(
            site.weight, rank, statistics.moments, site.bias, centred=self.centred, ridge=self.ridge
        )


def _announced(site: LinearSite, factors: lowrank.Factors, statistics: SiteStatistics | None) -> float:
    """The error over all calibration rows, or on the sample that the layer is checked on, whichever is larger.

    A few rows of huge activations can dominate the former and be absent from the latter.
    """
    if statistics is None:
        return factors.error
    return max(factors.error, lowrank.sample_error(site.weight, factors, statistics.sample, site.bias))
