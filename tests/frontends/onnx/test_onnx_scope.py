"""Layers have the names that the user's model gives them, whichever exporter wrote the file."""

import logging
import warnings

import onnx
import pytest
import torch
from onnx_models import mlp, parse, rewrite_all, sites
from torch import nn
from transformers import BertConfig, BertModel

from regraft.frontends.onnx import OnnxGraph, load


def with_scopes(scopes: str) -> OnnxGraph:
    model = mlp()
    model.graph.node[2].metadata_props.add(key="pkg.torch.onnx.name_scopes", value=scopes)
    return load(model)


@pytest.mark.parametrize(
    ("scopes", "layer"),
    [
        ("['', 'encoder', 'encoder.layer.0', 'linear_3']", "encoder.layer.0"),
        ("['', 'relu']", ""),
        ("['relu']", ""),
        ("['_empty_nn_module_stack_from_metadata_hook', 'scalar_tensor']", ""),
        ("[]", ""),
        ("no list at all", ""),
        ("['', \"L['self'].encoder.up\", 'relu']", "encoder.up"),
        ("[" * 100_000, ""),
    ],
)
def test_the_innermost_module_of_the_exporters_metadata_is_the_layer(scopes: str, layer: str) -> None:
    assert with_scopes(scopes).nodes()[2].scope == layer


def test_without_metadata_a_layer_is_called_after_its_bias_even_one_step_ahead() -> None:
    graph = load(mlp())
    assert [node.scope for node in graph.nodes()] == ["up", "up", "act", "down"]


def test_without_names_of_weights_a_layer_is_called_after_its_node() -> None:
    graph = load(parse("net (float[b, 6] x) => (float[b, 4] y) { [proj] y = MatMul(x, w) }", {"w": (6, 4)}))
    assert graph.nodes()[0].scope == "proj"


def test_node_names_of_the_torchscript_exporter_are_paths_of_modules() -> None:
    model = parse("net (float[b, 6] x) => (float[b, 4] y) { [n] y = MatMul(x, w) }", {"w": (6, 4)})
    model.graph.node[0].name = "/model/layers.0/self_attn/q_proj/MatMul"
    assert load(model).nodes()[0].scope == "model.layers.0.self_attn.q_proj"
    model.graph.node[0].name = "/MatMul"
    assert load(model).nodes()[0].scope == "/MatMul"


@pytest.fixture(scope="module")
def bert() -> tuple[nn.Module, onnx.ModelProto]:
    """A small BertModel and what the torch exporter makes of it, batch and sequence dynamic."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=20,
    )
    model = BertModel(config).eval()
    for parameter in model.parameters():  # equal biases would be stored as one
        nn.init.normal_(parameter, std=0.3)
    ids = torch.ones(2, 7, dtype=torch.int64)
    inputs = {"input_ids": ids, "attention_mask": ids.clone()}  # one tensor twice would be taken for one input
    dims = {name: {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC} for name in inputs}
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the exporter's own
        program = torch.export.export(model, (), inputs, dynamic_shapes=dims)
        exported = torch.onnx.export(program, dynamo=True, opset_version=20, verbose=False)
    assert exported is not None
    return model, exported.model_proto


def test_an_exported_bert_has_the_layers_of_the_module(bert: tuple[nn.Module, onnx.ModelProto]) -> None:
    module, exported = bert
    wanted = [name for name, layer in module.named_modules() if isinstance(layer, nn.Linear)]
    found = sites(load(exported))
    assert list(found) == wanted
    for name, site in found.items():
        layer = module.get_submodule(name)
        assert isinstance(layer, nn.Linear)
        torch.testing.assert_close(site.weight, layer.weight.detach())
        assert site.bias is not None
        torch.testing.assert_close(site.bias, layer.bias.detach())


def test_every_node_of_an_exported_bert_lies_in_a_module_of_it(bert: tuple[nn.Module, onnx.ModelProto]) -> None:
    module, exported = bert
    names = dict(module.named_modules())
    assert {node.scope for node in load(exported).nodes()} <= set(names)


def test_a_rewritten_bert_computes_the_same_at_other_extents(bert: tuple[nn.Module, onnx.ModelProto]) -> None:
    module, exported = bert
    graph = load(exported)
    rewrite_all(graph)
    graph.validate()
    ids = torch.randint(0, 50, (3, 11), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    (hidden, pooled), _ = graph.run({"input_ids": ids, "attention_mask": mask})
    with torch.no_grad():
        wanted = module(ids, mask)
    torch.testing.assert_close(hidden, wanted.last_hidden_state, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(pooled, wanted.pooler_output, rtol=1e-4, atol=1e-4)
    assert [node.scope for node in graph.nodes() if node.op == "lowrank_linear"] == list(sites(load(exported)))
