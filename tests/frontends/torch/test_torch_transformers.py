"""Tiny models of transformers: encoders and decoders without their cache, rewritten, trained and exported again."""

from typing import Any

import pytest
import torch
from torch_models import TRANSFORMERS, factorize, rewritten, site_of, token_inputs, transformer
from transformers import T5Config, T5EncoderModel

from regraft.frontends.torch import capture
from regraft.graph import find_linear_sites

NAMES = tuple(TRANSFORMERS)


def tensors(output: Any) -> list[torch.Tensor]:
    return [value for name, value in output.items() if name != "past_key_values"]


@pytest.mark.parametrize("name", NAMES)
def test_captured_once_it_runs_at_any_batch_and_length_like_the_model(name: str) -> None:
    case = transformer(name)
    assert [rung.name for rung in case.graph.capture_report] == ["export, all dims dynamic"]
    for batch, length in ((3, 5), (1, 11), (2, 2)):
        inputs = token_inputs(batch, length, seed=length)
        with torch.no_grad():
            wanted = case.model(**inputs)
            by_name, by_place = case.graph.module(**inputs), case.graph.module(*inputs.values())
        assert type(by_name) is type(wanted)
        for one, other, expected in zip(tensors(by_name), tensors(by_place), tensors(wanted), strict=True):
            assert torch.equal(one, expected)
            assert torch.equal(other, expected)
        for found, expected in zip(case.graph.run(inputs)[0], tensors(wanted), strict=True):
            assert torch.equal(found, expected)


@pytest.mark.parametrize("name", NAMES)
def test_inputs_and_outputs_have_the_dims_that_people_know(name: str) -> None:
    graph = transformer(name).graph
    ids, mask = graph.inputs()
    assert (ids.name, str(ids.type)) == ("input_ids", "int64[batch, sequence]")
    assert (mask.name, mask.type.rank) == ("attention_mask", 2)
    assert str(graph.outputs()[0].type).startswith("float32[batch, sequence, ")


@pytest.mark.parametrize("name", NAMES)
def test_scopes_are_names_of_the_model_s_modules(name: str) -> None:
    case = transformer(name)
    modules = {path for path, _ in case.model.named_modules()}
    assert {node.scope for node in case.graph.nodes()} <= modules


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("bert", ["encoder.layer.0.attention.self.query", "encoder.layer.1.output.dense", "pooler.dense"]),
        ("gpt2", ["transformer.h.0.attn.c_attn", "transformer.h.1.mlp.c_proj", "lm_head"]),
        ("llama", ["model.layers.0.self_attn.k_proj", "model.layers.1.mlp.down_proj", "lm_head"]),
    ],
)
def test_every_layer_is_found_under_its_name(name: str, layers: list[str]) -> None:
    case = transformer(name)
    kinds = (torch.nn.Linear,) if name != "gpt2" else (torch.nn.Linear, _conv1d(case.model))
    expected = [path for path, module in case.model.named_modules() if isinstance(module, kinds)]
    found = [site.name for site in find_linear_sites(case.graph)[0]]
    assert sorted(found) == sorted(expected)
    assert set(layers) <= set(found)


@pytest.mark.parametrize("name", NAMES)
def test_with_every_layer_rewritten_it_computes_the_same(name: str) -> None:
    case = transformer(name)
    graph = rewritten(case.graph)
    graph.validate()
    inputs = token_inputs(3, 7)
    with torch.no_grad():
        wanted = tensors(case.model(**inputs))
    for found, expected in zip(graph.run(inputs)[0], wanted, strict=True):
        assert torch.allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_rewritten_it_is_exported_again_with_the_same_symbols_and_trains(name: str) -> None:
    graph = rewritten(transformer(name).graph)
    args, kwargs = graph.example_inputs
    with torch.no_grad():
        program = torch.export.export(graph.module, args, kwargs, dynamic_shapes=graph.dynamic_shapes)
    given = set(program.graph_signature.user_inputs)
    symbols = {str(extent) for node in program.graph.nodes if node.name in given for extent in node.meta["val"].shape}
    assert symbols == set(graph.dim_names)
    inputs = token_inputs(3, 4)
    wanted = graph.run(inputs)[0][0]
    assert torch.allclose(tensors(program.module()(**inputs))[0], wanted, atol=1e-6)
    module = graph.module.train()
    sum(tensor.square().sum() for tensor in tensors(module(**inputs))).backward()
    assert [name for name, parameter in module.named_parameters() if parameter.grad is None] == []
    module.zero_grad()


def test_a_tied_head_and_embedding_are_one_constant_with_two_users() -> None:
    graph = transformer("gpt2").graph
    tied = next(value for value in graph.constants() if value.name == "transformer.wte.weight")
    assert [(user.op, user.scope) for user in tied.users] == [("embedding", "transformer.wte"), ("linear", "lm_head")]
    assert not any(value.name == "lm_head.weight" for value in graph.constants())
    assert site_of(graph, "lm_head").weight_readers == ("transformer.wte",)
    state = graph.module.state_dict()
    assert state["lm_head.weight"].data_ptr() == state["transformer.wte.weight"].data_ptr()


def test_rewriting_a_tied_head_leaves_the_embedding_alone() -> None:
    case = transformer("gpt2")
    graph = case.graph.copy()
    factorize(graph, site_of(graph, "lm_head"))
    names = {name for name in graph.module.state_dict() if name.startswith(("lm_head", "transformer.wte"))}
    assert names == {"transformer.wte.weight", "lm_head.down", "lm_head.up"}
    assert "lm_head.weight" in case.graph.module.state_dict()
    graph.validate()


def test_a_decoder_keeps_its_cache_setting() -> None:
    assert transformer("gpt2").model.config.use_cache is True


def test_a_model_of_transformers_needs_no_example_inputs() -> None:
    graph = capture(transformer("bert").model)
    assert [value.name for value in graph.inputs()] == ["input_ids"]


def _conv1d(model: torch.nn.Module) -> type:
    return type(model.get_submodule("transformer.h.0.attn.c_attn"))


def test_a_t5_that_was_captured_without_gradients_runs_and_trains_with_them() -> None:
    torch.manual_seed(0)
    config = T5Config(vocab_size=50, d_model=32, num_layers=1, num_heads=4, d_kv=8, d_ff=64)
    model = T5EncoderModel(config).eval()
    ids = torch.randint(0, 50, (2, 7))
    graph = capture(model, (ids,))
    with torch.no_grad():
        wanted = model(ids)[0]
    got = graph.module(ids)[0]
    torch.testing.assert_close(got, wanted)
    got.sum().backward()
