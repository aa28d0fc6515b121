"""The main job on a real, trained model: PyTorch and ONNX give the same rewrite, and every form of it runs."""

from pathlib import Path
from typing import Any

import minilm
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch

import regraft
from regraft.passes import LowRank

HALF = LowRank(keep=0.5)


@pytest.fixture(scope="module")
def calibration() -> list[dict[str, torch.Tensor]]:
    return minilm.batches(minilm.CALIBRATION[:32])


@pytest.fixture(scope="module")
def from_torch(calibration: Any) -> regraft.Optimized:
    return regraft.optimize(
        minilm.model(), [HALF], example_inputs=minilm.example(), calibration=calibration, progress=False
    )


@pytest.fixture(scope="module")
def original_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("minilm") / "original.onnx"
    return regraft.load(minilm.model(), example_inputs=minilm.example()).export(path)


@pytest.fixture(scope="module")
def from_onnx(original_file: Path, calibration: Any) -> regraft.Optimized:
    return regraft.optimize(original_file, [HALF], calibration=calibration, progress=False)


def encoder_linears() -> list[str]:
    return [
        name
        for name, module in minilm.model().named_modules()
        if isinstance(module, torch.nn.Linear) and name.startswith("encoder.")
    ]


def run_file(path: Path, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {name: value.numpy() for name, value in inputs.items()})[0])


def test_all_36_encoder_linears_are_found_and_rewritten_in_both_graph_kinds(from_torch: Any, from_onnx: Any) -> None:
    assert len(encoder_linears()) == 36
    assert [entry.site for entry in from_torch.ledger.rewritten] == encoder_linears()
    assert [entry.site for entry in from_onnx.ledger.rewritten] == encoder_linears()


def test_both_graph_kinds_choose_the_same_ranks_and_keep_the_same_layers(from_torch: Any, from_onnx: Any) -> None:
    def facts(result: Any) -> list[tuple[str, str, str, str]]:
        return [(entry.site, entry.status, entry.before, entry.after) for entry in result.ledger]

    assert facts(from_torch) == facts(from_onnx)


def test_both_graph_kinds_compute_the_same(from_torch: Any, from_onnx: Any) -> None:
    inputs = minilm.example()
    with torch.no_grad():
        ours = from_torch(**inputs).last_hidden_state
    torch.testing.assert_close(from_onnx(**inputs)[0], ours, atol=1e-4, rtol=0)


def test_calibrated_factors_keep_more_of_the_embeddings_than_the_weights_alone(from_torch: Any) -> None:
    plain = regraft.optimize(minilm.model(), [HALF], example_inputs=minilm.example(), progress=False)
    wanted = minilm.embed(minilm.model(), minilm.EVALUATION)
    calibrated = minilm.cosine(wanted, minilm.embed(from_torch, minilm.EVALUATION))
    assert calibrated > minilm.cosine(wanted, minilm.embed(plain, minilm.EVALUATION)) + 0.1
    assert calibrated > 0.6


def test_the_optimized_module_runs_at_other_sizes_trains_and_exports_again(from_torch: Any) -> None:
    module = from_torch.model
    inputs = minilm.tokenize(minilm.EVALUATION[:3], length=19)
    output = module(**inputs)
    assert output.last_hidden_state.shape == (3, 19, 384)
    module.zero_grad()
    output.last_hidden_state.square().mean().backward()
    factors = [name for name, _ in module.named_parameters() if name.endswith((".down", ".up"))]
    assert len(factors) == 72
    assert all(module.get_parameter(name).grad.abs().sum() > 0 for name in factors)
    module.zero_grad()
    again = regraft.load(module, example_inputs=minilm.example())
    with torch.no_grad():
        expected = module(**inputs).last_hidden_state
        torch.testing.assert_close(again(**inputs).last_hidden_state, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("functions", ["keep", "inline"])
def test_the_exported_file_is_valid_and_runs_in_onnx_runtime(from_torch: Any, tmp_path: Path, functions: Any) -> None:
    path = from_torch.export(tmp_path / "half.onnx", functions=functions)
    onnx.checker.check_model(path, full_check=True)
    proto = onnx.load(path)
    assert {item.domain: item.version for item in proto.opset_import}[""] == 21
    assert len(proto.functions) == (1 if functions == "keep" else 0)
    inputs = minilm.tokenize(minilm.EVALUATION[:3], length=21)
    with torch.no_grad():
        expected = from_torch(**inputs).last_hidden_state
    torch.testing.assert_close(run_file(path, inputs), expected, atol=1e-4, rtol=0)


def test_whatever_is_not_rewritten_in_an_onnx_file_stays_as_it_was(
    from_onnx: Any, original_file: Path, tmp_path: Path
) -> None:
    before, after = ir.load(original_file), ir.load(from_onnx.export(tmp_path / "half.onnx"))
    covered = {key for entry in from_onnx.ledger.rewritten for key in entry.removed}
    kept = [node for node in before.graph if node.name not in covered]
    stayed = {node.name: node for node in after.graph if node.domain != "regraft"}
    assert [node.name for node in kept] == list(stayed)
    for node in kept:
        assert described(node) == described(stayed[node.name])
    assert after.opset_imports[""] == before.opset_imports[""]
    assert [described_value(value) for value in after.graph.inputs] == [described_value(v) for v in before.graph.inputs]
    assert [described_value(value) for value in after.graph.outputs] == [
        described_value(value) for value in before.graph.outputs
    ]


def described(node: ir.Node) -> Any:
    return (
        node.domain,
        node.op_type,
        [value and value.name for value in node.inputs],
        [described_value(value) for value in node.outputs],
        {name: str(attribute.value) for name, attribute in node.attributes.items()},
        dict(node.metadata_props),
        node.doc_string,
    )


def described_value(value: ir.Value) -> Any:
    return value.name, str(value.type), str(value.shape), dict(value.metadata_props)


def test_the_file_gets_smaller_by_the_bytes_that_the_ledger_says(
    from_onnx: Any, original_file: Path, tmp_path: Path
) -> None:
    path = from_onnx.export(tmp_path / "half.onnx")
    saved = sum(entry.bytes_before - entry.bytes_after for entry in from_onnx.ledger.rewritten)
    assert original_file.stat().st_size - path.stat().st_size == pytest.approx(saved, rel=0.02)


def test_a_file_remembers_its_recipe_its_ledger_and_its_source(from_onnx: Any, tmp_path: Path) -> None:
    loaded = regraft.load(from_onnx.export(tmp_path / "half.onnx"))
    assert loaded.recipe == ("low-rank",)
    assert [entry.site for entry in loaded.ledger.rewritten] == encoder_linears()
    assert len(loaded.provenance["regraft.source_sha256"]) == 64
    assert "torch=" in loaded.provenance["regraft.versions"]


def test_the_same_inputs_give_the_same_bytes(original_file: Path, calibration: Any, tmp_path: Path) -> None:
    targets = LowRank(keep=0.3, targets=("encoder.layer.0.*",))
    files = [
        regraft.optimize(original_file, [targets], calibration=calibration, progress=False).export(
            tmp_path / f"{place}.onnx"
        )
        for place in range(2)
    ]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_the_diff_names_every_rewritten_layer_once_and_its_cause(from_torch: Any, from_onnx: Any) -> None:
    for result in (from_torch, from_onnx):
        replaced = [change for change in result.diff.changes if change.kind == "replaced"]
        assert [change.site for change in replaced] == encoder_linears()
        assert all("low-rank" in str(change.cause) for change in replaced)
