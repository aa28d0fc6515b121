"""Budgets in the manager: the largest set of most faithful rewrites that keeps every limit."""

from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import pytest
import torch
from faulty_passes import Faulty
from tiny_models import WIDTH, Chain, batch

from regraft.errors import BudgetError, RegraftWarning
from regraft.frontends.torch import FxGraph, capture
from regraft.graph import Graph
from regraft.ledger import Ledger
from regraft.passes import ErrorGate, Gate, LowRank, ScoreGate, Settings, SpeedGate, run_passes
from regraft.passes._check import model_error

PROBES = [(batch(30, 32),), (batch(31, 32),)]


@lru_cache(maxsize=1)
def _graph() -> FxGraph:
    """Four layers whose weights are the closer to rank 3 the later they come, so that their errors differ."""
    torch.manual_seed(3)
    model = Chain(*[WIDTH] * 5)
    with torch.no_grad():
        for place, layer in enumerate(model.layers):
            u, s, vt = torch.linalg.svd(layer.weight)
            s[3:] *= 0.5**place
            layer.weight.copy_(u @ torch.diag(s) @ vt)
    return capture(model, (batch(0),))


def _run(*gates: Gate, item: LowRank | None = None, **settings: Any) -> tuple[Graph, Ledger]:
    chosen = Settings(gates=gates, probes=PROBES, **settings)
    return run_passes(_graph(), [item or LowRank(rank=3)], chosen)


def _reference() -> list[Any]:
    return [_graph().run(probe)[0] for probe in PROBES]


def _error_gate(limit: float) -> ErrorGate:
    return ErrorGate(limit, PROBES, _reference())


@lru_cache(maxsize=1)
def _ranked() -> tuple[list[str], list[float]]:
    """Brute force: layers by their own error, and the model's error with the first k of them rewritten."""
    _, ledger = _run()
    ranked = [entry.site for entry in sorted(ledger.rewritten, key=lambda entry: entry.measured_error or 0.0)]
    errors = [0.0]
    for count in range(1, len(ranked) + 1):
        rewritten, _ = _run(item=LowRank(rank=3, targets=tuple(ranked[:count])))
        errors.append(model_error(_reference(), [rewritten.run(probe)[0] for probe in PROBES]))
    return ranked, errors


@pytest.mark.parametrize("fitting", range(5))
def test_an_error_budget_keeps_the_largest_set_of_the_most_faithful_sites(fitting: int) -> None:
    ranked, errors = _ranked()
    assert errors == sorted(errors)  # more rewritten layers, more error: then there is one largest set
    limit = errors[fitting] if fitting == 4 else (errors[fitting] + errors[fitting + 1]) / 2
    rewritten, ledger = _run(_error_gate(limit))
    assert {entry.site for entry in ledger.rewritten} == set(ranked[:fitting])
    assert {entry.site for entry in ledger.rolled_back} == set(ranked[fitting:])
    assert (ledger.model_error or 0.0) == pytest.approx(errors[fitting])
    assert ledger.model_error is not None
    assert ledger.model_error <= limit
    if fitting == 0:
        assert rewritten is _graph()
    if fitting < 4:
        reason = f"budget max_error={limit:g}: output error would be {errors[4]:.3g}"
        assert {entry.reason for entry in ledger.rolled_back} == {reason}
        assert ledger.passes[0].notes == (f"{reason}; {4 - fitting} of 4 rewrites taken back",)


def test_a_budget_of_zero_takes_everything_back() -> None:
    rewritten, ledger = _run(_error_gate(0.0))
    assert rewritten is _graph()
    assert len(ledger.rolled_back) == 4
    assert ledger.model_error == 0.0


def test_a_budget_that_is_kept_takes_nothing_back() -> None:
    _, ledger = _run(_error_gate(1.0), ScoreGate(0.0, lambda _: 1.0, 1.0), SpeedGate(1.0, lambda _: 2.0))
    assert len(ledger.rewritten) == 4
    assert ledger.passes[0].notes == ()


def _count(graph: Graph) -> int:
    return sum(node.op == "lowrank_linear" for node in graph.nodes())


@pytest.mark.parametrize("most", range(5))
def test_a_score_budget_keeps_as_many_sites_as_the_score_allows(most: int) -> None:
    ranked, _ = _ranked()
    _, ledger = _run(ScoreGate(0.01 * most + 0.005, lambda graph: 1.0 - 0.01 * _count(graph), 1.0))
    assert {entry.site for entry in ledger.rewritten} == set(ranked[:most])


def test_a_speed_budget_that_is_not_kept_takes_the_whole_pass_back() -> None:
    measured: list[int] = []

    def _speedup(graph: Graph) -> float:
        measured.append(_count(graph))
        return 0.8

    rewritten, ledger = _run(SpeedGate(1.0, _speedup))
    assert rewritten is _graph()
    assert len(ledger.rolled_back) == 4
    assert measured == [4]  # fewer sites cannot be expected to be faster, and are not tried
    assert ledger.rolled_back[0].reason == "budget min_speedup=1: 0.80 was measured"


@dataclass
class _Counted:
    """A limit that a graph keeps only with certain numbers of rewritten sites."""

    fine: set[int]
    by_site: bool = True
    seen: list[int] = field(default_factory=list)

    def violation(self, graph: Graph) -> str:
        self.seen.append(_count(graph))
        return "" if self.seen[-1] in self.fine else "broken"


def test_a_limit_that_another_one_breaks_again_is_looked_at_again() -> None:
    """The first limit allows 4, 1 or 0 sites, the second at most 2: together they allow 1."""
    first, second = _Counted({0, 1, 4}), _Counted({0, 1, 2})
    rewritten, ledger = _run(first, second)
    assert len(ledger.rewritten) == _count(rewritten) == 1
    assert first.violation(rewritten) == second.violation(rewritten) == ""


def test_limits_that_cannot_be_kept_together_leave_nothing() -> None:
    rewritten, ledger = _run(_Counted({4, 1}), _Counted({2, 3}))
    assert rewritten is _graph()
    assert len(ledger.rolled_back) == 4


def test_a_graph_is_not_measured_again_by_the_limit_that_it_was_shrunk_for() -> None:
    gate = _Counted({0, 1, 2})
    _run(gate)
    assert gate.seen == [4, 2, 3]


def test_with_raise_a_broken_budget_is_an_error_with_the_figures() -> None:
    _, errors = _ranked()
    with pytest.raises(BudgetError) as caught:
        _run(_error_gate(0.001), on_violation="raise")
    assert str(caught.value) == f"low-rank: budget max_error=0.001: output error would be {errors[4]:.3g}"


def test_with_warn_a_broken_budget_stays_and_is_said_once_for_each_limit() -> None:
    with pytest.warns(RegraftWarning) as warned:
        rewritten, ledger = _run(_error_gate(0.001), _Counted({0}), on_violation="warn")
    assert _count(rewritten) == 4
    texts = [str(item.message) for item in warned]
    assert len(texts) == 2
    assert texts[0].startswith("low-rank: budget max_error=0.001: output error would be ")
    assert texts[1] == "low-rank: budget broken; kept, as on_violation='warn' asks"
    assert len(ledger.passes[0].notes) == 2


def test_sites_that_broke_their_promise_are_gone_before_the_budget_is_looked_at() -> None:
    gate = _Counted({0, 1, 2, 3})
    _, ledger = _run(gate, item=Faulty(fault="writes wrong factors"))
    assert gate.seen == [3]
    assert [entry.site for entry in ledger.rolled_back] == ["layers.1"]
    assert ledger.rolled_back[0].reason.startswith("measured error")


def test_when_no_site_is_left_no_limit_is_measured() -> None:
    gate = _Counted(set())
    rewritten, _ = _run(gate, item=Faulty(fault="writes nan", at="*"))
    assert gate.seen == []
    assert rewritten is _graph()


def test_every_pass_of_a_run_is_held_to_the_budget_of_the_whole() -> None:
    """The first pass uses up what there is; the second finds the budget exhausted and is taken back."""
    ranked, errors = _ranked()
    gate = _error_gate((errors[2] + errors[3]) / 2)
    passes = [LowRank(rank=3, targets=tuple(ranked[:2])), LowRank(rank=1, targets=tuple(ranked[2:]))]
    _, ledger = run_passes(_graph(), passes, Settings(gates=[gate], probes=PROBES, strict=False))
    statuses = {(entry.pass_place, entry.site): entry.status for entry in ledger}
    assert all(statuses[0, site] == "rewritten" for site in ranked[:2])
    assert all(statuses[1, site] == "rolled back" for site in ranked[2:])
