"""The check of sites that are more than one layer: on what they are run, and what is said of those that do not hold."""

import math
from dataclasses import replace
from functools import lru_cache
from typing import Any

import pytest
import torch
from attention_models import Calls, apart, captured, merged, operands
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from regraft.errors import GraphError
from regraft.frontends.torch import FxGraph
from regraft.graph import AttentionSite, Graph, TensorType, Value
from regraft.passes import FuseAttention
from regraft.passes._check import SiteCheck
from regraft.passes._pass import Plan
from regraft.passes._regions import Region, check_regions
from regraft.passes.fuse_attention import multi_head_attention


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return merged(scaled_dot_product_attention(apart(q), apart(k), apart(v)))


@lru_cache(maxsize=1)
def graph() -> FxGraph:
    return captured(Calls(attend), *operands(2, 5, 7))


def site() -> AttentionSite:
    (found,), _ = FuseAttention().find(graph())
    return found


def rewritten(**attributes: Any) -> FxGraph:
    after = graph().copy()
    after.replace(site(), multi_head_attention, {}, {**site().attributes, **attributes})
    return after


def check(after: Graph, probes: Any = (), *, before: Graph | None = None, calibrated: bool = False) -> SiteCheck:
    plan = FuseAttention().plan(site(), None)
    assert isinstance(plan, Plan)
    regions = [Region(site(), plan)]
    (found,) = check_regions(before or graph(), after, regions, probes, calibrated=calibrated, seed=0)
    return found


PROBES = [operands(3, 4, 6)]


@pytest.mark.parametrize("probes", [(), PROBES], ids=["random", "probes"])
def test_the_same_function_holds_and_another_scale_does_not(probes: Any) -> None:
    assert check(rewritten(), probes).holds
    wrong = check(rewritten(scale=site().scale * 1.05), probes)
    assert not wrong.holds
    assert wrong.allowed < wrong.error < 1


def test_rows_are_those_of_the_calibration_only_where_there_are_any() -> None:
    after = rewritten()
    assert check(after, PROBES, calibrated=True).rows == "calibration"
    assert check(after, PROBES, calibrated=False).rows == "random"
    assert check(after, (), calibrated=True).rows == "random"


def test_operands_are_what_the_model_computes_from_the_first_probe() -> None:
    class Recording:
        """The graph, and what it was evaluated on."""

        def __init__(self) -> None:
            self.given: list[dict[str, Tensor]] = []

        def __getattr__(self, name: str) -> Any:
            return getattr(graph(), name)

        def evaluate(self, outputs: Any, given: dict[str, Tensor]) -> Any:
            self.given.append(given)
            return graph().evaluate(outputs, given)

    before: Any = Recording()
    assert check(rewritten(), PROBES, before=before).holds
    (given,) = before.given
    wanted = graph().run(PROBES[0], list(site().operands.values()))[1]
    for key in site().operands.values():
        assert torch.equal(given[key], wanted[key])


class Bent:
    """The graph with values whose types are not known, or that cannot be run or evaluated."""

    def __init__(self, *, typed: bool = True, runs: bool = True, evaluates: bool = True) -> None:
        self.typed, self.runs, self.evaluates = typed, runs, evaluates

    def __getattr__(self, name: str) -> Any:
        return getattr(graph(), name)

    def _bent(self, value: Value) -> Value:
        return value if self.typed else replace(value, type=TensorType("float32"))

    def value(self, key: str) -> Value:
        return self._bent(graph().value(key))

    def run(self, inputs: Any, taps: Any = ()) -> Any:
        if not self.runs:
            raise GraphError("numbers that this model does not take")
        return graph().run(inputs, taps)

    def evaluate(self, outputs: Any, given: Any) -> Any:
        if not self.evaluates:
            raise GraphError("nothing can be computed here\nsecond line")
        return graph().evaluate(outputs, given)


def test_a_model_that_takes_no_random_numbers_is_checked_on_operands_that_are_drawn() -> None:
    before: Any = Bent(runs=False)
    assert check(rewritten(), before=before).holds
    assert not check(rewritten(scale=0.1), before=before).holds


def test_operands_of_unknown_type_cannot_be_checked_and_do_not_hold() -> None:
    found = check(rewritten(), before=Bent(typed=False))  # type: ignore[arg-type]
    assert (found.holds, found.error) == (False, math.inf)
    assert found.failure == "it cannot be checked: the type of an operand is not known"


def test_what_cannot_be_computed_does_not_hold_and_says_why_in_one_line() -> None:
    found = check(rewritten(), before=Bent(evaluates=False))  # type: ignore[arg-type]
    assert (found.holds, found.error) == (False, math.inf)
    assert found.failure == "it cannot be computed: nothing can be computed here"
