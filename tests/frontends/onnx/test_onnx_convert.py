"""Other opsets: nodes that mean the same stay as they are, the others are converted, or the file is refused."""

from pathlib import Path

import onnx
import pytest
import torch
from onnx_models import branches, mlp, parse, rewrite_all

from regraft.errors import ExportError
from regraft.frontends.onnx import load, save

X = torch.randn(5, 6, generator=torch.Generator().manual_seed(3))

CHANGING = """net (float[b, 6] x) => (float[b, 3] l, float[b, 3] r, float[b, 1] m, float[b, 1] s) {
    [means] m = ReduceMean <axes = [-1]> (x)
    [sums] s = ReduceSum(x, axis)
    [halves] l, r = Split <axis = 1> (x)
}"""


def changing() -> onnx.ModelProto:
    model = parse(CHANGING, opset=13)
    model.graph.initializer.append(onnx.helper.make_tensor("axis", onnx.TensorProto.INT64, [1], [-1]))
    model.graph.node[0].metadata_props.add(key="note", value="keep me")
    return model


@pytest.mark.parametrize("opset", [13, 15, 18, 21, 24])
def test_a_rewritten_model_computes_the_same_in_every_opset(tmp_path: Path, opset: int) -> None:
    for make, inputs in ((mlp, {"x": X}), (branches, {"x": X, "flag": torch.tensor(True)})):
        graph = load(make())
        rewrite_all(graph)
        save(graph, tmp_path / "out.onnx", opset=opset)
        converted = load(tmp_path / "out.onnx")
        converted.validate()
        assert converted.opset == opset
        assert {function.opset_imports[""] for function in converted.model.functions.values()} == {opset}
        torch.testing.assert_close(converted.run(inputs)[0], graph.run(inputs)[0])
        assert converted.snapshot().nodes == graph.snapshot().nodes


@pytest.mark.parametrize("opset", [14, 18, 20])
def test_operators_that_changed_are_converted_and_keep_names_and_metadata(tmp_path: Path, opset: int) -> None:
    graph = load(changing())
    save(graph, tmp_path / "up.onnx", opset=opset)
    converted = load(tmp_path / "up.onnx")
    converted.validate()
    torch.testing.assert_close(converted.run(X)[0], graph.run(X)[0])
    assert [node.key for node in converted.nodes()] == ["means", "sums", "halves"]
    assert converted.nodes()[0].metadata["note"] == "keep me"


def test_there_and_back_again_computes_the_same(tmp_path: Path) -> None:
    graph = load(changing())
    save(graph, tmp_path / "up.onnx", opset=18)
    text = "net (float[b, 6] x) => (float[b, 1] m) { [means] m = ReduceMean(x, axis) }"
    model = parse(text, opset=18)
    model.graph.initializer.append(onnx.helper.make_tensor("axis", onnx.TensorProto.INT64, [1], [-1]))
    save(load(model), tmp_path / "down.onnx", opset=13)
    down = load(tmp_path / "down.onnx")
    torch.testing.assert_close(down.run(X)[0][0], graph.run(X)[0][2])
    assert "axis" not in down.model.graph.initializers  # an attribute now


def test_a_model_whose_operators_did_not_change_is_the_same_but_for_the_number(tmp_path: Path) -> None:
    save(load(mlp()), tmp_path / "a.onnx")
    save(load(mlp()), tmp_path / "b.onnx", opset=20)
    before, after = onnx.load(tmp_path / "a.onnx"), onnx.load(tmp_path / "b.onnx")
    assert before.graph == after.graph
    assert {one.domain: one.version for one in after.opset_import} == {"": 20, "custom": 1}


def test_the_ir_version_follows_the_opset(tmp_path: Path) -> None:
    save(load(mlp()), tmp_path / "out.onnx", opset=23)
    assert onnx.load(tmp_path / "out.onnx").ir_version == onnx.helper.OP_SET_ID_VERSION_MAP[("ai.onnx", 23)]


@pytest.mark.parametrize(
    ("text", "before", "after", "refused"),
    [
        ("[act] y = Gelu(x)", 20, 18, "node 'act' (Gelu) does not exist in opset 18"),
        ("[norm] y = LayerNormalization(x, x)", 17, 13, "node 'norm' (LayerNormalization) does not exist in opset 13"),
    ],
)
def test_an_operator_that_an_opset_lacks_is_named(
    tmp_path: Path, text: str, before: int, after: int, refused: str
) -> None:
    graph = load(parse(f"net (float[6] x) => (float[6] y) {{ {text} }}", opset=before))
    with pytest.raises(ExportError) as caught:
        save(graph, tmp_path / "out.onnx", opset=after)
    assert str(caught.value) == f"out.onnx: {refused}"
    assert list(tmp_path.iterdir()) == []


def test_an_operator_that_cannot_be_converted_is_named(tmp_path: Path) -> None:
    graph = load(parse("net (float[6] x) => (int64[1] y) { [part] y = Shape <start = 0, end = 1> (x) }", opset=18))
    with pytest.raises(ExportError) as caught:
        save(graph, tmp_path / "out.onnx", opset=13)
    assert str(caught.value).startswith("out.onnx: node 'part' (Shape) cannot be converted to opset 13: ")


@pytest.mark.parametrize("opset", [12, 1000])
def test_an_opset_out_of_range_is_refused(tmp_path: Path, opset: int) -> None:
    with pytest.raises(ExportError) as caught:
        save(load(mlp()), tmp_path / "out.onnx", opset=opset)
    assert str(caught.value) == f"out.onnx: opset must be from 13 to {onnx.defs.onnx_opset_version()}; got {opset}"


def test_functions_of_the_users_own_are_converted_too(tmp_path: Path) -> None:
    text = """net (float[b, 6] x) => (float[b, 1] y) { y = custom.Mean(x) }
    <opset_import: ["": 13], domain: "custom"> Mean (a) => (c) { c = ReduceMean <axes = [-1]> (a) }"""
    graph = load(parse(text, opset=13))
    save(graph, tmp_path / "out.onnx", opset=18)
    converted = load(tmp_path / "out.onnx")
    torch.testing.assert_close(converted.run(X)[0], graph.run(X)[0])


def test_types_that_the_file_leaves_out_are_inferred_for_an_opset_that_needs_them(tmp_path: Path) -> None:
    proto = mlp(opset=18)
    del proto.graph.value_info[:]
    graph = load(proto)
    rewrite_all(graph)
    save(graph, tmp_path / "down.onnx", opset=13)
    converted = load(tmp_path / "down.onnx")
    converted.validate()
    torch.testing.assert_close(converted.run(X)[0], graph.run(X)[0])
