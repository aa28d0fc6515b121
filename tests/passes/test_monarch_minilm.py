"""The pass monarch on a real, trained model: both graph kinds, ONNX Runtime, and what is left of the embeddings."""

from pathlib import Path
from typing import Any

import minilm
import onnxruntime as ort
import pytest
import torch

import regraft
from regraft.passes import Monarch

FIRST = Monarch(targets=("encoder.layer.0.*",))


@pytest.fixture(scope="module")
def original_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("monarch") / "original.onnx"
    return regraft.load(minilm.model(), example_inputs=minilm.example()).export(path)


def _optimize(model: Any, item: Monarch, **options: Any) -> regraft.Optimized:
    return regraft.optimize(model, [item], progress=False, **options)


def test_both_graph_kinds_and_onnxruntime_compute_the_same(original_file: Path, tmp_path: Path) -> None:
    calibration = minilm.batches(minilm.CALIBRATION[:16])
    from_torch = _optimize(minilm.model(), FIRST, example_inputs=minilm.example(), calibration=calibration)
    from_onnx = _optimize(original_file, FIRST, calibration=calibration)
    facts = [[(entry.site, entry.status, entry.after) for entry in result.ledger] for result in (from_torch, from_onnx)]
    assert facts[0] == facts[1]
    assert len(from_torch.ledger.rewritten) == 6
    inputs = minilm.example()
    with torch.no_grad():
        wanted = from_torch(**inputs).last_hidden_state
    torch.testing.assert_close(from_onnx(**inputs)[0], wanted, atol=1e-4, rtol=0)
    for name, result in (("torch", from_torch), ("onnx", from_onnx)):
        path = result.export(tmp_path / f"{name}.onnx")
        assert path.stat().st_size < original_file.stat().st_size
        session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
        (found, *_) = session.run(None, {key: value.numpy() for key, value in inputs.items()})
        torch.testing.assert_close(torch.from_numpy(found), wanted, atol=1e-4, rtol=0)


@pytest.mark.slow
def test_refitted_blocks_keep_far_more_of_the_embeddings_than_the_weights_alone() -> None:
    """At half of the parameters, on sentences not used for calibration: about 0.69 against 0.33."""
    wanted = minilm.embed(minilm.model(), minilm.EVALUATION)
    calibration = minilm.batches(minilm.CALIBRATION)
    results = [
        _optimize(minilm.model(), item, example_inputs=minilm.example(), calibration=calibration)
        for item in (Monarch(), Monarch(refit=False))
    ]
    for result in results:
        assert len(result.ledger.rewritten) == 36
    refitted, plain = (minilm.cosine(wanted, minilm.embed(result, minilm.EVALUATION)) for result in results)
    assert refitted > 0.65
    assert refitted > plain + 0.25
