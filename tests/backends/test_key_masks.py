"""Masks that hide keys from all queries alike: found behind what spreads them, and made a feature of the heads."""

import math
from typing import Any

import onnx_ir as ir
import pytest
import torch
from attention_models import case, inputs
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import regraft
from regraft.backends.onnxruntime._key_masks import KeyMasks, is_key_mask, remove_unused
from regraft.backends.onnxruntime._spelling import CONTRIB, for_this_runtime, respell
from regraft.frontends.onnx import load, single_node_model
from regraft.frontends.onnx._session import light_proto, open_session
from regraft.ops import Example, evaluate, get_op

ATTENTION = get_op("multi_head_attention")


def own_operators(model: ir.Model) -> list[ir.Node]:
    bodies = [node for function in model.functions.values() for node in function.all_nodes()]
    return [node for node in (*model.graph.all_nodes(), *bodies) if node.op_type == "MultiHeadAttention"]


def has_buffer(node: ir.Node) -> bool:
    """Whether it is given numbers for each pair of a query and a key."""
    assert node.domain == CONTRIB
    return len(node.inputs) > 3 and node.inputs[5] is not None


def answer(model: ir.Model, x: Tensor) -> Tensor:
    (y,) = open_session(*light_proto(model), "attention").run(["y"], {"x": x})
    return y


def rows(kind: str, batch: int, keys: int, generator: torch.Generator) -> Tensor:
    """A mask of keys, with rows that show all, some and nothing."""
    shown = torch.rand(batch, 1, 1, keys, generator=generator) < 0.6
    shown[0] = True
    shown[-1] = batch == 1
    if kind == "bool":
        return shown
    least = {"-inf": -math.inf, "lowest": torch.finfo(torch.float32).min, "-1e4": -1e4}[kind]
    offset = torch.where(shown, torch.zeros(()), torch.tensor(least))
    return offset + torch.randn(batch, 1, 1, keys, generator=generator) if kind == "-inf" else offset


@given(
    st.sampled_from(["bool", "-inf", "lowest", "-1e4"]),
    st.integers(1, 3),
    st.integers(1, 9),
    st.integers(1, 9),
    st.sampled_from([(4, 4, 3), (4, 2, 5), (1, 1, 8)]),
    st.booleans(),
    st.integers(0, 2**16),
)
@settings(max_examples=40, deadline=None)
def test_a_mask_of_keys_takes_no_buffer_and_is_what_the_oracle_says(
    kind: str, batch: int, queries: int, keys: int, shape: tuple[int, int, int], split: bool, seed: int
) -> None:
    heads, kv_heads, width = shape
    generator = torch.Generator().manual_seed(seed)
    sizes = {
        name: (batch, length, count * width) if split else (batch, count, length, width)
        for name, length, count in (("q", queries, heads), ("k", keys, kv_heads), ("v", keys, kv_heads))
    }
    tensors = {name: torch.randn(size, generator=generator) for name, size in sizes.items()}
    tensors["mask" if kind == "bool" else "bias"] = rows(kind, batch, keys, generator)
    attributes = {"heads": heads, "kv_heads": kv_heads, "split": int(split), "scale": width**-0.5, "causal": 0}
    model = single_node_model(ATTENTION, tensors, attributes, 18)
    respell(model)
    assert [has_buffer(node) for node in own_operators(model)] == [False]
    exact = {name: value.double() if value.is_floating_point() else value for name, value in tensors.items()}
    wanted = evaluate(ATTENTION, exact, attributes)
    # -1e4 takes digits off the scores of a row that it hides throughout, in every order of the sum.
    atol = 1e-5 if kind != "-1e4" else 2e-3
    torch.testing.assert_close(answer(model, tensors["q"]).double(), wanted, atol=atol, rtol=1e-4)


def test_what_is_hidden_by_infinity_stays_so_beside_the_lowest_finite_numbers() -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = {name: torch.randn(1, 3, 4, generator=generator) for name in "qkv"}
    lowest = torch.finfo(torch.float32).min
    tensors["bias"] = torch.tensor([-math.inf, lowest, lowest]).view(1, 1, 1, 3)
    attributes = {"heads": 2, "kv_heads": 2, "split": 1, "scale": 0.5, "causal": 0}
    model = single_node_model(ATTENTION, tensors, attributes, 18)
    respell(model)
    wanted = tensors["v"][:, 1:].mean(1, keepdim=True).expand(1, 3, 4)  # both that are left, alike
    torch.testing.assert_close(answer(model, tensors["q"]), wanted, atol=1e-5, rtol=1e-5)


def masked(shape: tuple[int, ...], causal: int = 0, scale: float = 0.5) -> ir.Model:
    example = Example(
        "masked",
        {"q": (2, 3, 4), "k": (2, 3, 4), "v": (2, 3, 4), "bias": shape},
        {"heads": 2, "kv_heads": 2, "split": 1, "scale": scale, "causal": causal},
    )
    model = single_node_model(ATTENTION, example.tensors(torch.float32), example.attributes, 18)
    respell(model)
    return model


@pytest.mark.parametrize("shape", [(2, 1, 3, 3), (2, 2, 1, 3), (1, 1, 3, 1)])
def test_masks_that_tell_queries_or_heads_apart_keep_the_buffer(shape: tuple[int, ...]) -> None:
    assert {has_buffer(node) for node in own_operators(masked(shape))} == {True}


def test_a_causal_form_keeps_the_buffer() -> None:
    assert {has_buffer(node) for node in own_operators(masked((2, 1, 1, 3), causal=1))} == {True}


def test_a_scale_whose_inverse_may_overflow_keeps_the_buffer() -> None:
    assert {has_buffer(node) for node in own_operators(masked((2, 1, 1, 3), scale=1e-5))} == {True}


HEADER = """<ir_version: 10, opset_import: ["" : 18]>
g (bool[b, 1, 1, k] keys, bool[1, 1, q, 1] queries, int64[1] count) => (float[b, 1, q, k] y)
<int64 zero = {0}, int64 one = {1}, float shown = {0.0}, float hidden = {-1.0}, int64 minus = {-1}>
"""


def lookup(body: str, mask: str) -> tuple[ir.Value | None, ir.Model]:
    """Return what is found behind a mask of a graph."""
    model = ir.from_onnx_text(HEADER + "{" + body + "}")
    for node in model.graph:  # as the frontend infers it
        for value in node.outputs:
            value.shape = ir.Shape(["b", 1, "q", "k"]) if value.name in ("mask", "y") else value.shape
    value = next(value for node in model.graph for value in node.outputs if value.name == mask)
    return KeyMasks().of(value), model


def spread(start: str) -> str:
    return (
        "axes = Constant<value_ints = [0, 1, 3]>() n = Squeeze(count) "
        f"places = Range({start}, n, one) wide = Unsqueeze(places, axes) "
        "seen = GreaterOrEqual(wide, zero) mask = And(seen, keys) y = Where(mask, shown, hidden)"
    )


def test_booleans_that_are_always_true_are_looked_behind() -> None:
    found, model = lookup(spread("zero"), "mask")
    assert found is model.graph.inputs[0]


def test_positions_that_may_be_negative_are_not_always_true() -> None:
    found, _ = lookup(spread("minus"), "mask")
    assert found is None


def test_a_mask_of_queries_is_not_left_out() -> None:
    found, _ = lookup("mask = And(queries, keys) y = Where(mask, shown, hidden)", "mask")
    assert found is None


def test_an_expansion_is_looked_behind() -> None:
    found, model = lookup("s = Shape(y0) y0 = Where(queries, shown, hidden) mask = Expand(keys, s)", "mask")
    assert found is model.graph.inputs[0]


def test_numbers_chosen_by_a_spread_mask_are_chosen_by_key_and_the_rest_goes() -> None:
    found, model = lookup(spread("zero"), "y")
    assert found is not None
    assert is_key_mask(found)
    assert [value.name for value in found.producer().inputs] == ["keys", "shown", "hidden"]  # type: ignore[union-attr]
    model.graph.outputs[0] = found
    remove_unused([node.outputs[0] for node in model.graph if node.name == "" or node.op_type == "Where"])
    assert [node.op_type for node in model.graph] == ["Where"]
    assert set(model.graph.initializers) == {"shown", "hidden", "minus"}  # what was never read was not ours to remove


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Any:
    graph = case("bert").graph
    model = regraft.load(graph.module, example_inputs=inputs("bert", 2, 6))
    return model.export(tmp_path_factory.mktemp("masks") / "bert.onnx")


def test_attention_of_an_exported_bert_takes_no_buffer(exported: Any) -> None:
    model = for_this_runtime(load(exported)).model
    assert [has_buffer(node) for node in own_operators(model)] == [False]  # one body for two layers
    masks = {node.inputs[3] for node in model.graph if node.op_type.startswith("MultiHeadAttention")}
    assert len(masks) == 1
    assert all(is_key_mask(mask) for mask in masks if mask is not None)
    given_inputs = inputs("bert", 3, 5)
    got = regraft.load(exported).compile()(**given_inputs)[0]
    wanted = regraft.load(exported).compile(fuse_attention=False)(**given_inputs)[0]
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-5)
