"""Conversions to the type of another value, once the type is known: plain, of the same content, and fused."""

from pathlib import Path

import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from onnx_models import parse

from regraft.frontends.onnx import load, save, single_node_model
from regraft.frontends.onnx._settle import settle_types
from regraft.ops import get_op

OP = get_op("lowrank_mlp")
EXAMPLE = OP.examples[0]


def _operators(model: ir.Model | onnx.ModelProto) -> list[str]:
    return (
        [node.op_type for node in model.graph] if isinstance(model, ir.Model) else [n.op_type for n in model.graph.node]
    )


def _settled(text: str) -> ir.Model:
    model = ir.from_proto(parse(text))
    settle_types(model)
    return model


def test_a_conversion_of_a_known_type_is_plain_and_that_of_a_constant_a_constant() -> None:
    model = _settled("""net (float16[n] x, float[n] z) => (float16[n] y) {
        one = Constant <value = double {1.5}> ()
        like = CastLike (one, x)
        turned = CastLike (z, x)
        sum = Add (turned, like)
        y = Add (sum, x)
    }""")
    assert sorted(_operators(model)) == ["Add", "Add", "Cast", "Constant", "Constant"]
    made = next(node for node in model.graph if node.outputs[0].name == "like")
    content = made.attributes["value"].as_tensor()
    assert (content.dtype, content.numpy().tolist()) == (ir.DataType.FLOAT16, 1.5)


def test_the_type_of_what_is_computed_is_inferred() -> None:
    model = _settled("""net (float[n] x, float16[n] z) => (float[n] y) {
        half = Relu (x)
        turned = CastLike (z, half)
        y = Add (turned, x)
    }""")
    assert _operators(model) == ["Relu", "Cast", "Add"]


def test_a_conversion_to_an_unknown_type_stays() -> None:
    model = _settled("""net (float[n] x) => (float[n] y) {
        odd = custom.Odd (x)
        turned = CastLike (x, odd)
        y = Relu (turned)
    }""")
    assert _operators(model) == ["Odd", "CastLike", "Relu"]


@pytest.mark.parametrize("opset", [15, 18, 21])
def test_an_inlined_file_computes_the_same_and_its_activations_are_fused(tmp_path: Path, opset: int) -> None:
    tensors = EXAMPLE.tensors(torch.float32)
    model = single_node_model(OP, tensors, EXAMPLE.attributes, opset, EXAMPLE.dynamic)
    model.graph.outputs[0].shape = ir.Shape(["a", "b", 6])
    graph = load(model)
    save(graph, tmp_path / "inlined.onnx", functions="inline")
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    session = ort.InferenceSession(tmp_path / "inlined.onnx", options, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"x": tensors["x"].numpy()})
    torch.testing.assert_close(torch.from_numpy(found), graph.run((tensors["x"],))[0][0])
    fused = _operators(onnx.load(tmp_path / "optimized.onnx"))
    assert sum(name in ("Gelu", "BiasGelu") for name in fused) == 3
    assert not {"CastLike", "Erf"} & set(fused)
