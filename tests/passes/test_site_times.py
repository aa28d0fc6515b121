"""Sites are timed alone beside what they replace: what does not pay is taken back, and both times are told."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import nn

import regraft
from regraft.errors import BudgetError, RegraftWarning
from regraft.graph import Site, find_linear_sites
from regraft.passes import LowRank, Settings, SpeedGate, _manager, run_passes
from regraft.passes._site_times import site_times


class Layers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = (nn.Linear(16, 16) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.third(self.second(self.first(x)).relu())


@pytest.fixture(scope="module")
def x() -> torch.Tensor:
    return torch.randn(5, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module", params=["fx", "onnx"])
def model(request: pytest.FixtureRequest, x: torch.Tensor, tmp_path_factory: pytest.TempPathFactory) -> Any:
    torch.manual_seed(0)
    layers = Layers().eval()
    if request.param == "fx":
        return layers
    return regraft.load(layers, example_inputs=(x,)).export(tmp_path_factory.mktemp("times") / "layers.onnx")


TIMES = {"first": (2e-3, 1e-3), "second": (1e-3, 2e-3), "third": None}
"""Seconds before and after: one gains, one loses, and one cannot run alone."""


@pytest.fixture
def _measured(monkeypatch: pytest.MonkeyPatch) -> None:
    def times(before: Any, after: Any, sites: Sequence[Site], probes: Any, seed: int) -> list[Any]:
        del before, after, probes, seed
        return [TIMES[site.name] for site in sites]

    monkeypatch.setattr(_manager, "site_times", times)


def rewritten(model: Any, x: torch.Tensor, least: float = 1.0, speedup: float = 9.0, **options: Any) -> Any:
    graph = regraft.load(model, example_inputs=(x,)).graph
    gate = SpeedGate(least, lambda other: speedup, times_sites=True)
    return run_passes(graph, [LowRank(rank=2, heads=True)], Settings(probes=[(x,)], gates=[gate], **options))


@pytest.mark.usefixtures("_measured")
def test_what_is_slower_alone_is_taken_back_and_both_times_are_told(model: Any, x: torch.Tensor) -> None:
    graph, ledger = rewritten(model, x)
    assert [entry.site for entry in ledger.rewritten] == ["first", "third"]
    (lost,) = ledger.rolled_back
    assert lost.reason == "budget min_speedup=1: 2 ms, before 1 ms"
    assert [(e.seconds_before, e.seconds_after) for e in ledger] == [(2e-3, 1e-3), (1e-3, 2e-3), (None, None)]
    assert "2 -> 1 ms" in str(ledger)
    graph.validate()
    assert sum(node.op == "lowrank_linear" for node in graph.nodes()) == 2


@pytest.mark.usefixtures("_measured")
def test_a_higher_limit_takes_back_what_gains_too_little(model: Any, x: torch.Tensor) -> None:
    _, ledger = rewritten(model, x, least=2.5)
    assert [entry.site for entry in ledger.rewritten] == ["third"]


@pytest.mark.usefixtures("_measured")
def test_the_whole_model_is_held_to_the_limit_after_its_sites(model: Any, x: torch.Tensor) -> None:
    _, ledger = rewritten(model, x, speedup=0.5)
    assert ledger.rewritten == []
    reasons = {entry.site: entry.reason for entry in ledger}
    assert reasons["first"] == reasons["third"] == "budget min_speedup=1: 0.50 was measured"


@pytest.mark.usefixtures("_measured")
def test_a_violation_can_be_an_error_or_a_warning(model: Any, x: torch.Tensor) -> None:
    with pytest.raises(BudgetError, match=r"^low-rank: second: budget min_speedup=1: 2 ms, before 1 ms$"):
        rewritten(model, x, on_violation="raise")
    with pytest.warns(RegraftWarning, match=r"second: budget min_speedup=1: 2 ms, before 1 ms; kept"):
        _, ledger = rewritten(model, x, on_violation="warn")
    assert len(ledger.rewritten) == 3


@pytest.mark.usefixtures("_measured")
def test_times_are_not_in_what_the_same_run_would_give_again(model: Any, x: torch.Tensor) -> None:
    _, ledger = rewritten(model, x)
    assert all(e.seconds_before is None and e.seconds_after is None for e in ledger.without_times())
    again = type(ledger).from_dict(ledger.to_dict())
    assert list(again) == list(ledger)


def test_every_site_has_two_times_on_the_model_s_own_operands(model: Any, x: torch.Tensor) -> None:
    before = regraft.load(model, example_inputs=(x,)).graph
    after = regraft.optimize(model, passes=[LowRank(rank=2, heads=True)], example_inputs=(x,), progress=False).graph
    sites, _ = find_linear_sites(before)
    found = site_times(before, after, sites, [(x,)], seed=0, rounds=2)
    assert len(found) == 3
    assert all(times is not None and min(times) > 0 for times in found)


def test_a_prepared_part_computes_the_same_each_time(model: Any, x: torch.Tensor) -> None:
    graph = regraft.load(model, example_inputs=(x,)).graph
    sites, _ = find_linear_sites(graph)
    (given,) = sites[1].operands.values()
    run = graph.prepared([sites[1].output], {given: x})
    first, second = run(), run()
    torch.testing.assert_close(first, second, atol=0, rtol=0)
    torch.testing.assert_close(first, graph.evaluate([sites[1].output], {given: x}), atol=0, rtol=0)
