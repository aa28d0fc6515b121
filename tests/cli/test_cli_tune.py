"""`regraft tune`: measures, resumes, shows, merges, hands on, and says what it does not understand."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from regraft.tune import Key, Records, Trial

LAYER = ("linear", "--size", "in=16", "--size", "out=8", "--rows", "4", "--sampler", "grid")


@pytest.fixture
def tuned(tmp_path: Path) -> Path:
    """Records of two trials of one key."""
    fields = dict.fromkeys(("target", "device", "driver", "compiler", "version"), "a")
    key = Key.of("linear", {"x.0": 4, "x.1": 16}, {"x": "float32"}, **fields)
    path = tmp_path / "tune.jsonl"
    Records(path).add(Trial(key, {"rows": 1}, "ok", 3e-6), Trial(key, {"rows": 2}, "ok", 2e-6))
    return path


def test_a_run_keeps_records_and_a_second_one_pays_for_nothing_twice(run: Callable, tmp_path: Path) -> None:
    records = tmp_path / "tune.jsonl"
    outcome = run("tune", "run", *LAYER, "--records", str(records), "--trials", "2", "--json")
    assert (outcome.code, outcome.err) == (0, "")
    first = json.loads(outcome.out)
    assert (first["paid"], first["stopped"], first["trials"], first["failed"]) == (2, "trials", 2, 0)
    assert first["key"]["op"] == "linear"
    assert first["best"]["seconds"] == min(first["curve"])
    again = json.loads(run("tune", "run", *LAYER, "--records", str(records), "--trials", "2", "--json").out)
    assert again == {**first, "paid": 0}
    assert len(records.read_text().splitlines()) == 2


def test_records_are_shown_drawn_handed_on_and_merged(run: Callable, tuned: Path, tmp_path: Path) -> None:
    page, best = tmp_path / "curve.html", tmp_path / "best.jsonl"
    shown = run("tune", "show", str(tuned), "--curve", str(page))
    assert (shown.code, shown.out) == (0, "linear x[4x16] float32  2.0  rows=2  2  0  a  a\n")
    assert page.read_text().startswith("<!doctype html>")
    exported = run("tune", "export", str(tuned), "-o", str(best))
    assert (exported.code, exported.out) == (0, f"1 trials written to {best}\n")
    merged = run("tune", "merge", str(best), str(tuned))
    assert (merged.code, merged.out) == (0, f"1 trials added to {best}\n")


def test_a_line_that_is_no_trial_is_named_on_the_way(run: Callable, tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text("{half\n")
    outcome = run("tune", "show", str(path))
    assert (outcome.code, outcome.out) == (0, "")
    assert outcome.err == f"warning: {path}:1: skipped, it is no JSON\n"
    outcome = run("tune", "export", str(path), "-o", str(tmp_path / "out.jsonl"))
    assert outcome.code == 1
    assert outcome.err.endswith(f"error: {path}: no trial went well, so there is nothing to export\n")


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("run", "linear", "--size", "in"), "error: --size must be NAME=N with N at least 1 (in=768); got 'in'"),
        (("run", "linear", "--size", "in=0"), "error: --size must be NAME=N with N at least 1 (in=768); got 'in=0'"),
        (("run", "linear", "--size", "in=3"), "error: tune: linear needs the size 'out'; got in"),
        (("run", "conv", "--size", "in=3"), "error: tune: no layer 'conv' can be made from sizes; there are: linear"),
        (("run", *LAYER, "--records", "t.txt"), "error: --records must end in .jsonl; got 't.txt'"),
        (("run", *LAYER, "--records", "gone/t.jsonl"), "error: the folder of gone/t.jsonl does not exist"),
        (("run", *LAYER[:-1], "genetic"), "error: tune: sampler must be one of tpe, random, grid; got 'genetic'"),
        (("show", "none.jsonl"), "error: none.jsonl: there is no such file of records"),
        (("show", "none.jsonl", "--curve", "c.gif"), "error: --curve must end in .png or .svg or .html; got 'c.gif'"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(run: Callable, words: tuple[str, ...], text: str) -> None:
    outcome = run("tune", *words)
    assert outcome.code in (1, 2)
    assert outcome.out == ""
    assert outcome.err.startswith(text)
    assert not Path("tune.jsonl").exists()
