"""`regraft diff` and `regraft explain` from the command line."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

PASS = "low-rank{keep=0.5}"


@pytest.fixture
def small_file(run: Callable, onnx_file: Path) -> Path:
    """`mlp.onnx` after low-rank, in the same folder."""
    assert run("optimize", "mlp.onnx", "-p", PASS, "-o", "small.onnx").code == 0
    return onnx_file.with_name("small.onnx")


def test_a_file_does_not_differ_from_itself(run: Callable, onnx_file: Path) -> None:
    outcome = run("diff", "mlp.onnx", "mlp.onnx")
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.startswith("no changes")


def test_the_ledger_in_the_second_file_names_the_causes(run: Callable, small_file: Path) -> None:
    outcome = run("diff", "mlp.onnx", "small.onnx")
    assert (outcome.code, outcome.err) == (0, "")
    assert "low-rank: 2 sites" in outcome.out
    assert "first" in outcome.out
    assert "error" in outcome.out


def test_the_diff_is_also_written_when_asked(run: Callable, small_file: Path) -> None:
    outcome = run("diff", "mlp.onnx", "small.onnx", "--json", "-o", "what.json")
    assert outcome.code == 0
    printed, written = json.loads(outcome.out), json.loads(Path("what.json").read_text())
    assert (printed.pop("before"), printed.pop("after")) == ("mlp.onnx", "small.onnx")
    assert printed == written


@pytest.mark.parametrize(
    ("output", "code", "text"),
    [
        ("mlp.onnx", 2, "-o must end in .txt or .json; got 'mlp.onnx'"),
        ("a.html", 2, "-o must end in .txt or .json; got 'a.html'"),
        ("deep/a.txt", 1, "the folder of deep/a.txt does not exist"),
    ],
)
def test_a_diff_that_cannot_be_written_is_refused_first(
    run: Callable, onnx_file: Path, output: str, code: int, text: str
) -> None:
    before = onnx_file.read_bytes()
    outcome = run("diff", "mlp.onnx", "mlp.onnx", "-o", output)
    assert (outcome.code, outcome.out) == (code, "")
    assert outcome.err.startswith(f"error: {text}")
    assert onnx_file.read_bytes() == before


def test_a_torch_model_is_compared_with_itself(run: Callable, zoo: str) -> None:
    outcome = run("diff", f"{zoo}:mlp_with_inputs", f"{zoo}:mlp_with_inputs")
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.startswith("no changes")


def test_explain_says_what_would_happen_to_every_layer(run: Callable, onnx_file: Path) -> None:
    before = onnx_file.read_bytes()
    outcome = run("explain", "mlp.onnx", PASS)
    assert (outcome.code, outcome.err) == (0, "")
    verdicts = {line.split()[0]: line.split(None, 1)[1] for line in outcome.out.splitlines()}
    assert verdicts["first"].startswith("would rewrite: 64x32 -> rank 10")
    assert verdicts["head"].startswith("would keep: ")
    assert onnx_file.read_bytes() == before


def test_explain_of_one_site_is_one_line(run: Callable, onnx_file: Path) -> None:
    outcome = run("explain", "mlp.onnx", PASS, "--site", "head")
    assert len(outcome.out.splitlines()) == 1
    assert outcome.out.startswith("head  would keep: ")


def test_explain_as_json(run: Callable, zoo: str) -> None:
    document = json.loads(run("explain", f"{zoo}:mlp_with_inputs", PASS, "--json").out)
    assert document["model"] == f"{zoo}:mlp_with_inputs"
    assert [finding["site"] for finding in document["findings"]] == ["first", "second", "head"]


def test_an_unknown_site_names_the_one_that_was_meant(run: Callable, onnx_file: Path) -> None:
    outcome = run("explain", "mlp.onnx", PASS, "--site", "frist")
    assert (outcome.code, outcome.out) == (2, "")
    assert "(did you mean 'first'?)" in outcome.err


def test_a_misspelt_pass_is_reported_before_the_model_is_looked_for(run: Callable, folder: Path) -> None:
    outcome = run("explain", "gone.onnx", "low-rnak")
    assert outcome.code == 2
    assert outcome.err.startswith("error: regraft.passes has no 'low-rnak'")
