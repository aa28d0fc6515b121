"""Loading: what is no model, or a dangerous one, is refused in one line; what is given is never changed."""

import os
import pickle
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx_models import branches, mlp, parse, rewrite_all

from regraft.errors import ModelFileError, ModelNotFoundError, ModelTypeError, RegraftError, UnsafeModelError
from regraft.frontends.onnx import load


def refusal(source: object, kind: type[RegraftError] = ModelFileError) -> str:
    with pytest.raises(kind) as caught:
        load(source)  # pyright: ignore[reportArgumentType]
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value)
    return str(caught.value)


def with_external(folder: Path, location: str = "w.bin", content: bytes | None = b"\0" * 96, **entries: str) -> Path:
    """A model file whose weight `w` [6, 4] is external data."""
    model = parse("net (float[b, 6] x) => (float[b, 4] y) { y = MatMul(x, w) }", {"w": (6, 4)})
    (weight,) = model.graph.initializer
    weight.ClearField("raw_data")
    weight.data_location = onnx.TensorProto.EXTERNAL
    for key, value in {"location": location, **entries}.items():
        weight.external_data.add(key=key, value=value)
    if content is not None:
        (folder / "w.bin").write_bytes(content)
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "none.onnx"
    assert refusal(path, ModelNotFoundError) == f"{path}: no such file"


def test_a_directory_is_no_model(tmp_path: Path) -> None:
    assert refusal(tmp_path) == f"{tmp_path}: a directory; the path of an .onnx file is needed"


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "m.onnx: the file is empty"),
        (b"# a model\nimport torch\n", "m.onnx: a text file, not an ONNX model"),
        (b"version https://git-lfs.github.com/spec/v1\n", "m.onnx: a Git LFS pointer, not the model itself"),
        (b"\x08\x07\xff\xff\xff\xff", "m.onnx: truncated, or no ONNX model (6 bytes)"),
        (b"\x08\x07", "m.onnx: no graph in it; truncated, or no ONNX model (2 bytes)"),
    ],
)
def test_a_file_that_is_no_model_says_what_it_is(tmp_path: Path, content: bytes, text: str) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    assert refusal(path) == text


def test_pickles_and_zips_are_not_opened(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    torch.save({"w": torch.ones(2)}, path)
    wanted = "m.onnx: a zip archive, as torch.save writes, not an ONNX model; pickles are not opened"
    assert refusal(path, UnsafeModelError) == wanted
    path.write_bytes(pickle.dumps({"w": 1}))
    assert refusal(path, UnsafeModelError) == "m.onnx: a pickle, not an ONNX model; pickles are not opened"


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99])
def test_a_truncated_file_is_refused(tmp_path: Path, share: float) -> None:
    content = mlp().SerializeToString()
    path = tmp_path / "m.onnx"
    path.write_bytes(content[: int(len(content) * share)])
    assert "truncated" in refusal(path)


def test_another_object_is_no_model() -> None:
    wanted = "an ONNX model is a path, an onnx.ModelProto or an onnx_ir.Model; got int"
    assert refusal(3, ModelTypeError) == wanted


def test_external_data_is_mapped_not_read(tmp_path: Path) -> None:
    content = np.arange(24, dtype=np.float32)
    graph = load(with_external(tmp_path, content=content.tobytes()))
    stored = graph.model.graph.initializers["w"].const_value
    assert isinstance(stored, ir.ExternalTensor) and stored.raw is None
    weight = graph.constant(graph.value("w"))
    assert weight is not None
    assert weight.data_ptr() == stored.numpy().ctypes.data
    assert weight.flatten().tolist() == content.tolist()


def test_external_data_with_offset_and_length_is_found(tmp_path: Path) -> None:
    content = np.arange(26, dtype=np.float32).tobytes()
    graph = load(with_external(tmp_path, content=content, offset="8", length="96"))
    weight = graph.constant(graph.value("w"))
    assert weight is not None and weight[0, 0] == 2


@pytest.mark.parametrize("location", ["../../etc/passwd", "/etc/passwd", "a/../../w.bin", "C:\\w.bin"])
def test_external_data_outside_the_folder_is_refused(tmp_path: Path, location: str) -> None:
    wanted = f"model.onnx: external data {location!r} of initializer 'w' points outside the model's folder; refused"
    assert refusal(with_external(tmp_path, location), UnsafeModelError) == wanted


def test_a_symbolic_link_does_not_lead_outside(tmp_path: Path) -> None:
    outside, inside = tmp_path / "outside.bin", tmp_path / "folder"
    outside.write_bytes(b"\0" * 96)
    inside.mkdir()
    (inside / "link.bin").symlink_to(outside)
    assert "points outside the model's folder" in refusal(with_external(inside, "link.bin"), UnsafeModelError)


def test_a_hard_link_does_not_lead_outside(tmp_path: Path) -> None:
    outside, inside = tmp_path / "outside.bin", tmp_path / "folder"
    outside.write_bytes(b"\0" * 96)
    inside.mkdir()
    os.link(outside, inside / "link.bin")
    wanted = "model.onnx: external data 'link.bin' of initializer 'w' has another hard link; refused"
    assert refusal(with_external(inside, "link.bin"), UnsafeModelError) == wanted


def test_missing_external_data_is_named(tmp_path: Path) -> None:
    wanted = f"model.onnx: external data 'w.bin' of initializer 'w' is missing in {tmp_path.resolve()}"
    assert refusal(with_external(tmp_path, content=None)) == wanted


@pytest.mark.parametrize(
    ("entries", "span"),
    [({}, "96 bytes from 0 on"), ({"offset": "64"}, "96 bytes from 64 on"), ({"length": "4"}, "4 bytes from 0 on")],
)
def test_external_data_that_is_too_short_is_refused(tmp_path: Path, entries: dict[str, str], span: str) -> None:
    size = 96 if entries else 40
    wanted = f"model.onnx: initializer 'w' needs 96 bytes, said to be {span}; w.bin has {size}"
    assert refusal(with_external(tmp_path, content=b"\0" * size, **entries)) == wanted


def test_external_data_of_a_constant_node_is_checked_too(tmp_path: Path) -> None:
    model = parse(
        "net (float[b, 2] x) => (float[b, 2] y) { [c] v = Constant <value = float[2] {1, 2}> () y = Add(x, v) }"
    )
    tensor = model.graph.node[0].attribute[0].t
    tensor.ClearField("float_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../x.bin")
    path = tmp_path / "m.onnx"
    path.write_bytes(model.SerializeToString())
    wanted = (
        "m.onnx: external data '../x.bin' of attribute 'value' of node 'c' points outside the model's folder; refused"
    )
    assert refusal(path, UnsafeModelError) == wanted


def test_a_model_in_memory_has_no_folder_for_external_data(tmp_path: Path) -> None:
    model = onnx.load(with_external(tmp_path), load_external_data=False)
    assert refusal(model) == "net: initializer 'w' is external data, and a model in memory has no folder"


def test_a_cyclic_graph_is_refused() -> None:
    model = parse("net (float[2] x) => (float[2] y) { [a] p = Add(x, q) [b] q = Relu(p) [c] y = Relu(q) }")
    assert refusal(model).startswith("net: the graph is cyclic: ")
    assert "'a'" in refusal(model) and "'b'" in refusal(model) and "'c'" not in refusal(model)


def test_a_value_that_nothing_defines_is_named() -> None:
    model = parse("net (float[2] x) => (float[2] y) { [a] y = Add(x, ghost) }")
    assert refusal(model) == "net: node 'a' (Add) reads 'ghost', which nothing defines"
    assert refusal(ir.from_proto(model)) == "net: node 'a' (Add) reads 'ghost', which nothing defines"


@pytest.mark.parametrize(
    ("node", "text"),
    [
        ("MatMul(x)", "'' (MatMul) needs 2 operands; number 2 is missing"),
        ('Slice(x, "", x)', "'' (Slice) needs 3 operands; number 2 is missing"),
        ("Relu(x, x)", "'' (Relu) takes 1 operands; got 2"),
    ],
)
def test_a_node_with_too_few_or_too_many_operands_is_named(node: str, text: str) -> None:
    assert refusal(parse(f"net (float[2] x) => (float[2] y) {{ y = {node} }}")) == f"net: node {text}"


def test_an_output_that_nothing_defines_is_named() -> None:
    assert refusal(parse("net (float[2] x) => (float[2] z) { y = Relu(x) }")) == (
        "net: the output 'z' is defined by nothing"
    )


def test_a_value_defined_twice_is_named() -> None:
    model = parse("net (float[2] x) => (float[2] y) { y = Relu(x) y = Abs(x) }")
    assert refusal(model) == "net: value 'y' is defined twice"


def test_a_weight_shorter_than_its_shape_is_refused() -> None:
    model = mlp()
    model.graph.initializer[0].dims[0] = 1000
    assert refusal(model) == "net: initializer 'w0' of shape [1000, 4] needs 16000 bytes; the file has 96"
    model.graph.initializer[0].dims[0] = -1
    assert refusal(model) == "net: initializer 'w0' has a negative extent: [-1, 4]"


def test_sparse_weights_are_refused_rather_than_dropped() -> None:
    model = mlp()
    model.graph.sparse_initializer.add()
    assert refusal(model) == "net: sparse initializers are not supported; the graph has some"


@pytest.mark.parametrize(
    ("opset", "text"),
    [
        (12, "net: opset 12 is too old; 13 or later is needed"),
        (99, f"net: opset 99 is unknown; the installed onnx {onnx.__version__} knows up to "),
    ],
)
def test_opsets_that_are_too_old_or_unknown_are_refused_with_a_hint(opset: int, text: str) -> None:
    with pytest.raises(ModelFileError) as caught:
        load(mlp(opset))
    assert str(caught.value).startswith(text)
    assert caught.value.hint is not None and "convert_version(model, " in caught.value.hint


def test_a_model_without_an_opset_is_refused() -> None:
    model = mlp()
    del model.opset_import[:]
    assert refusal(model) == "net: the model says no version of the default operator domain"


def test_nodes_out_of_order_are_sorted_and_noted() -> None:
    model = mlp()
    nodes = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend(reversed(nodes))
    graph = load(model)
    assert [node.op for node in graph.nodes()] == ["matmul", "add", "relu", "gemm"]
    assert graph.notes == ("nodes were not in topological order; sorted",)


@pytest.mark.parametrize("make", [mlp, branches])
def test_what_is_done_later_does_not_change_the_protobuf_that_was_given(make) -> None:
    model = make()
    before = model.SerializeToString(deterministic=True)
    graph = load(model)
    rewrite_all(graph)
    graph.run({"x": torch.ones(2, 6)} | ({"flag": torch.tensor(True)} if make is branches else {}))
    graph.validate()
    assert model.SerializeToString(deterministic=True) == before


def test_what_is_done_later_does_not_change_the_native_model_that_was_given() -> None:
    model = ir.from_proto(mlp())
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    graph = load(model)
    shared = graph.model.graph.initializers["w0"].const_value is model.graph.initializers["w0"].const_value
    rewrite_all(graph)
    assert shared
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before


def test_a_weight_that_a_caller_may_override_is_no_constant_and_noted() -> None:
    model = mlp()
    model.graph.input.append(onnx.helper.make_tensor_value_info("w0", onnx.TensorProto.FLOAT, [6, 4]))
    graph = load(model)
    assert graph.value("w0").role == "input"
    assert graph.constant(graph.value("w0")) is None
    remedy = "python -m onnxruntime.tools.remove_initializer_from_input makes them constants"
    assert graph.notes == (f"1 weights are inputs with a default, and so no constants: w0; {remedy}",)
    (by_default,), _ = graph.run(torch.ones(2, 6))
    (by_hand,), _ = graph.run({"x": torch.ones(2, 6), "w0": torch.zeros(6, 4)})
    assert not torch.equal(by_default, by_hand)


FUNCTION_MODEL = """net (float[b, 6] x) => (float[b, 4] y) {
    h = custom.Outer(x, w) y = custom.Shift(h)
}
<opset_import: ["": 18, "custom": 1], domain: "custom"> Outer (a, b) => (c) { [call] c = custom.Linear(a, b) }
<opset_import: ["": 18], domain: "custom"> Linear (a, b) => (c) { [product] c = MatMul(a, b) }
<opset_import: ["": 18], domain: "custom"> Shift (a) => (c) { c = Abs(a) }
"""


def test_only_functions_that_multiply_by_weights_are_inlined_and_noted() -> None:
    graph = load(parse(FUNCTION_MODEL, {"w": (6, 4)}))
    assert [node.op for node in graph.nodes()] == ["matmul", "custom.shift"]
    assert graph.notes == (
        "calls of functions that multiply by weights are inlined where something inside is rewritten: "
        "custom::Outer (1 calls), custom::Linear (1 calls)",
    )
    assert [identifier[1] for identifier in graph.model.functions] == ["Shift"]


def test_a_function_of_another_opset_stays_closed_and_noted() -> None:
    model = parse(FUNCTION_MODEL, {"w": (6, 4)})
    model.functions[1].opset_import[0].version = 17
    graph = load(model)
    assert "function custom::Linear stays closed: it is written for ai.onnx 17, the model for 18" in graph.notes


DAMAGED = branches().SerializeToString(deterministic=True)


@settings(max_examples=100)
@given(st.data())
def test_a_damaged_file_is_loaded_or_refused_in_one_line(data: st.DataObject) -> None:
    content = bytearray(DAMAGED)
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        proto = onnx.ModelProto.FromString(bytes(content))
    except DecodeError:
        return
    try:
        list(load(proto).nodes())
    except RegraftError as error:
        assert "\n" not in str(error)
