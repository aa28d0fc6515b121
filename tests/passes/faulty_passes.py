"""Passes that break their promises on purpose, at the layers that they are told."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch

from regraft.graph import Graph, LinearSite
from regraft.numerics.lowrank import Factors
from regraft.ops import lowrank_linear
from regraft.passes import LowRank, Reject
from regraft.passes._pass import matches_name
from regraft.passes.low_rank import LowRankPlan

Fault = Literal[
    "none",
    "writes wrong factors",
    "announces too little",
    "announces nan",
    "writes nan",
    "loses the bias",
    "writes another shape",
    "raises in build",
    "raises halfway through build",
    "changes nothing",
    "raises in plan",
]


@dataclass(frozen=True)
class Faulty(LowRank):
    """Low-rank with a fault at some layers."""

    name: ClassVar[str] = "faulty"

    rank: int | None = 3
    fault: Fault = "none"
    at: str = "layers.1"

    def _is_faulty(self, site: LinearSite) -> bool:
        return matches_name(site.name, self.at)

    def plan(self, site: LinearSite, statistics: Any) -> LowRankPlan | Reject:
        if self.fault == "raises in plan" and self._is_faulty(site):
            raise ZeroDivisionError("this is a bug of the pass")
        plan = super().plan(site, statistics)
        if isinstance(plan, Reject) or not self._is_faulty(site):
            return plan
        if self.fault == "announces too little":
            return replace(plan, announced_error=plan.announced_error / 4)
        return replace(plan, announced_error=float("nan")) if self.fault == "announces nan" else plan

    def build(self, graph: Graph, site: LinearSite, plan: LowRankPlan) -> None:
        fault = self.fault if self._is_faulty(site) else "none"
        if fault == "changes nothing":
            return
        if fault == "raises in build":
            raise ZeroDivisionError("this is a bug of the pass\nwith a second line")
        super().build(graph, site, replace(plan, factors=_spoiled(fault, plan.factors)))
        if fault == "raises halfway through build":
            raise ZeroDivisionError("this is a bug of the pass")


def _spoiled(fault: Fault, factors: Factors) -> Factors:
    if fault == "writes wrong factors":
        return replace(factors, up=-factors.up)
    if fault == "writes nan":
        return replace(factors, up=factors.up.clone().fill_(float("nan")))
    if fault == "loses the bias":
        return replace(factors, bias=None)
    if fault == "writes another shape":
        return replace(factors, up=torch.cat([factors.up, factors.up]), bias=None)
    return factors


@dataclass(frozen=True)
class Exact(LowRank):
    """Writes the weight itself beside an identity, and promises that nothing changes."""

    name: ClassVar[str] = "exact"
    exact: ClassVar[bool] = True
    uses_calibration: ClassVar[bool] = False

    def plan(self, site: LinearSite, statistics: Any) -> LowRankPlan | Reject:
        identity = torch.eye(site.in_features, dtype=site.weight.dtype)
        factors = Factors(identity, site.weight.contiguous(), site.bias, 0.0)
        return LowRankPlan(lowrank_linear.op.name, "the same", 0.0, "isotropic", 0, factors)
