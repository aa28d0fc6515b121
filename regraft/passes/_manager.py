"""The pass manager: finds sites, plans, builds on a copy, checks, and takes back what does not hold.

For every pass, in an order that respects what passes say of each other:

    find sites -> collect calibration statistics -> plan or reject -> build on a copy -> check each site numerically
    -> validate the graph -> measure the model's error -> hold it to the budget -> write the ledger

Nothing of a graph that was handed in is changed; a site or a pass that breaks its promise is built without, from the
graph as it was before the pass.
"""

import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

from regraft.errors import (
    BudgetError,
    GraphError,
    InputError,
    NoMatchError,
    RegraftError,
    RegraftWarning,
    VerificationError,
)
from regraft.graph import Graph, LinearSite, NearMiss
from regraft.graph.graph import Outputs
from regraft.ledger import Entry, Ledger, PassRecord
from regraft.passes._budget import Gate
from regraft.passes._check import Question, SiteCheck, check_sites, model_error
from regraft.passes._instruments import Instrument
from regraft.passes._order import order_passes
from regraft.passes._pass import Plan, Reject
from regraft.passes._registry import AnyPass, spelling
from regraft.passes._statistics import SiteStatistics, collect

OnViolation = Literal["rollback", "raise", "warn"]
Report = Callable[[str, int, int], None]
"""Progress: (stage, done, total); total 0 when it is not known."""


def no_report(stage: str, done: int, total: int) -> None:
    """Show no progress."""


@dataclass(frozen=True)
class Settings:
    """How passes are run.

    Attributes:
        calibration: batches of inputs, iterated once a pass that uses them; None when there are none.
        probes: a few batches on which the model's error is measured; none when it cannot be run.
        gates: limits that the rewritten model must keep.
        on_violation: what to do about a site that breaks its promise, or a limit that is not kept.
        strict: whether a pass that rewrites nothing is an error.
        seed: of everything random.
        report: called with progress.
        instruments: hooks around passes.
    """

    calibration: Iterable[Any] | None = None
    probes: Sequence[Any] = ()
    gates: Sequence[Gate] = ()
    on_violation: OnViolation = "rollback"
    strict: bool = True
    seed: int = 0
    report: Report = no_report
    instruments: Sequence[Instrument] = ()


@dataclass(eq=False)
class _Candidate:
    """A planned site on its way into the graph."""

    site: LinearSite
    plan: Plan
    check: SiteCheck | None = None
    lost: str = ""


@dataclass
class _PassRun:
    """What is known of one pass while it runs."""

    item: AnyPass
    before: Graph
    statistics: dict[str, SiteStatistics] = field(default_factory=dict[str, SiteStatistics])
    candidates: list[_Candidate] = field(default_factory=list[_Candidate])
    rejected: list[tuple[LinearSite, str]] = field(default_factory=list[tuple[LinearSite, str]])
    misses: list[NearMiss] = field(default_factory=list[NearMiss])
    order: dict[str, int] = field(default_factory=dict[str, int])
    notes: list[str] = field(default_factory=list[str])

    @property
    def standing(self) -> list[_Candidate]:
        return [candidate for candidate in self.candidates if not candidate.lost]

    def of(self, site: LinearSite) -> SiteStatistics | None:
        return self.statistics.get(site.input)


def run_passes(graph: Graph, passes: Sequence[AnyPass], settings: Settings) -> tuple[Graph, Ledger]:
    """Return the rewritten graph and the ledger; `graph` itself is not changed.

    Raises:
        OptionError: when the passes cannot be ordered.
        NoMatchError: when a pass rewrites nothing and `strict` is set.
        VerificationError, BudgetError: when `on_violation` is "raise".
    """
    return _Manager(settings, [graph.run(batch)[0] for batch in settings.probes]).run(graph, order_passes(passes))


@dataclass
class _Manager:
    settings: Settings
    reference: Sequence[Outputs]
    ledger: Ledger = field(default_factory=Ledger)

    def run(self, graph: Graph, passes: Sequence[AnyPass]) -> tuple[Graph, Ledger]:
        for place, item in enumerate(passes):
            text = spelling(item)
            for instrument in self.settings.instruments:
                instrument.before_pass(place, text, graph)
            try:
                rewritten = self._run_pass(item, text, graph)
            except RegraftError:
                raise
            except Exception as error:  # whatever a pass raises is shown to the instruments, then handed on
                for instrument in self.settings.instruments:
                    instrument.on_crash(place, text, graph, error)
                raise
            for instrument in self.settings.instruments:
                instrument.after_pass(place, text, rewritten, rewritten is not graph)
            graph = rewritten
        return graph, self.ledger

    def _run_pass(self, item: AnyPass, text: str, before: Graph) -> Graph:
        begin = time.perf_counter()
        run = _PassRun(item, before)
        self._plan(run)
        graph = self._build_checked(run) if run.candidates else before
        if run.candidates:
            graph = self._within_budget(run, graph)
        self._write_entries(run)
        error = self._error_of(graph)
        self.ledger.passes.append(PassRecord(item.name, text, time.perf_counter() - begin, error, tuple(run.notes)))
        if not run.candidates:
            message = _nothing_to_do(run)
            if self.settings.strict:
                raise NoMatchError(message, hint=f"`regraft explain MODEL {item.name}` lists every reason")
        return graph

    def _plan(self, run: _PassRun) -> None:
        sites, run.misses = run.item.find(run.before)
        run.order = {site.name: place for place, site in enumerate(sites)}
        wanted: list[LinearSite] = []
        for site in sites:
            refused = run.item.refuse(site)
            if refused is None:
                wanted.append(site)
            else:
                run.rejected.append((site, refused.reason))
        run.statistics = self._statistics(run, wanted)
        for place, site in enumerate(wanted):
            self.settings.report(f"{run.item.name}: plan", place, len(wanted))
            outcome = run.item.plan(site, run.of(site))
            if isinstance(outcome, Reject):
                run.rejected.append((site, outcome.reason))
            else:
                run.candidates.append(_Candidate(site, outcome))
        if wanted:
            self.settings.report(f"{run.item.name}: plan", len(wanted), len(wanted))

    def _statistics(self, run: _PassRun, wanted: Sequence[LinearSite]) -> dict[str, SiteStatistics]:
        batches = self.settings.calibration
        if batches is None and run.item.needs == "calibration":
            raise InputError(f"{run.item.name} needs calibration inputs; pass calibration=batches")
        if batches is None or not wanted or not (run.item.uses_calibration or run.item.needs == "calibration"):
            return {}
        total = len(batches) if isinstance(batches, Sequence) else 0
        stage = f"{run.item.name}: calibrate"
        self.settings.report(stage, 0, total)
        return collect(
            run.before,
            wanted,
            batches,
            seed=self.settings.seed,
            advance=lambda done: self.settings.report(stage, done, total),
        )

    def _build(self, run: _PassRun, chosen: Sequence[_Candidate]) -> Graph:
        graph = run.before.copy()
        for candidate in chosen:
            run.item.build(graph, candidate.site, candidate.plan)
            graph.annotate(candidate.site.output, {"regraft.pass": run.item.name, "regraft.site": candidate.site.name})
        graph.validate()
        return graph

    def _build_checked(self, run: _PassRun) -> Graph:
        try:
            graph = self._build(run, run.candidates)
        except GraphError as error:
            reason = self._violated(VerificationError, run, f"the rewritten graph is not valid: {error}")
            for candidate in run.candidates:
                candidate.lost = reason or str(error)  # a broken graph cannot be kept, whatever was asked
            return run.before
        stage = f"{run.item.name}: check"
        total = len(run.candidates)
        questions = [Question(item.site, item.plan, _sample(run.of(item.site))) for item in run.candidates]
        checks = check_sites(
            graph, questions, self.settings.seed, lambda done: self.settings.report(stage, done, total)
        )
        for candidate, check in zip(run.candidates, checks, strict=True):
            candidate.check = check
            if not check.holds:
                candidate.lost = self._violated(VerificationError, run, f"{candidate.site.name}: {check}")
        if len(run.standing) == len(run.candidates):
            return graph
        return self._build(run, run.standing) if run.standing else run.before

    def _violated(self, error: type[RegraftError], run: _PassRun, what: str) -> str:
        """Do what `on_violation` says; return the reason for a rollback, or "" when the violation is let pass."""
        if self.settings.on_violation == "raise":
            raise error(f"{run.item.name}: {what}")
        if self.settings.on_violation == "warn":
            warnings.warn(f"{run.item.name}: {what}; kept, as on_violation='warn' asks", RegraftWarning, stacklevel=2)
            run.notes.append(f"{what}; kept, as on_violation='warn' asks")
            return ""
        return what.removeprefix(run.item.name)

    def _within_budget(self, run: _PassRun, graph: Graph) -> Graph:
        for gate in self.settings.gates:
            if not run.standing:
                return run.before
            found = gate.violation(graph)
            if not found:
                continue
            reason = self._violated(BudgetError, run, f"budget {found}")
            if reason:
                graph = self._shrink(run, gate, reason)
        return graph

    def _shrink(self, run: _PassRun, gate: Gate, reason: str) -> Graph:
        """Keep the most faithful sites, as many as the gate allows: bisection over sites ordered by error."""
        ranked = sorted(run.standing, key=lambda item: item.check.error if item.check else 0.0)
        fits, fails = 0, len(ranked)
        best: Graph = run.before
        while gate.by_site and fails - fits > 1:
            middle = (fits + fails) // 2
            self.settings.report(f"{run.item.name}: fit the budget", len(ranked) - (fails - fits), len(ranked))
            attempt = self._build(run, ranked[:middle])
            if gate.violation(attempt):
                fails = middle
            else:
                fits, best = middle, attempt
        for candidate in ranked[fits:]:
            candidate.lost = reason
        run.notes.append(f"{reason}; {len(ranked) - fits} of {len(ranked)} rewrites taken back")
        return best

    def _error_of(self, graph: Graph) -> float | None:
        if not self.reference:
            return None
        return model_error(self.reference, [graph.run(batch)[0] for batch in self.settings.probes])

    def _write_entries(self, run: _PassRun) -> None:
        entries = [
            Entry(run.item.name, site.name, "kept", site.describe(), "", reason) for site, reason in run.rejected
        ]
        entries += [_entry(run.item.name, candidate) for candidate in run.candidates]
        self.ledger.entries.extend(sorted(entries, key=lambda entry: run.order[entry.site]))


def _sample(statistics: SiteStatistics | None) -> Tensor | None:
    return None if statistics is None else statistics.sample


def _entry(pass_name: str, candidate: _Candidate) -> Entry:
    site, plan, check = candidate.site, candidate.plan, candidate.check
    return Entry(
        pass_name=pass_name,
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
    )


def _nothing_to_do(run: _PassRun) -> str:
    reasons = Counter(reason for _, reason in run.rejected)
    if not reasons:
        found = Counter(miss.reason for miss in run.misses).most_common(3)
        near = "; ".join(f"{reason} ({count}x)" for reason, count in found)
        return f"{run.item.name}: no site in {run.before.name}" + (f"; nearest: {near}" if near else "")
    listed = "; ".join(f"{reason} ({count}x)" for reason, count in reasons.most_common(4))
    more = f"; and {len(reasons) - 4} more reasons" if len(reasons) > 4 else ""
    return f"{run.item.name}: none of {len(run.rejected)} layers in {run.before.name} can be rewritten: {listed}{more}"
