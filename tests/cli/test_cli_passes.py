"""`regraft passes` lists what there is, from the passes' own declarations."""

import json
from collections.abc import Callable

from regraft.passes import all_passes, pass_options


def test_every_pass_is_one_line(run: Callable) -> None:
    outcome = run("passes")
    assert (outcome.code, outcome.err) == (0, "")
    assert [line.split()[0] for line in outcome.out.splitlines()] == list(all_passes())


def test_one_pass_shows_every_option_with_its_default_and_text(run: Callable) -> None:
    outcome = run("passes", "low-rank")
    assert outcome.code == 0
    for name, kind, default, doc in pass_options(all_passes()["low-rank"]):
        row = next(line for line in outcome.out.splitlines() if line.split()[0] == name)
        assert row.split() == [*f"{name} {kind} {default} {doc}".split()]
        assert doc


def test_an_unknown_pass_is_a_usage_error_that_lists_the_passes(run: Callable) -> None:
    outcome = run("passes", "low-rnak")
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.startswith("error: regraft.passes has no 'low-rnak' (did you mean 'low-rank'?); it has:")


def test_json_holds_the_same(run: Callable) -> None:
    listed = json.loads(run("passes", "--json").out)["passes"]
    assert [item["name"] for item in listed] == list(all_passes())
    (one,) = json.loads(run("passes", "low-rank", "--json").out)["passes"]
    assert one in listed
    assert {option["name"] for option in one["options"]} >= {"keep", "rank", "targets"}
