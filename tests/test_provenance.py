"""What files say of the runs that made them: nothing when nothing changed, and all runs when there were several."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

import regraft
from regraft._provenance import fingerprint
from regraft.errors import ModelFileError
from regraft.frontends.onnx import load


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(24, 48), nn.ReLU(), nn.Linear(48, 24), nn.Tanh()).eval()


X = torch.randn(6, 24, generator=torch.Generator().manual_seed(1))
NONE = regraft.Budget(max_error=0.0)


def optimized(model: Any, passes: str, **options: Any) -> regraft.Optimized:
    return regraft.optimize(model, passes, example_inputs=X, progress=False, **options)


def properties(path: Path) -> dict[str, str]:
    return {item.key: item.value for item in onnx.load(path).metadata_props}


def recipes(path: Path) -> list[str]:
    found = properties(path)
    earlier = json.loads(found.get("regraft.earlier_runs", "[]"))
    return [run["regraft.recipe"] for run in (*earlier, found)]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return regraft.load(network(), example_inputs=X).export(tmp_path_factory.mktemp("plain") / "plain.onnx")


def test_a_model_that_was_only_loaded_says_of_no_run(plain: Path, tmp_path: Path) -> None:
    assert not [key for key in properties(plain) if key.startswith("regraft.")]
    again = regraft.load(plain).export(tmp_path / "again.onnx")
    assert again.stat().st_size <= plain.stat().st_size


def test_a_file_does_not_grow_when_everything_was_taken_back(plain: Path, tmp_path: Path) -> None:
    result = optimized(plain, "low-rank", budget=NONE)
    assert len(result.ledger.rolled_back) == 2
    assert result.runs == ()
    path = result.export(tmp_path / "same.onnx")
    assert path.stat().st_size <= plain.stat().st_size
    assert properties(path) == properties(plain)


def test_a_file_that_is_optimized_again_lists_its_runs_oldest_first(plain: Path, tmp_path: Path) -> None:
    first = optimized(plain, "low-rank{targets=0}").export(tmp_path / "first.onnx")
    second = optimized(first, "low-rank{targets=2}")
    path = second.export(tmp_path / "second.onnx")
    assert recipes(path) == ["low-rank{targets=[0]}", "low-rank{targets=[2]}"]
    third = optimized(path, "low-rank{rank=2,targets=[0.down;0.up;2.down;2.up]}", strict=False, budget=NONE)
    assert recipes(third.export(tmp_path / "third.onnx")) == recipes(path)


def test_the_ledger_of_every_run_is_carried_on(plain: Path, tmp_path: Path) -> None:
    first = optimized(plain, "low-rank{targets=0}")
    second = optimized(first, "low-rank{targets=2}")
    loaded = regraft.load(second.export(tmp_path / "second.onnx"))
    assert loaded.recipe == ("low-rank{targets=[2]}",)
    assert [entry.site for entry in loaded.ledger.rewritten] == ["2"]
    assert loaded.runs == second.runs
    (earlier,) = loaded.earlier
    assert earlier == first.runs[0]
    assert [entry["site"] for entry in json.loads(earlier["regraft.ledger"])["entries"]] == ["0", "2"]


def test_a_torch_result_that_is_optimized_again_carries_its_runs_on(tmp_path: Path) -> None:
    first = optimized(network(), "low-rank{targets=0}")
    second = optimized(first, "low-rank{targets=2}")
    taken_back = optimized(second, "llm-int8{small=true}", budget=NONE)
    assert taken_back.runs == second.runs
    for place, result in enumerate((second, taken_back)):
        path = result.export(tmp_path / f"{place}.onnx")
        assert recipes(path) == ["low-rank{targets=[0]}", "low-rank{targets=[2]}"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[" * 100_000, "is not JSON: "),
        ("no", "is not JSON: "),
        ("3", "must be a list of objects of texts"),
        ('[{"regraft.recipe": 3}]', "must be a list of objects of texts"),
    ],
)
def test_a_list_of_runs_that_is_none_is_refused(plain: Path, tmp_path: Path, text: str, problem: str) -> None:
    model = onnx.load(plain)
    helper.set_model_props(model, {"regraft.recipe": "low-rank", "regraft.earlier_runs": text})
    onnx.save(model, tmp_path / "odd.onnx")
    with pytest.raises(ModelFileError) as caught:
        regraft.load(tmp_path / "odd.onnx")
    assert str(caught.value).startswith(f"odd.onnx: its metadata 'regraft.earlier_runs' {problem}")


def stored(dtype: int, raw: bytes, extent: int) -> onnx.ModelProto:
    weight = helper.make_tensor("w", dtype, [extent], raw, raw=True)
    return reading(weight, dtype, extent)


def reading(weight: onnx.TensorProto, dtype: int, extent: int) -> onnx.ModelProto:
    result = helper.make_tensor_value_info("y", dtype, [extent])
    graph = helper.make_graph([helper.make_node("Identity", ["w"], ["y"])], "net", [], [result], [weight])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def texts(*content: str) -> onnx.ModelProto:
    return reading(
        helper.make_tensor("w", TensorProto.STRING, [len(content)], content), TensorProto.STRING, len(content)
    )


@pytest.mark.parametrize(
    "pair",
    [
        (stored(TensorProto.INT4, b"\x12", 2), stored(TensorProto.INT4, b"\x13", 2)),
        (stored(TensorProto.FLOAT8E4M3FN, b"\x01\x02", 2), stored(TensorProto.FLOAT8E4M3FN, b"\x01\x03", 2)),
        (texts("a", "bc"), texts("ab", "c")),
    ],
    ids=["int4", "float8", "texts"],
)
def test_models_that_differ_in_weights_that_torch_cannot_hold_have_different_hashes(
    pair: tuple[onnx.ModelProto, onnx.ModelProto],
) -> None:
    first, second = map(load, pair)
    assert str(first.snapshot()) == str(second.snapshot())
    assert fingerprint(first) != fingerprint(second)
    assert fingerprint(first) == fingerprint(load(pair[0]))


def test_bfloat16_comes_out_as_the_array_that_onnx_has_for_it() -> None:
    text = (
        '<ir_version: 8, opset_import: ["": 17]> net (float[b, 2] x) => (bfloat16[b, 2] y) { y = Cast <to = 16> (x) }'
    )
    loaded = regraft.load(onnx.parser.parse_model(text))
    given = np.array([[1.5, -2.0]], dtype=np.float32)
    for outputs in (loaded(given), loaded.compile("onnxruntime")(given)):
        assert outputs[0].dtype == ir.DataType.BFLOAT16.numpy()
        assert outputs[0].astype(np.float32).tolist() == given.tolist()
