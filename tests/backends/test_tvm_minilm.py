"""The packaged MiniLM, rewritten and compiled by TVM from both graph kinds, at sizes that it was not captured with."""

from pathlib import Path
from typing import Any

import minilm
import pytest
import torch

import regraft

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def optimized() -> Any:
    passes = ["low-rank{keep=0.5}", "llm-int8"]
    return regraft.optimize(minilm.model(), passes, example_inputs=minilm.example(), progress=False, strict=False)


def inputs(batch: int, sequence: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    seen = torch.ones(batch, sequence, dtype=torch.long)
    seen[-1, (sequence + 1) // 2 :] = 0
    return {
        "input_ids": torch.randint(100, 20000, (batch, sequence), generator=generator),
        "attention_mask": seen,
    }


@pytest.mark.parametrize("kind", ["torch", "onnx"])
def test_minilm_equals_torch_at_several_sizes(optimized: Any, kind: str, tmp_path: Path) -> None:
    model = optimized if kind == "torch" else regraft.load(optimized.export(tmp_path / "minilm.onnx"))
    executable = model.compile("tvm", "llvm")
    for batch, sequence in ((2, 16), (1, 9), (5, 12)):
        given = inputs(batch, sequence)
        wanted, _ = optimized.graph.run(given)
        for got, exact in zip(executable(**given), wanted, strict=True):
            assert float((got - exact).norm() / exact.norm()) <= 1e-3
