"""What is known of one pass while the manager runs it, and what the ledger says of it afterwards."""

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Final

from torch import Tensor

from regraft.graph import Graph, LinearSite, NearMiss, Node, Site
from regraft.ledger import Call, Entry
from regraft.passes._check import SiteCheck
from regraft.passes._pass import Plan
from regraft.passes._registry import AnyPass
from regraft.passes._statistics import SiteStatistics

MOST_REASONS: Final = 4


@dataclass(eq=False)
class Candidate:
    """A planned site on its way into the graph.

    Attributes:
        check: what was measured on it, on the worst of its calls.
        lost: why it was taken back, or "".
        times: seconds of the site alone, before and after, where they were measured.
    """

    site: Site
    plan: Plan
    check: SiteCheck | None = None
    lost: str = ""
    times: tuple[float, float] | None = None

    def changed(self, before: Graph, after: Graph) -> bool:
        """Whether anything else than before computes the output of every call."""
        outputs = [call.output for call in self.site.calls]
        return all(_program(before.value(key).producer) != _program(after.value(key).producer) for key in outputs)


@dataclass
class PassRun:
    """One pass at work.

    Attributes:
        place: number of the pass, from 0.
        text: the pass with its options, as the command line spells it.
        before: the graph that it was given.
        rejected: sites that it refused, with the reasons.
        order: places of the sites in the graph, by name.
    """

    item: AnyPass
    place: int
    text: str
    before: Graph
    statistics: dict[tuple[str, ...], SiteStatistics] = field(default_factory=dict[tuple[str, ...], SiteStatistics])
    candidates: list[Candidate] = field(default_factory=list[Candidate])
    rejected: list[tuple[Site, str]] = field(default_factory=list[tuple[Site, str]])
    misses: list[NearMiss] = field(default_factory=list[NearMiss])
    order: dict[str, int] = field(default_factory=dict[str, int])
    notes: list[str] = field(default_factory=list[str])

    @property
    def standing(self) -> list[Candidate]:
        """Candidates that were not taken back."""
        return [candidate for candidate in self.candidates if not candidate.lost]

    def of(self, site: Site) -> SiteStatistics | None:
        """Return the statistics of a site's input, if there are any; of all inputs where it has several layers."""
        if isinstance(site, LinearSite):
            return self.statistics.get(site.inputs)
        found = {key: self.statistics[(key,)] for key in self.item.taps(site) if (key,) in self.statistics}
        first = next(iter(found.values()), None)
        return None if first is None else replace(first, layers=found)

    def sample(self, site: Site) -> Tensor | None:
        """Return calibration rows of a site's input, if there are any."""
        statistics = self.of(site)
        return None if statistics is None else statistics.sample

    def entries(self) -> list[Entry]:
        """Return what became of every site, in graph order."""
        entries = [
            Entry(self.item.name, site.name, "kept", site.describe(), "", reason, pass_place=self.place)
            for site, reason in self.rejected
        ]
        entries += [_entry(self, candidate) for candidate in self.candidates]
        entries.sort(key=lambda entry: self.order[entry.site])
        if self.item.tells_misses:
            entries += [
                Entry(self.item.name, m.name, "kept", "", "", m.reason, pass_place=self.place) for m in self.misses
            ]
        return entries

    def nothing_to_do(self) -> str:
        """Return why no site can be rewritten, the most frequent reasons first."""
        reasons = Counter(reason for _, reason in self.rejected)
        if not reasons:
            found = Counter(miss.reason for miss in self.misses).most_common(MOST_REASONS - 1)
            near = "; ".join(f"{reason} ({count}x)" for reason, count in found)
            return f"no site in {self.before.name}" + (f"; nearest: {near}" if near else "")
        listed = "; ".join(f"{reason} ({count}x)" for reason, count in reasons.most_common(MOST_REASONS))
        left = len(reasons) - MOST_REASONS
        more = f"; and {left} more reasons" if left > 0 else ""
        return f"none of {len(self.rejected)} layers in {self.before.name} can be rewritten: {listed}{more}"


def _entry(run: PassRun, candidate: Candidate) -> Entry:
    site, plan, check = candidate.site, candidate.plan, candidate.check
    return Entry(
        pass_name=run.item.name,
        site=site.name,
        status="rolled back" if candidate.lost else "rewritten",
        before=site.describe(),
        after=plan.after,
        reason=candidate.lost,
        announced_error=plan.announced_error,
        measured_error=None if check is None else check.error,
        checked_on="" if check is None else check.rows,
        bytes_before=site.bytes,
        bytes_after=plan.bytes_after,
        op=plan.op,
        removed=tuple(site.nodes),
        output=site.output,
        other_calls=tuple(Call(call.output, tuple(call.nodes)) for call in site.calls[1:]),
        pass_place=run.place,
        seconds_before=None if candidate.times is None else candidate.times[0],
        seconds_after=None if candidate.times is None else candidate.times[1],
    )


def _program(node: Node | None) -> object:
    """What a node computes: operation, operands and attributes."""
    if node is None:
        return None
    operands = [None if value is None else value.key for value in node.inputs]
    return node.op, operands, dict(node.attributes)
