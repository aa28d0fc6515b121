"""Why a pass would rewrite a place, keep it, or not even see it."""

import json

import pytest
from tiny_models import Chain, Shared, Weightless, graph_of

from regraft.errors import OptionError, UnknownNameError
from regraft.passes import LowRank, explain_graph


def test_every_layer_has_a_verdict_with_figures_or_a_reason() -> None:
    found = explain_graph(graph_of(Shared), LowRank(rank=3))
    assert [(item.site, item.verdict) for item in found.findings] == [
        ("query", "would rewrite"),
        ("key", "would rewrite"),
        ("classifier", "would keep"),
    ]
    assert found.findings[0].detail.startswith("12x12 -> rank 3, error 0.")
    assert found.findings[0].detail.endswith(" from the weights alone, 0.62 -> 0.34 kB")
    assert found.findings[2].detail == "it is a head (classifier); heads=true rewrites it"
    assert str(found).splitlines()[2] == f"classifier  would keep: {found.findings[2].detail}"


def test_what_only_looks_like_a_layer_is_listed_with_the_reason() -> None:
    (finding,) = explain_graph(graph_of(Weightless), LowRank()).findings
    assert (finding.verdict, finding.detail) == (
        "is no site",
        "neither operand is a constant (the right one is transpose)",
    )


def test_the_figures_are_those_of_the_run() -> None:
    graph = graph_of(Chain, 300, 400)
    (finding,) = explain_graph(graph, LowRank(keep=0.25)).findings
    assert finding.detail.startswith("400x300 -> rank 42, error ")
    assert finding.detail.endswith("0.48 -> 0.12 MB")


def test_one_place_is_named_or_several_by_a_glob() -> None:
    graph = graph_of(Shared)
    assert [item.site for item in explain_graph(graph, LowRank(), "key").findings] == ["key"]
    assert [item.site for item in explain_graph(graph, LowRank(), "*e*y*").findings] == ["query", "key"]


def test_places_are_named_by_the_same_patterns_as_targets() -> None:
    graph = graph_of(Shared)
    assert [item.site for item in explain_graph(graph, LowRank(), "re:(query|key)").findings] == ["query", "key"]
    with pytest.raises(OptionError, match=r"^explain: 're:\(' is not a regular expression: "):
        explain_graph(graph, LowRank(), "re:(")


def test_a_place_that_is_not_there_is_refused_with_what_may_have_been_meant() -> None:
    with pytest.raises(UnknownNameError) as caught:
        explain_graph(graph_of(Shared), LowRank(), "clasifier")
    assert str(caught.value) == "low-rank sees no 'clasifier' in Shared (did you mean 'classifier'?)"


def test_an_explanation_is_plain_data() -> None:
    found = explain_graph(graph_of(Shared), LowRank(rank=3))
    data = json.loads(json.dumps(found.to_dict()))
    assert data["pass"] == "low-rank{rank=3}"
    assert data["findings"][2] == {
        "site": "classifier",
        "verdict": "would keep",
        "detail": "it is a head (classifier); heads=true rewrites it",
    }
