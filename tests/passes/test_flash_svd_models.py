"""flash-svd behind low-rank on more models of the library: padded decoders, cross-attention, gated layers."""

from functools import lru_cache

import pytest
import torch
import transformers
from attention_models import HEADS, WIDTH, case, exported, inputs

from regraft.backends.onnxruntime import as_onnx
from regraft.frontends.torch import FxGraph, capture
from regraft.graph import Graph
from regraft.passes import Settings, resolve_passes, run_passes


@lru_cache(maxsize=1)
def _gated() -> FxGraph:
    """The encoder of T5 v1.1, whose feed-forward layer is gated by a GELU."""
    config = transformers.T5Config(
        vocab_size=40, d_model=WIDTH, num_layers=1, num_heads=HEADS, d_kv=5, d_ff=16, feed_forward_proj="gated-gelu"
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.T5EncoderModel(config).eval()
    return capture(model, inputs("t5", 2, 6))


def _graph(name: str, attention: str, opset: int) -> Graph:
    if name == "t5 gated":
        return as_onnx(_gated(), opset) if opset else _gated()
    return exported(name, opset, attention) if opset else case(name, attention).graph


@pytest.mark.parametrize(
    ("name", "attention", "opset", "sites"),
    [
        ("vit", "eager", 0, 2),
        ("gpt2", "sdpa", 0, 2),
        pytest.param("gpt2", "eager", 18, 2, marks=pytest.mark.slow),
        pytest.param("bart", "eager", 0, 5, marks=pytest.mark.slow),
        ("bart", "sdpa", 23, 5),
        pytest.param("t5 gated", "sdpa", 0, 2, marks=pytest.mark.slow),
        ("t5 gated", "sdpa", 18, 2),
    ],
)
def test_all_of_it_is_fused_and_the_function_of_the_factors_stays(
    name: str, attention: str, opset: int, sites: int
) -> None:
    """The second sequence sees nothing where a mask is taken; decoders are longer than what they attend to."""
    settings = Settings(strict=False)
    before, _ = run_passes(_graph(name, attention, opset), resolve_passes("low-rank{keep=0.6,heads=true}"), settings)
    after, ledger = run_passes(before, resolve_passes("flash-svd"), settings)
    assert [entry.status for entry in ledger] == ["rewritten"] * sites
    for sizes in ((2, 6), (3, 9), (1, 2)):
        example = inputs(name.split(maxsplit=1)[0], *sizes)
        wanted, found = (graph.run(example)[0][0] for graph in (before, after))
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
