"""The pass manager: finds sites, plans, builds on a copy, checks, and takes back what does not hold.

For every pass, in an order that respects what passes say of each other:

    find sites -> collect calibration statistics -> plan or reject -> build on a copy -> check each site numerically
    -> validate the graph -> measure the model's error -> hold it to the budget -> write the ledger

Nothing of a graph that was handed in is changed; a site or a pass that breaks its promise is built without, from the
graph as it was before the pass.
"""

import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, Literal

from regraft.errors import (
    BudgetError,
    GraphError,
    InputError,
    NoMatchError,
    RegraftError,
    RegraftWarning,
    VerificationError,
)
from regraft.graph import Graph, LinearSite, Site
from regraft.graph.graph import Outputs
from regraft.ledger import Ledger, PassRecord
from regraft.passes._budget import Gate, least_speedup
from regraft.passes._build import build_sites
from regraft.passes._check import Question, SiteCheck, check_sites, model_error, violation_of, worst
from regraft.passes._instruments import Instrument
from regraft.passes._order import order_passes
from regraft.passes._pass import Reject
from regraft.passes._regions import Region, check_regions
from regraft.passes._registry import AnyPass, spelling
from regraft.passes._run import Candidate, PassRun
from regraft.passes._site_times import site_times
from regraft.passes._statistics import SiteStatistics, collect
from regraft.passes._targets import idle_patterns

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
        strict: whether a pass that rewrites nothing is an error, and a target or exclusion that fits no layer.
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


def run_passes(graph: Graph, passes: Sequence[AnyPass], settings: Settings) -> tuple[Graph, Ledger]:
    """Return the rewritten graph and the ledger; `graph` itself is not changed.

    Raises:
        OptionError: when the passes cannot be ordered.
        NoMatchError: when a pass rewrites nothing, or a target or exclusion fits no layer, and `strict` is set.
        VerificationError, BudgetError: when `on_violation` is "raise".
    """
    if isinstance(settings.calibration, Iterator):  # every pass iterates it anew
        settings = replace(settings, calibration=list(settings.calibration))
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
                rewritten = self._run_pass(PassRun(item, place, text, graph))
            except RegraftError:
                raise
            except Exception as error:  # whatever a pass raises is shown to the instruments, then handed on
                self._crashed(place, text, graph, error)
                raise
            for instrument in self.settings.instruments:
                instrument.after_pass(place, text, rewritten, rewritten is not graph)
            graph = rewritten
        return graph, self.ledger

    def _run_pass(self, run: PassRun) -> Graph:
        begin, given = time.perf_counter(), run.before
        if any(node.op in run.item.expands for node in given.nodes()):
            run.before = given.expanded(run.item.expands)
        self._plan(run)
        nothing = "" if run.candidates else run.nothing_to_do()
        if nothing:
            run.notes.append(nothing)
        graph = self._within_budget(run, self._paying(run, self._build_checked(run))) if run.candidates else run.before
        graph = given if graph is run.before else graph
        self.ledger.entries.extend(run.entries())
        error, seconds = self._error_of(graph), time.perf_counter() - begin
        self.ledger.passes.append(PassRecord(run.item.name, run.text, seconds, error, tuple(run.notes)))
        if nothing and self.settings.strict:
            hint = f"`regraft explain MODEL {run.item.name}` lists every reason"
            raise NoMatchError(f"{run.item.name}: {nothing}", hint=hint)
        return graph

    def _crashed(self, place: int, text: str, graph: Graph, error: Exception) -> None:
        for instrument in self.settings.instruments:
            instrument.on_crash(place, text, graph, error)

    def _plan(self, run: PassRun) -> None:
        sites, run.misses = run.item.find(run.before)
        run.order = {site.name: place for place, site in enumerate(sites)}
        self._tell_idle_patterns(run, sites)
        wanted: list[Site] = []
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
                run.candidates.append(Candidate(site, outcome))
        if wanted:
            self.settings.report(f"{run.item.name}: plan", len(wanted), len(wanted))

    def _tell_idle_patterns(self, run: PassRun, sites: Sequence[Site]) -> None:
        idle = idle_patterns(run.item, run.before, sites, run.misses)
        if idle and self.settings.strict:
            hint = "correct the name or leave it out; without `strict` it is only noted"
            raise NoMatchError(f"{run.item.name}: {idle[0]}", hint=hint)
        run.notes.extend(idle)

    def _statistics(self, run: PassRun, wanted: Sequence[Site]) -> dict[tuple[str, ...], SiteStatistics]:
        batches = self.settings.calibration
        if batches is None and run.item.needs == "calibration":
            raise InputError(f"{run.item.name} needs calibration inputs; pass calibration=batches")
        if batches is None or not wanted or not (run.item.uses_calibration or run.item.needs == "calibration"):
            return {}
        layers = [site for site in wanted if isinstance(site, LinearSite)]
        others = {key: width for site in wanted for key, width in run.item.taps(site).items()}
        if not layers and not others:
            return {}
        total = len(batches) if isinstance(batches, Sequence) else 0
        stage = f"{run.item.name}: calibrate"
        self.settings.report(stage, 0, total)
        return collect(
            run.before,
            layers,
            batches,
            seed=self.settings.seed,
            others=others,
            advance=lambda done: self.settings.report(stage, done, total),
        )

    def _build(self, run: PassRun, chosen: Sequence[Candidate]) -> Graph:
        return build_sites(run, chosen, lambda candidate, error: self._lose(run, candidate, error))

    def _lose(self, run: PassRun, candidate: Candidate, error: Exception) -> None:
        self._crashed(run.place, run.text, run.before, error)
        what = f"build raised {type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
        candidate.lost = self._violated(VerificationError, run, what, candidate.site.name, can_stay=False, cause=error)

    def _build_checked(self, run: PassRun) -> Graph:
        try:
            graph = self._build(run, run.candidates)
        except GraphError as error:
            what = f"the rewritten graph is not valid: {error}"
            reason = self._violated(VerificationError, run, what, can_stay=False, cause=error)
            for candidate in run.standing:
                candidate.lost = reason
            return run.before
        built = run.standing
        for candidate in built:
            if not candidate.changed(run.before, graph):
                what = "build changed nothing"
                candidate.lost = self._violated(VerificationError, run, what, candidate.site.name, can_stay=False)
        self._check(run, graph)
        if len(run.standing) == len(built):
            return graph
        return self._build(run, run.standing) if run.standing else run.before

    def _check(self, run: PassRun, graph: Graph) -> None:
        for candidate, checks in (*self._check_layers(run, graph), *self._check_regions(run, graph)):
            candidate.check = worst(checks)
            if not candidate.check.holds:
                what = violation_of(checks)
                candidate.lost = self._violated(VerificationError, run, what, candidate.site.name)

    def _check_layers(self, run: PassRun, graph: Graph) -> list[tuple[Candidate, list[SiteCheck]]]:
        layers = [(item, item.site) for item in run.standing if isinstance(item.site, LinearSite)]
        questions = [Question(call, item.plan, run.sample(site)) for item, site in layers for call in site.calls]
        stage, total = f"{run.item.name}: check", len(questions)
        answers = iter(
            check_sites(graph, questions, self.settings.seed, lambda done: self.settings.report(stage, done, total))
        )
        return [(item, list(islice(answers, len(site.calls)))) for item, site in layers]

    def _check_regions(self, run: PassRun, graph: Graph) -> list[tuple[Candidate, list[SiteCheck]]]:
        wider = [item for item in run.standing if not isinstance(item.site, LinearSite)]
        checks = check_regions(
            run.before,
            graph,
            [Region(item.site, item.plan) for item in wider],
            self.settings.probes,
            calibrated=self.settings.calibration is not None,
            seed=self.settings.seed,
        )
        return [(item, [check]) for item, check in zip(wider, checks, strict=True)]

    def _violated(
        self,
        error: type[RegraftError],
        run: PassRun,
        what: str,
        site: str = "",
        *,
        can_stay: bool = True,
        cause: Exception | None = None,
    ) -> str:
        """Do what `on_violation` says; return the reason for a rollback, or "" when the violation is let pass."""
        told = f"{site}: {what}" if site else what
        if self.settings.on_violation == "raise":
            raise error(f"{run.item.name}: {told}") from cause
        if self.settings.on_violation == "rollback":
            return what
        told += "; kept, as on_violation='warn' asks" if can_stay else "; taken back, for it cannot be kept"
        warnings.warn(f"{run.item.name}: {told}", RegraftWarning, stacklevel=2)
        run.notes.append(told)
        return "" if can_stay else what

    def _paying(self, run: PassRun, graph: Graph) -> Graph:
        """Take back the sites that are slower alone than a limit of speed allows."""
        least, built, settings = least_speedup(self.settings.gates), run.standing, self.settings
        if not least or not built:
            return graph
        settings.report(f"{run.item.name}: time", 0, len(built))
        sites = [candidate.site for candidate in built]
        for candidate, times in zip(
            built, site_times(run.before, graph, sites, settings.probes, settings.seed), strict=True
        ):
            candidate.times = times
            if times is not None and times[0] < least * times[1]:
                what = f"budget min_speedup={least:g}: {1e3 * times[1]:.3g} ms, before {1e3 * times[0]:.3g} ms"
                candidate.lost = self._violated(BudgetError, run, what, candidate.site.name)
        settings.report(f"{run.item.name}: time", len(built), len(built))
        if len(run.standing) == len(built):
            return graph
        return self._build(run, run.standing) if run.standing else run.before

    def _within_budget(self, run: PassRun, graph: Graph) -> Graph:
        waived: set[int] = set()  # by place: two gates may be equal
        settled = -1  # known to hold on this very graph
        while run.standing:
            # Fewer sites for one gate may break another, hence all of them anew.
            gates = [(place, gate) for place, gate in enumerate(self.settings.gates) if place not in {*waived, settled}]
            broken = next(((place, gate, found) for place, gate in gates if (found := gate.violation(graph))), None)
            if broken is None:
                return graph
            place, gate, found = broken
            reason = self._violated(BudgetError, run, f"budget {found}")
            if reason:
                graph, settled = self._shrink(run, gate, reason), place
            else:
                waived.add(place)
        return run.before

    def _shrink(self, run: PassRun, gate: Gate, reason: str) -> Graph:
        """Keep the most faithful sites, as many as the gate allows: bisection over sites ordered by error."""
        ranked = sorted(run.standing, key=lambda item: item.check.error if item.check else 0.0)
        fits, fails = 0, len(ranked)
        best: Graph = run.before
        stage = f"{run.item.name}: fit the budget"
        while gate.by_site and fails - fits > 1:
            middle = (fits + fails) // 2
            self.settings.report(stage, len(ranked) - (fails - fits), len(ranked))
            attempt = self._build(run, ranked[:middle])
            if gate.violation(attempt):
                fails = middle
            else:
                fits, best = middle, attempt
        self.settings.report(stage, len(ranked), len(ranked))
        for candidate in ranked[fits:]:
            candidate.lost = reason
        run.notes.append(f"{reason}; {len(ranked) - fits} of {len(ranked)} rewrites taken back")
        return best

    def _error_of(self, graph: Graph) -> float | None:
        if not self.reference:
            return None
        return model_error(self.reference, [graph.run(batch)[0] for batch in self.settings.probes])
