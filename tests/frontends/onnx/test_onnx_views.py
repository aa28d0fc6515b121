"""Views of ONNX graphs: keys, canonical names, types, constants; cheap to look at, whatever the size."""

import onnx_ir as ir
import pytest
import torch
from onnx import TensorProto, helper
from onnx_models import branches, chain, mlp, parse, seconds, sites

from regraft.errors import GraphError
from regraft.frontends.onnx import OnnxGraph, load
from regraft.frontends.onnx._canonical import canonical_name
from regraft.graph import Node, TensorType


def node(graph: OnnxGraph, key: str) -> Node:
    return next(node for node in graph.nodes() if node.key == key)


def test_a_graph_is_seen_with_its_names() -> None:
    graph = load(mlp())
    assert (graph.kind, graph.name, graph.opset) == ("onnx", "net", 18)
    assert [value.key for value in graph.inputs()] == ["x"]
    assert [value.key for value in graph.outputs()] == ["y"]
    assert [node.key for node in graph.nodes()] == ["up_product", "up_sum", "act", "down"]
    assert [value.name for value in graph.constants()] == ["w0", "up.bias", "down.weight", "down.bias"]


def test_edges_lead_back_and_forth() -> None:
    graph = load(mlp())
    total = node(graph, "up_sum")
    product, bias = total.inputs
    assert product is not None and bias is not None
    assert product.producer is node(graph, "up_product")
    assert product.users == [total]
    assert (bias.role, bias.producer, bias.users) == ("constant", None, [total])
    assert graph.value("x").role == "input"
    assert graph.value("y").is_output and not graph.value("h1").is_output


def test_the_same_thing_is_the_same_view_until_the_next_rewrite() -> None:
    graph = load(mlp())
    assert graph.value("h0") is node(graph, "up_product").outputs[0]
    assert graph.nodes()[0] is graph.nodes()[0]


def test_a_value_read_twice_by_a_node_has_it_as_user_once() -> None:
    graph = load(parse("net (float[2] x) => (float[2] y) { y = Add(x, x) }"))
    assert len(graph.value("x").users) == 1


def test_types_are_those_of_the_file_and_unnamed_dims_are_distinct() -> None:
    graph = load(parse("net (float16[batch, 6] x, int64[?, ?] i) => (float16[batch, 6] y) { y = Relu(x) }"))
    assert graph.value("x").type == TensorType("float16", ("batch", 6))
    assert graph.value("i").type == TensorType("int64", ("i.dim0", "i.dim1"))


def test_types_that_the_file_leaves_out_are_inferred_and_the_file_stays_without_them() -> None:
    graph = load(parse("net (float[b, 6] x) => (float[b, 4] y) { h = MatMul(x, w) y = Relu(h) }", {"w": (6, 4)}))
    assert graph.value("h").type == TensorType("float32", ("b", 4))
    assert graph.copy().value("h").type == TensorType("float32", ("b", 4))
    assert not ir.to_proto(graph.model).graph.value_info[1:]  # that of w alone


def test_bodies_come_before_their_holder_and_have_its_key_before_theirs() -> None:
    graph = load(branches())
    assert [node.key for node in graph.nodes()] == [
        "scaled",
        "choice/then_branch/product",
        "choice/then_branch/sum",
        "choice/else_branch/product",
        "choice",
    ]
    inner = graph.value("choice/then_branch/p")
    assert inner.nested and not inner.is_output
    assert graph.value("choice/then_branch/z").is_output
    assert graph.value("choice/else_branch/v").role == "constant"


def test_what_a_body_captures_keeps_its_outer_key() -> None:
    graph = load(branches())
    product = node(graph, "choice/then_branch/product")
    assert [value.key for value in product.inputs if value] == ["s", "w"]
    assert product in graph.value("s").users
    assert not graph.value("s").nested


def test_layers_in_bodies_are_found_and_known_to_be_nested() -> None:
    found = sites(load(branches()))
    assert list(found) == ["layer", "product"]
    assert not found["layer"].nested  # its input is outside
    assert found["layer"].output == "choice/then_branch/z"


def test_nodes_without_a_name_of_their_own_are_called_after_their_output() -> None:
    text = """net (float[2] x) => (float[2] y) {
        [same] a = Relu(x) [same] b = Abs(a) c = Neg(b) [c] d = Sqrt(c) [odd] y = Exp(d)
    }"""
    graph = load(parse(text))
    assert [node.key for node in graph.nodes()] == ["a", "b", "c", "c#2", "odd"]
    assert [node.key for node in graph.copy().nodes()] == ["a", "b", "c", "c#2", "odd"]


def test_equal_names_in_two_bodies_are_two_values() -> None:
    graph = load(branches())
    assert graph.value("choice/then_branch/z") is not graph.value("choice/else_branch/z")


def test_a_top_level_name_that_looks_like_a_nested_one_does_not_hide_it() -> None:
    model = branches()
    model.graph.node[0].output[0] = model.graph.node[1].attribute[0].g.node[0].input[0] = "choice/then_branch/p"
    graph = load(model)
    keys = [value.key for node in graph.nodes() for value in node.outputs]
    assert len(set(keys)) == len(keys) == 5
    assert {"choice/then_branch/p", "choice/then_branch/p#2"} <= set(keys)


def test_constant_nodes_are_values_and_not_nodes() -> None:
    text = """net (float[2] x) => (float[2] y) {
        c = Constant <value_floats = [1.0, 2.0]> () i = Constant <value_int = 3> ()
        h = Add(x, c) y = Identity(h)
    }"""
    graph = load(parse(text))
    assert [node.op for node in graph.nodes()] == ["add", "identity"]
    constant = graph.value("c")
    assert (constant.role, constant.producer, constant.type) == ("constant", None, TensorType("float32", (2,)))
    content = graph.constant(constant)
    assert content is not None and content.tolist() == [1, 2]
    assert [value.key for value in graph.constants()] == ["c"]  # nothing reads i


@pytest.mark.parametrize(
    "content",
    [
        torch.tensor([[1.5, -2.0]], dtype=torch.float16),
        torch.tensor([[1.5, -2.0]], dtype=torch.bfloat16),
        torch.tensor([[1.5, -2.0]], dtype=torch.float64),
        torch.tensor([1, 2**40]),
        torch.tensor([-1, 7], dtype=torch.int8),
        torch.tensor([True, False]),
        torch.tensor(3.0),
        torch.zeros(0, 4),
    ],
    ids=lambda content: str(content.dtype),
)
def test_constants_of_every_usual_type_are_read(content: torch.Tensor) -> None:
    stored = ir.tensor(content.view(torch.int16).numpy(), name="c") if content.dtype == torch.bfloat16 else None
    tensor = ir.to_proto(stored or ir.tensor(content.numpy(), name="c"))
    if stored is not None:
        tensor.data_type = TensorProto.BFLOAT16
    model = parse("net (float[2] x) => (float[2] y) { h = Identity(c) y = Relu(x) }")
    model.graph.initializer.append(tensor)
    graph = load(model)
    read = graph.constant(graph.value("c"))
    assert read is not None
    assert read.dtype == content.dtype
    assert torch.equal(read, content)


def test_constants_of_types_that_torch_lacks_have_no_content() -> None:
    model = parse("net (float[2] x) => (float[2] y) { h = Identity(c) y = Relu(x) }")
    model.graph.initializer.append(helper.make_tensor("c", TensorProto.STRING, [1], [b"text"]))
    graph = load(model)
    assert graph.value("c").type == TensorType("string", (1,))
    assert graph.constant(graph.value("c")) is None
    assert graph.constant(graph.value("x")) is None


def test_attributes_are_plain_and_defaults_that_matter_are_there() -> None:
    text = """net (float[2, 3] x) => (float[2, 3] y) {
        [gemm] g = Gemm <alpha = 0.5> (x, w) [turn] t = Transpose(g) [kept] k = Transpose <perm = [0, 1]> (t)
        [half] h = Cast <to = 10> (k) [soft] s = Softmax(h) [plain] y = Cast <to = 1> (s)
    }"""
    graph = load(parse(text, {"w": (3, 3)}))
    assert node(graph, "gemm").attributes == {"alpha": 0.5, "beta": 1.0, "transA": 0, "transB": 0}
    assert node(graph, "turn").attributes == {"perm": (1, 0)}
    assert node(graph, "kept").attributes == {"perm": (0, 1)}
    assert node(graph, "half").attributes == {"to": "float16"}
    assert node(graph, "soft").attributes == {"axis": -1}


@pytest.mark.parametrize(
    ("domain", "op_type", "name"),
    [
        ("", "MatMul", "matmul"),
        ("", "LayerNormalization", "layer_norm"),
        ("com.microsoft", "Gelu", "gelu"),
        ("com.microsoft", "MultiHeadAttention", "attention"),
        ("", "DynamicQuantizeLinear", "dynamic_quantize_linear"),
        ("", "QLinearMatMul", "q_linear_mat_mul"),
        ("com.microsoft", "SkipLayerNormalization", "com.microsoft.skip_layer_normalization"),
        ("regraft", "LowrankLinear", "lowrank_linear"),
        ("regraft", "LowrankLinearNoBias", "lowrank_linear"),
        ("regraft", "Unheard", "regraft.unheard"),
    ],
)
def test_operators_have_the_names_that_both_graph_languages_share(domain: str, op_type: str, name: str) -> None:
    assert canonical_name(domain, op_type) == name


def test_an_unknown_key_is_named() -> None:
    with pytest.raises(GraphError, match=r"^net: the graph has no value 'ghost'$"):
        load(mlp()).value("ghost")


def test_a_snapshot_says_what_the_views_say() -> None:
    graph = load(branches())
    snapshot = graph.snapshot()
    assert [node.key for node in snapshot.nodes] == [node.key for node in graph.nodes()]
    assert snapshot == graph.copy().snapshot()


def test_copying_ten_thousand_nodes_takes_well_under_a_second() -> None:
    graph = load(chain(5000))
    assert seconds(3, graph.copy) < 0.9
