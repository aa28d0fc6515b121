"""The pass flash-svd on a real, trained model: all blocks fused in both graph kinds, the embeddings as they were."""

from pathlib import Path
from typing import Any, Literal

import minilm
import onnx
import onnxruntime as ort
import pytest
import torch

import regraft
from regraft.passes import FlashSVD, LowRank


@pytest.fixture(scope="module", params=["torch", "onnx"])
def results(request: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[regraft.Optimized, regraft.Optimized]:
    """Low-rank alone, and flash-svd behind it."""
    model: Any = minilm.model()
    given: Any = {"example_inputs": minilm.example()}
    if request.param == "onnx":
        path = tmp_path_factory.mktemp("flash") / "original.onnx"
        model, given = regraft.load(model, **given).export(path), {}
    factors = regraft.optimize(model, [LowRank(keep=0.5)], progress=False, **given)
    given = given or {"example_inputs": minilm.example()}
    return factors, regraft.optimize(factors, [FlashSVD()], progress=False, **given)


def test_all_blocks_are_fused_and_embeddings_stay_as_low_rank_left_them(results: Any) -> None:
    factors, fused = results
    done = fused.ledger.rewritten
    names = [(f"encoder.layer.{place}.attention.self", f"encoder.layer.{place}") for place in range(6)]
    assert [entry.site for entry in done] == [name for pair in names for name in pair]
    assert [entry.op for entry in done] == ["lowrank_attention", "lowrank_mlp"] * 6
    assert all(entry.measured_error < 1e-5 for entry in done)
    wanted, found = (minilm.embed(result, minilm.EVALUATION) for result in (factors, fused))
    assert minilm.cosine(wanted, found) > 1 - 1e-6
    original = minilm.embed(minilm.model(), minilm.EVALUATION)
    assert minilm.cosine(original, found) == pytest.approx(minilm.cosine(original, wanted), abs=1e-4)


def test_each_block_is_one_entry_of_the_diff(results: Any) -> None:
    _, fused = results
    changes = [change for change in fused.diff.changes if len(change.after) == 1 and change.before]
    blocks = [change for change in changes if change.after[0].op in ("lowrank_attention", "lowrank_mlp")]
    assert [change.site for change in blocks] == [entry.site for entry in fused.ledger.rewritten]
    assert {change.kind for change in blocks} == {"replaced"}


@pytest.mark.parametrize("functions", ["keep", "inline"])
def test_its_file_runs_in_onnx_runtime(results: Any, functions: Literal["keep", "inline"], tmp_path: Path) -> None:
    _, fused = results
    path = fused.export(tmp_path / "fused.onnx", functions=functions)
    onnx.checker.check_model(path, full_check=True)
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    inputs = minilm.tokenize(minilm.EVALUATION[:3], length=21)
    given = {name: tensor.numpy() for name, tensor in inputs.items()}
    found = torch.from_numpy(session.run(None, given)[0])
    with torch.no_grad():
        out = fused(**inputs)
    wanted = out[0] if isinstance(out, tuple) else out.last_hidden_state
    torch.testing.assert_close(found, torch.as_tensor(wanted), atol=1e-4, rtol=0)
