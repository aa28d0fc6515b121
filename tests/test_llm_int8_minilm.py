"""llm-int8 on a real, trained model: embeddings, bytes, and both kinds of graph; sentences not used for calibration."""

from pathlib import Path
from typing import Any

import minilm
import pytest
import torch

import regraft
from regraft.passes import LLMInt8

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def calibration() -> list[dict[str, torch.Tensor]]:
    return minilm.batches(minilm.CALIBRATION)


@pytest.fixture(scope="module")
def wanted() -> torch.Tensor:
    return minilm.embed(minilm.model(), minilm.EVALUATION)


def optimized(item: LLMInt8, calibration: Any = None) -> regraft.Optimized:
    return regraft.optimize(
        minilm.model(), [item], example_inputs=minilm.example(), calibration=calibration, progress=False
    )


def share(result: regraft.Optimized) -> float:
    entries = result.ledger.rewritten
    return sum(entry.bytes_after or 0 for entry in entries) / sum(entry.bytes_before or 0 for entry in entries)


@pytest.mark.parametrize(("activations", "least"), [("row", 0.9990), ("tensor", 0.998)])
def test_embeddings_and_bytes_are_what_the_pass_is_for(
    activations: Any, least: float, calibration: Any, wanted: torch.Tensor
) -> None:
    result = optimized(LLMInt8(activations=activations), calibration)
    assert len(result.ledger.rewritten) == 36
    assert minilm.cosine(wanted, minilm.embed(result, minilm.EVALUATION)) >= least
    assert share(result) <= 0.27


def test_without_calibration_the_outliers_of_each_call_keep_the_embeddings(wanted: torch.Tensor) -> None:
    dynamic = minilm.cosine(wanted, minilm.embed(optimized(LLMInt8()), minilm.EVALUATION))
    none = minilm.cosine(wanted, minilm.embed(optimized(LLMInt8(outliers="none")), minilm.EVALUATION))
    assert dynamic >= 0.9990 > none


def test_the_exported_file_and_the_rewritten_file_agree_in_onnx_runtime(calibration: Any, tmp_path: Path) -> None:
    item = LLMInt8()
    from_torch = optimized(item, calibration)
    original = regraft.load(minilm.model(), example_inputs=minilm.example()).export(tmp_path / "original.onnx")
    from_onnx = regraft.optimize(original, [item], calibration=calibration, progress=False)
    assert [(entry.site, entry.after) for entry in from_torch.ledger.rewritten] == [
        (entry.site, entry.after) for entry in from_onnx.ledger.rewritten
    ]
    inputs = minilm.tokenize(minilm.EVALUATION[:3], length=21)
    with torch.no_grad():
        dense = minilm.model()(**inputs).last_hidden_state
        expected = from_torch(**inputs).last_hidden_state
    off = float((expected - dense).norm())
    for run in (regraft.load(from_torch.export(tmp_path / "int8.onnx")), from_onnx):
        # The last digit decides on which side of an edge between two codes a value falls, and 24 layers later that has
        # grown to the size of the error in 8 bits. Layer by layer the passes' checks compare them exactly.
        found = run(**inputs)[0]
        assert float((found - expected).norm()) < off
        assert float((found - dense).norm()) == pytest.approx(off, rel=0.15)
