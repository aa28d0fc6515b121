"""`regraft optimize` from the command line: what it writes, what it says, and what it refuses before any work."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest

from regraft.cli.commands import optimize as command
from regraft.ledger import Ledger

PASS = "low-rank{keep=0.5}"


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc"}


def test_an_onnx_file_becomes_a_smaller_one_and_every_layer_gets_a_line(run: Callable, onnx_file: Path) -> None:
    before = onnx_file.read_bytes()
    outcome = run("optimize", "mlp.onnx", "-p", PASS, "-o", "small.onnx")
    assert (outcome.code, outcome.err) == (0, "")
    lines = outcome.out.splitlines()
    assert lines[0].split()[:2] == ["low-rank", "first"]
    assert "64x32 -> rank 10" in lines[0]
    assert lines[2].split()[:2] == ["low-rank", "head"]
    assert "kept: " in lines[2]
    assert lines[-1].startswith("wrote small.onnx: ")
    assert lines[-1].endswith("; mlp.onnx has 18.0 kB")
    assert "\x1b" not in outcome.out
    onnx.checker.check_model(onnx.load("small.onnx"))
    assert Path("small.onnx").stat().st_size < len(before)
    assert onnx_file.read_bytes() == before


def test_a_function_of_a_torch_model_becomes_an_onnx_file(run: Callable, zoo: str) -> None:
    outcome = run("optimize", f"{zoo}:mlp_with_inputs", "-p", PASS, "-o", "small.onnx")
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.splitlines()[0].split()[:2] == ["low-rank", "first"]
    assert {node.op_type for node in onnx.load("small.onnx").graph.node} >= {"LowrankLinear"}


ATTENTION = """<ir_version: 10, opset_import: ["": 21]>
net (float[b, s, 6] q, float[b, t, 6] k, float[b, t, 6] v) => (float[b, s, 6] y) {
    heads = Constant <value_ints = [0, 0, 2, 3]> () flat = Constant <value_ints = [0, 0, 6]> ()
    q4 = Reshape(q, heads) k4 = Reshape(k, heads) v4 = Reshape(v, heads)
    qh = Transpose <perm = [0, 2, 1, 3]> (q4) kh = Transpose <perm = [0, 2, 3, 1]> (k4)
    vh = Transpose <perm = [0, 2, 1, 3]> (v4)
    p = MatMul(qh, kh) a = Softmax <axis = -1> (p) h = MatMul(a, vh)
    o = Transpose <perm = [0, 2, 1, 3]> (h) y = Reshape(o, flat)
}"""


@pytest.mark.parametrize("target", [None, "onnxruntime"])
def test_a_file_is_for_any_runtime_unless_a_target_is_named(run: Callable, target: str | None) -> None:
    onnx.save(onnx.parser.parse_model(ATTENTION), "net.onnx")
    options = ["--target", target] if target else []
    outcome = run("optimize", "net.onnx", "-p", "fuse-attention", "-o", "out.onnx", "--functions", "inline", *options)
    assert (outcome.code, outcome.err) == (0, "")
    assert "2 heads of 3, 11 nodes -> 1 node" in outcome.out.splitlines()[0]
    found = {node.op_type for node in onnx.load("out.onnx").graph.node}
    assert ("MultiHeadAttention" in found, "Softmax" in found) == ((True, False) if target else (False, True))


def test_an_unknown_target_is_a_usage_error(run: Callable, onnx_file: Path) -> None:
    outcome = run("optimize", onnx_file.name, "-p", PASS, "-o", "small.onnx", "--target", "tensorrt")
    assert outcome.code == 2
    assert "'tensorrt' is not one of 'onnxruntime'" in outcome.err
    assert not Path("small.onnx").exists()


def test_a_torch_model_takes_its_inputs_from_a_file(run: Callable, zoo: str) -> None:
    np.savez("in.npz", x=np.ones((3, 32), dtype=np.float32))
    outcome = run("optimize", f"{zoo}:mlp", "-p", PASS, "-o", "small.onnx", "--inputs", "in.npz")
    assert (outcome.code, outcome.err) == (0, "")
    assert Path("small.onnx").exists()


def test_json_is_one_document_with_ledger_sizes_and_output(run: Callable, onnx_file: Path) -> None:
    outcome = run("optimize", "mlp.onnx", "-p", PASS, "-o", "small.onnx", "--json")
    assert (outcome.code, outcome.err) == (0, "")
    document = json.loads(outcome.out)
    ledger = Ledger.from_dict(document["ledger"])
    assert {entry.site: entry.status for entry in ledger} == {
        "first": "rewritten",
        "second": "rewritten",
        "head": "kept",
    }
    assert document["output"] == "small.onnx"
    assert document["bytes"] == {"model": onnx_file.stat().st_size, "output": Path("small.onnx").stat().st_size}
    assert document["recipe"] == ["low-rank"]
    assert document["model_error"] == ledger.model_error
    assert document["diff"]


def test_quiet_prints_nothing(run: Callable, onnx_file: Path) -> None:
    outcome = run("optimize", "mlp.onnx", "-p", PASS, "-o", "small.onnx", "--quiet")
    assert (outcome.code, outcome.out, outcome.err) == (0, "", "")


def test_diff_and_ledger_are_written_beside_the_model(run: Callable, onnx_file: Path) -> None:
    reports = ["--diff", "what.txt", "--ledger", "why.json"]
    assert run("optimize", "mlp.onnx", "-p", PASS, "-o", "small.onnx", *reports).code == 0
    assert "low-rank" in Path("what.txt").read_text()
    ledger = Ledger.from_dict(json.loads(Path("why.json").read_text()))
    assert [entry.site for entry in ledger.rewritten] == ["first", "second"]


def test_a_recipe_names_the_passes(run: Callable, onnx_file: Path) -> None:
    Path("recipe.yaml").write_text("passes:\n  - low-rank: {rank: 3, targets: [first]}\n")
    outcome = run("optimize", "mlp.onnx", "--recipe", "recipe.yaml", "-o", "small.onnx")
    assert outcome.code == 0
    assert "64x32 -> rank 3" in outcome.out


def test_calibration_files_are_batches(run: Callable, onnx_file: Path) -> None:
    for place in range(2):
        np.savez(f"batch{place}.npz", x=np.random.default_rng(place).standard_normal((40, 32)).astype(np.float32))
    batches = ["--calibration", "batch0.npz", "--calibration", "batch1.npz"]
    outcome = run("optimize", "mlp.onnx", "-p", PASS, "-o", "small.onnx", *batches, "--json")
    assert (outcome.code, outcome.err) == (0, "")
    entries = json.loads(outcome.out)["ledger"]["entries"]
    assert {entry["checked_on"] for entry in entries if entry["status"] == "rewritten"} == {"calibration"}


def test_the_graph_is_printed_after_a_pass_on_standard_error(run: Callable, onnx_file: Path) -> None:
    outcome = run("optimize", "mlp.onnx", "-p", PASS, "-o", "small.onnx", "--print-after-change", "--json")
    assert json.loads(outcome.out)
    assert outcome.err.startswith("# after low-rank")
    assert "lowrank_linear" in outcome.err


def test_the_same_line_twice_gives_the_same_bytes(run: Callable, onnx_file: Path) -> None:
    for name in ("one.onnx", "two.onnx"):
        assert run("optimize", "mlp.onnx", "-p", PASS, "-o", name, "--seed", 3).code == 0
    assert Path("one.onnx").read_bytes() == Path("two.onnx").read_bytes()


def test_inlined_functions_leave_only_standard_operators(run: Callable, onnx_file: Path) -> None:
    line = ["-p", PASS, "-o", "small.onnx", "--functions", "inline", "--opset", 21]
    assert run("optimize", "mlp.onnx", *line).code == 0
    model = onnx.load("small.onnx")
    assert {node.domain for node in model.graph.node} == {""}
    assert {entry.domain: entry.version for entry in model.opset_import}[""] == 21


def test_a_budget_that_is_violated_is_exit_code_3_when_asked_to_raise(run: Callable, onnx_file: Path) -> None:
    line = ["-p", PASS, "-o", "small.onnx", "--max-error", 1e-6, "--on-violation", "raise"]
    outcome = run("optimize", "mlp.onnx", *line)
    assert outcome.code == 3
    assert outcome.err.startswith("error: ")
    assert len(outcome.err.splitlines()) <= 2
    assert not Path("small.onnx").exists()


def test_a_pass_that_finds_nothing_fails_unless_told_otherwise(run: Callable, onnx_file: Path) -> None:
    line = ["optimize", "mlp.onnx", "-p", "low-rank{targets=nowhere}", "-o", "small.onnx"]
    outcome = run(*line)
    assert outcome.code == 1
    assert outcome.err.startswith("error: low-rank")
    assert not Path("small.onnx").exists()
    assert run(*line, "--no-strict").code == 0
    assert Path("small.onnx").exists()


REFUSALS = {
    "no pass": (["-o", "out.onnx"], 2, "no pass was given"),
    "misspelt pass": (["-p", "low-rnak", "-o", "out.onnx"], 2, "regraft.passes has no 'low-rnak'"),
    "misspelt option": (["-p", "low-rank{kep=1}", "-o", "out.onnx"], 2, "low-rank has no option 'kep'"),
    "open brace": (["-p", "low-rank{keep=0.4", "-o", "out.onnx"], 2, "cannot read the passes 'low-rank{keep=0.4'"),
    "missing recipe": (["--recipe", "gone.yaml", "-o", "out.onnx"], 2, "recipe gone.yaml does not exist"),
    "recipe of another kind": (["--recipe", "gone.txt", "-o", "out.onnx"], 2, "--recipe must end in .yaml or .yml"),
    "other suffix": (["-p", PASS, "-o", "out.pt"], 2, "-o must end in .onnx; got 'out.pt'"),
    "missing folder": (["-p", PASS, "-o", "deep/out.onnx"], 1, "the folder of deep/out.onnx does not exist"),
    "onto the input": (["-p", PASS, "-o", "./mlp.onnx"], 1, "mlp.onnx is an input of this command"),
    "html": (["-p", PASS, "-o", "out.onnx", "--diff", "a.html"], 2, "--diff must end in .txt or .json; got 'a.html'"),
    "ledger": (["-p", PASS, "-o", "out.onnx", "--ledger", "a.txt"], 2, "--ledger must end in .json; got 'a.txt'"),
    "one file twice": (
        ["-p", PASS, "-o", "out.onnx", "--diff", "a.json", "--ledger", "a.json"],
        2,
        "a.json is named for two outputs",
    ),
    "missing batch": (["-p", PASS, "-o", "out.onnx", "--calibration", "no.npz"], 2, "inputs no.npz do not exist"),
    "missing inputs": (["-p", PASS, "-o", "out.onnx", "--inputs", "no.npz"], 2, "inputs no.npz do not exist"),
    "negative budget": (["-p", PASS, "-o", "out.onnx", "--max-error", "-1"], 2, "budget: max_error must be at least 0"),
    "no speedup": (["-p", PASS, "-o", "out.onnx", "--min-speedup", "0"], 2, "budget: min_speedup must be above 0"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_what_cannot_be_done_is_refused_before_any_work(
    run: Callable, onnx_file: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    monkeypatch.setattr(command.regraft, "optimize", None)  # calling it would be a defect with another text
    before = onnx_file.read_bytes()
    arguments, code, text = REFUSALS[case]
    outcome = run("optimize", "mlp.onnx", *arguments)
    assert (outcome.code, outcome.out) == (code, "")
    assert outcome.err.startswith(f"error: {text}")
    assert files(onnx_file.parent) == {"mlp.onnx"}
    assert onnx_file.read_bytes() == before


@pytest.mark.parametrize(
    ("model", "code", "text"),
    [
        ("gone.onnx", 2, "model gone.onnx does not exist"),
        ("tiny_zoo:nope", 2, "tiny_zoo:nope: tiny_zoo has no 'nope'"),
        ("nosuch_package:mlp", 2, "nosuch_package:mlp: there is no module 'nosuch_package'"),
        ("tiny_zoo:wrong", 2, "tiny_zoo:wrong gave int"),
        ("tiny_zoo:broken", 1, "tiny_zoo:broken raised ValueError: found here"),
        ("tiny_zoo:mlp", 1, ""),  # needs example inputs; the text is the frontend's
        ("weights.pt", 2, "MODEL must be an .onnx file, or package.module:function"),
    ],
)
def test_a_model_that_cannot_be_had_leaves_nothing_behind(
    run: Callable, zoo: str, folder: Path, model: str, code: int, text: str
) -> None:
    before = files(folder)
    outcome = run("optimize", model, "-p", PASS, "-o", "out.onnx")
    assert (outcome.code, outcome.out) == (code, "")
    assert outcome.err.startswith(f"error: {text}")
    assert files(folder) == before


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--opset", 99], f"opset must be from 13 to {onnx.defs.onnx_opset_version()} for an ONNX model; got 99"),
        (["--seed", -1], "seed must be a whole number from 0 to 4294967295; got -1"),
        (["--seed", 2**70], f"seed must be a whole number from 0 to 4294967295; got {2**70}"),
    ],
)
def test_numbers_that_cannot_be_meant_are_usage_errors_with_the_range(
    run: Callable, onnx_file: Path, folder: Path, options: list[object], text: str
) -> None:
    outcome = run("optimize", onnx_file, "-p", PASS, "-o", "out.onnx", *options)
    assert (outcome.code, outcome.out, outcome.err) == (2, "", f"error: {text}\n")
    assert files(folder) == {onnx_file.name}


def test_the_opset_is_refused_before_the_model_is_made(run: Callable, zoo: str) -> None:
    outcome = run("optimize", f"{zoo}:broken", "-p", PASS, "-o", "out.onnx", "--opset", 13)
    newest = onnx.defs.onnx_opset_version()
    assert (outcome.code, outcome.err) == (
        2,
        f"error: opset must be from 18 to {newest} for a PyTorch model; got 13\n",
    )


def test_a_file_where_dumps_should_go_is_one_line(
    run: Callable, onnx_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REGRAFT_DUMP", str(onnx_file))
    outcome = run("optimize", onnx_file, "-p", PASS, "-o", "out.onnx")
    assert (outcome.code, outcome.out) == (1, "")
    assert outcome.err.startswith(f"error: REGRAFT_DUMP={onnx_file} cannot be made a folder: File exists\n")


def test_a_file_that_is_no_model_is_one_line(run: Callable, folder: Path) -> None:
    Path("text.onnx").write_text("this is no model")
    outcome = run("optimize", "text.onnx", "-p", PASS, "-o", "out.onnx")
    assert (outcome.code, outcome.out) == (1, "")
    assert outcome.err.startswith("error: text.onnx")
    assert "Traceback" not in outcome.err
    assert files(folder) == {"text.onnx"}


def test_the_installed_command_prints_plain_lines_into_a_pipe(onnx_file: Path) -> None:
    line = [sys.executable, "-c", "import sys; from regraft.cli import main; sys.exit(main())"]
    done = subprocess.run(
        [*line, "optimize", "mlp.onnx", "-p", PASS, "-o", "small.onnx"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "COLUMNS": "40"},
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "\x1b" not in done.stdout
    assert done.stdout.splitlines()[-1].startswith("wrote small.onnx: ")
