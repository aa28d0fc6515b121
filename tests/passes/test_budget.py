"""Budgets and the limits that they become."""

import math
from typing import Any

import pytest
import torch

from regraft.errors import OptionError
from regraft.passes import Budget, ErrorGate, ScoreGate, SpeedGate


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({}, "one of max_error, evaluate with max_drop, or min_speedup is needed"),
        ({"max_error": -0.1}, "max_error must be at least 0; got -0.1"),
        ({"max_error": math.nan}, "max_error must be at least 0; got nan"),
        ({"evaluate": len, "max_drop": -1.0}, "max_drop must be at least 0; got -1.0"),
        ({"min_speedup": 0.0}, "min_speedup must be above 0; got 0.0"),
        ({"min_speedup": math.nan}, "min_speedup must be above 0; got nan"),
        ({"evaluate": len}, "evaluate needs max_drop beside it"),
        ({"max_drop": 0.1}, "max_drop needs evaluate beside it"),
        ({"max_drop": 0.1, "max_error": 0.1}, "max_drop needs evaluate beside it"),
    ],
)
def test_budgets_that_cannot_be_meant_are_refused(options: dict[str, Any], text: str) -> None:
    with pytest.raises(OptionError) as caught:
        Budget(**options)
    assert str(caught.value) == f"budget: {text}"


def test_limits_may_be_given_alone_or_together() -> None:
    assert Budget(max_error=0.0).max_error == 0.0
    assert Budget(evaluate=len, max_drop=0.0, max_error=0.1, min_speedup=1.0).target == "cpu"


class _Runs:
    """A graph that returns what it was made with, whatever it is run on."""

    def __init__(self, *outputs: float) -> None:
        self.outputs = outputs

    def run(self, inputs: Any) -> Any:
        return (torch.tensor(self.outputs),), {}


def _error_gate(limit: float) -> ErrorGate:
    return ErrorGate(limit, [(), ()], [(torch.tensor([3.0, 4.0]),)] * 2)


def test_the_error_gate_lets_pass_up_to_its_limit_and_says_by_how_much_it_is_exceeded() -> None:
    assert _error_gate(0.2).violation(_Runs(3.0, 5.0)) == ""  # type: ignore[arg-type]
    assert _error_gate(0.0).violation(_Runs(3.0, 4.0)) == ""  # type: ignore[arg-type]
    found = _error_gate(0.1).violation(_Runs(3.0, 5.0))  # type: ignore[arg-type]
    assert found == "max_error=0.1: output error would be 0.2"
    found = _error_gate(1e9).violation(_Runs(3.0, math.nan))  # type: ignore[arg-type]
    assert found == "max_error=1e+09: output error would be inf"


def _score_gate(score: float) -> ScoreGate:
    return ScoreGate(0.01, lambda _: score, 0.9)


def test_the_score_gate_lets_a_score_fall_to_its_limit_and_rise_as_it_likes() -> None:
    graph: Any = object()
    assert _score_gate(0.895).violation(graph) == ""
    assert _score_gate(5.0).violation(graph) == ""
    assert _score_gate(0.85).violation(graph) == "max_drop=0.01: the score would fall by 0.05"
    assert _score_gate(math.nan).violation(graph) == "max_drop=0.01: the score would fall by nan"


def test_the_speed_gate_needs_a_measured_ratio() -> None:
    graph: Any = object()
    assert SpeedGate(1.0, lambda _: 1.0).violation(graph) == ""
    assert SpeedGate(1.5, lambda _: 1.234).violation(graph) == "min_speedup=1.5: 1.23 was measured"


def test_fewer_sites_can_mend_an_error_or_a_score_but_not_a_speed() -> None:
    gates = (_error_gate(0.1), _score_gate(1.0), SpeedGate(1.0, lambda _: 1.0))
    assert [gate.by_site for gate in gates] == [True, True, False]
