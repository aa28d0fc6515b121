"""Diffs across exports, which number values anew, and across several runs of `optimize`."""

import json
from pathlib import Path

import onnx
import pytest
import torch
from onnx import helper
from snapshot_strategies import node, snapshot, value
from torch import nn

import regraft
from regraft.diff import GraphDiff, diff
from regraft.errors import ModelFileError
from regraft.ledger import Entry, Ledger, PassRecord

X = torch.randn(4, 64, generator=torch.Generator().manual_seed(1))
INT8 = "llm-int8{small=true}"


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)).eval()


def optimized(model: object, passes: str) -> regraft.Optimized:
    return regraft.optimize(model, passes, example_inputs=X, progress=False)


def causes(found: GraphDiff) -> list[tuple[str, list[tuple[str, str]]]]:
    return [(change.site, [(cause.pass_name, cause.site) for cause in change.causes]) for change in found.changes]


def sizes(found: GraphDiff) -> list[str]:
    return [line[line.rindex("  ") + 2 :] for line in str(found).splitlines() if "error" in line]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """plain -> first -> second in ONNX; from_torch (rewritten in torch) -> later (that file, rewritten again)."""
    path = tmp_path_factory.mktemp("runs")
    regraft.load(network(), example_inputs=X).export(path / "plain.onnx")
    optimized(path / "plain.onnx", "low-rank").export(path / "first.onnx")
    optimized(path / "first.onnx", INT8).export(path / "second.onnx")
    optimized(network(), "low-rank").export(path / "from_torch.onnx")
    optimized(path / "from_torch.onnx", "llm-int8{small=true,heads=true}").export(path / "later.onnx")
    return path


def test_layers_whose_names_are_numbers_are_paired_across_an_export_that_numbers_values_anew(folder: Path) -> None:
    found = regraft.diff(network(), folder / "from_torch.onnx", example_inputs=X)
    assert [(change.kind, change.site, change.was, change.now) for change in found.changes] == [
        ("replaced", "0", "linear 64x64", "lowrank_linear rank 16"),
        ("replaced", "2", "linear 64x64", "lowrank_linear rank 16"),
        ("replaced", "4", "linear 10x64", "gemm 10x64"),
    ]
    assert causes(found) == [("0", [("low-rank", "0")]), ("2", [("low-rank", "2")]), ("4", [])]
    assert not found.ports


def test_two_exports_of_one_model_pair_their_layers(folder: Path) -> None:
    found = regraft.diff(folder / "plain.onnx", folder / "from_torch.onnx")
    assert causes(found) == [("0", [("low-rank", "0")]), ("2", [("low-rank", "2")])]
    later = regraft.diff(folder / "plain.onnx", folder / "later.onnx")
    assert [change.kind for change in later.changes] == ["replaced"] * 3
    assert [change.was for change in later.changes] == ["gemm 64x64", "gemm 64x64", "gemm 10x64"]


def test_a_diff_across_two_runs_names_the_passes_of_both_and_starts_from_the_dense_layer(folder: Path) -> None:
    found = regraft.diff(folder / "plain.onnx", folder / "second.onnx")
    layers = [(name, [("low-rank", name), ("llm-int8", f"{name}.up"), ("llm-int8", f"{name}.down")]) for name in "02"]
    assert causes(found) == layers
    assert "low-rank + llm-int8: 2 sites" in str(found).splitlines()
    assert sizes(found) == ["16.64 -> 2.62 kB"] * 2


def test_a_torch_run_and_a_run_of_its_file_are_joined_by_the_layers_names(folder: Path) -> None:
    found = regraft.diff(network(), folder / "later.onnx", example_inputs=X)
    assert [[cause.pass_name for cause in change.causes] for change in found.changes] == [
        ["low-rank", "llm-int8", "llm-int8"],
        ["low-rank", "llm-int8", "llm-int8"],
        ["llm-int8"],
    ]
    assert sizes(found) == ["16.64 -> 2.62 kB"] * 2 + ["2.60 -> 0.72 kB"]


def test_runs_that_made_both_models_explain_nothing(folder: Path) -> None:
    found = regraft.diff(folder / "first.onnx", folder / "second.onnx")
    assert {cause.pass_name for change in found.changes for cause in change.causes} == {"llm-int8"}
    assert sizes(found) == ["8.45 -> 2.62 kB"] * 2
    first = optimized(folder / "plain.onnx", "low-rank")
    second = optimized(first, INT8)
    assert causes(regraft.diff(first, second)) == causes(found)


def test_one_pass_in_two_runs_starts_from_the_dense_layer_once() -> None:
    weights = [value(name, 8, 8) for name in ("dense", "down", "up")]
    before = snapshot([value("x", 8)], weights[:1], [node("linear", "x dense", value("y", 8))], "y")
    after = snapshot([value("x", 8)], weights[1:], [node("lowrank_linear", "x down up", value("y", 8))], "y")
    runs = [("layer", 1000, 600), ("layer.up", 300, 200), ("layer.up", 200, 100)]
    entries = [
        Entry("low-rank", site, "rewritten", bytes_before=was, bytes_after=now, output="y") for site, was, now in runs
    ]
    joined = Ledger(entries=entries[:1]).followed_by(Ledger(entries=entries[1:]))
    assert "1.00 -> 0.40 kB" in str(diff(before, after, joined))


def test_a_ledger_that_follows_another_counts_its_passes_after_those() -> None:
    one = Ledger([PassRecord("shift-add", "shift-add", None)], [Entry("shift-add", "a", "rewritten", pass_place=0)])
    joined = one.followed_by(Ledger()).followed_by(one)
    assert [entry.pass_place for entry in joined] == [0, 1]
    assert str(joined).splitlines()[-2:] == ["shift-add: 1 rewritten"] * 2


def test_an_earlier_run_whose_ledger_is_none_is_refused(folder: Path, tmp_path: Path) -> None:
    model = onnx.load(folder / "second.onnx")
    known = {item.key: item.value for item in model.metadata_props}
    known["regraft.earlier_runs"] = json.dumps([{"regraft.recipe": "low-rank", "regraft.ledger": "[]"}])
    del model.metadata_props[:]
    helper.set_model_props(model, known)
    onnx.save(model, tmp_path / "odd.onnx")
    with pytest.raises(ModelFileError, match=r"^odd\.onnx: its metadata 'regraft\.ledger' is not a ledger: "):
        regraft.diff(folder / "plain.onnx", tmp_path / "odd.onnx")


def test_a_key_that_now_reads_the_weight_of_another_layer_is_not_followed() -> None:
    weights = [value(name, 2, 2) for name in ("first", "second")]
    one = node("linear", "x first", value("a", 2))
    before = snapshot([value("x", 2)], weights, [one, node("linear", "a second", value("b", 2))], "b")
    moved = [node("tanh", "x", value("c", 2)), node("linear", "c second", value("a", 2))]
    (change,) = diff(before, snapshot([value("x", 2)], weights[1:], moved, "a")).changes
    assert ([n.op for n in change.before], [n.op for n in change.after]) == (["linear"], ["tanh"])
