"""Targets and exclusions that fit no layer: refused by name, or noted when not strict."""

from typing import Any

import pytest
from tiny_models import Shared, Weightless, chain, graph_of

from regraft.errors import NoMatchError
from regraft.frontends.torch import FxGraph
from regraft.ledger import Ledger
from regraft.passes import LowRank, Settings, run_passes


def ledger_of(graph: FxGraph, *passes: LowRank, **settings: Any) -> Ledger:
    return run_passes(graph, passes, Settings(**settings))[1]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"targets": ("query", "kye")}, "low-rank: targets: 'kye' fits no layer; closest are key, query, classifier"),
        ({"exclude": ("clasifier",)}, "low-rank: exclude: 'clasifier' fits no layer; closest are classifier,"),
        ({"targets": ("query", "re:keys?s")}, "low-rank: targets: 're:keys?s' fits no layer; closest are key,"),
    ],
)
def test_a_name_that_fits_no_layer_is_refused_with_the_closest_ones(options: Any, text: str) -> None:
    with pytest.raises(NoMatchError) as caught:
        ledger_of(graph_of(Shared), LowRank(rank=3, **options))
    assert str(caught.value).startswith(text)
    assert caught.value.hint == "correct the name or leave it out; without `strict` it is only noted"


def test_without_strictness_it_is_noted_and_the_others_are_rewritten() -> None:
    ledger = ledger_of(graph_of(Shared), LowRank(rank=3, targets=("query", "kye")), strict=False)
    assert [entry.site for entry in ledger.rewritten] == ["query"]
    assert ledger.passes[0].notes == ("targets: 'kye' fits no layer; closest are key, query, classifier",)


def test_names_that_all_fit_are_not_told() -> None:
    ledger = ledger_of(graph_of(Shared), LowRank(rank=3, targets=("query", "re:k.y"), exclude=("k*",)))
    assert ledger.passes[0].notes == ()


def test_a_layer_that_a_pass_before_has_rewritten_may_be_named() -> None:
    passes = LowRank(rank=3, targets=("layers.0",)), LowRank(rank=3, exclude=("layers.0",))
    ledger = ledger_of(chain(2), *passes)
    assert [entry.site for entry in ledger.rewritten] == ["layers.0", "layers.1"]


def test_a_model_without_layers_is_told_as_such() -> None:
    with pytest.raises(NoMatchError, match=r"^low-rank: no site in Weightless"):
        ledger_of(graph_of(Weightless), LowRank(targets=("query",)))
