"""Masked attention of many queries in ONNX Runtime: by blocks, so that the scores of all are never there at once."""

import json
from collections.abc import Iterator
from pathlib import Path

import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx_ir.passes.common import InlinePass

from regraft.backends.onnxruntime import _builder
from regraft.backends.onnxruntime._spelling import respell
from regraft.frontends.onnx import single_node_model
from regraft.frontends.onnx._session import light_proto, open_session
from regraft.ops import evaluate, get_op

ATTENTION = get_op("multi_head_attention")
BLOCK = 3


@pytest.fixture(autouse=True, scope="module")
def _short_blocks() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_builder, "QUERIES", BLOCK)
        patch.setattr(_builder, "CAUSAL_QUERIES", BLOCK)
        yield


def spelled(tensors: dict[str, torch.Tensor], attributes: dict[str, float | int], opset: int = 18) -> ir.Model:
    model = single_node_model(ATTENTION, tensors, attributes, opset)
    respell(model)
    return model


def answer(model: ir.Model, x: torch.Tensor) -> torch.Tensor:
    (y,) = open_session(*light_proto(model), "attention").run(["y"], {"x": x})
    return y


def case(
    queries: int, keys: int, *, causal: bool, masked: bool, split: bool, seed: int
) -> tuple[dict[str, torch.Tensor], dict[str, float | int]]:
    """Two query heads on one key head; with masks of each pair, among them rows that show nothing."""
    generator = torch.Generator().manual_seed(seed)
    sizes = {
        name: (2, length, heads * width) if split else (2, heads, length, width)
        for name, length, heads, width in (("q", queries, 2, 3), ("k", keys, 1, 3), ("v", keys, 1, 5))
    }
    tensors = {name: torch.randn(size, generator=generator) for name, size in sizes.items()}
    if masked:
        shown = torch.rand(2, 1, queries, keys, generator=generator) < 0.7
        shown[1, :, queries // 2] = False
        tensors["mask"] = shown
        tensors["bias"] = torch.randn(1, 2, queries, keys, generator=generator)
    return tensors, {"heads": 2, "kv_heads": 1, "split": int(split), "scale": 0.6, "causal": int(causal)}


@given(st.integers(1, 11), st.integers(1, 11), st.booleans(), st.booleans(), st.booleans(), st.integers(0, 2**16))
@settings(max_examples=50, deadline=None)
def test_any_number_of_queries_gives_what_the_oracle_says(
    queries: int, keys: int, causal: bool, masked: bool, split: bool, seed: int
) -> None:
    tensors, attributes = case(queries, keys, causal=causal, masked=masked or not causal, split=split, seed=seed)
    exact = {name: value.double() if value.is_floating_point() else value for name, value in tensors.items()}
    wanted = evaluate(ATTENTION, exact, attributes)
    got = answer(spelled(tensors, attributes), tensors["q"])
    torch.testing.assert_close(got.double(), wanted, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("opset", [18, 21, 23])
def test_a_body_with_blocks_can_be_inlined(opset: int) -> None:
    tensors, attributes = case(8, 8, causal=True, masked=True, split=True, seed=1)
    model = spelled(tensors, attributes, opset)
    wanted = answer(model, tensors["q"])
    InlinePass()(model)
    torch.testing.assert_close(answer(model, tensors["q"]), wanted, atol=0, rtol=0)


def offsets_given(
    tensors: dict[str, torch.Tensor], attributes: dict[str, float | int], folder: Path
) -> list[list[int]]:
    """Return the shapes of the offsets that the operator was given in one run, call by call."""
    options = ort.SessionOptions()
    options.enable_profiling, options.profile_file_prefix = True, str(folder / "profile")
    content = ir.to_proto(spelled(tensors, attributes)).SerializeToString()
    session = ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    session.run(["y"], {"x": tensors["q"].numpy()})
    events = json.loads(Path(session.end_profiling()).read_text())
    calls = [event["args"] for event in events if event.get("args", {}).get("op_name") == "MultiHeadAttention"]
    return [next(iter(call["input_type_shape"][-1].values())) for call in calls if "input_type_shape" in call]


def test_few_queries_attend_at_once_and_many_by_blocks_of_equal_length(tmp_path: Path) -> None:
    few = case(BLOCK, 4, causal=False, masked=True, split=True, seed=2)
    assert offsets_given(*few, tmp_path) == [[2, 2, BLOCK, 4]]
    many = case(2 * BLOCK + 1, 4, causal=False, masked=True, split=True, seed=2)
    assert offsets_given(*many, tmp_path) == [[2, 2, BLOCK, 4]] * 3


def test_causal_blocks_leave_out_the_keys_behind_them(tmp_path: Path) -> None:
    longer = case(2 * BLOCK + 1, 2 * BLOCK + 1, causal=True, masked=False, split=True, seed=3)
    assert offsets_given(*longer, tmp_path) == [[1, 1, BLOCK, keys] for keys in (BLOCK, 2 * BLOCK, 2 * BLOCK + 1)]
