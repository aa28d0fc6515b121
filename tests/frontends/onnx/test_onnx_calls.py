"""Calls of the user's functions: layers inside are layers, and a call in which nothing was rewritten stays a call."""

from collections.abc import Sequence
from pathlib import Path

import onnx
import onnx_ir as ir
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx_models import LOWRANK, full_rank, parse, sites

import regraft
from regraft.frontends.onnx import OnnxGraph, load, save
from regraft.passes import LowRank

WEIGHTS = {"u.weight": (6, 6), "u.bias": (6,), "v.weight": (6, 6), "v.bias": (6,)}
DENSE = """
<opset_import: ["": 18], domain: "custom"> Dense (a, w, b) => (c) {
    [product] p = MatMul(a, w) [sum] s = Add(p, b) [act] c = Relu(s)
}
"""
TWO_CALLS = f"""net (float[n, 6] x) => (float[n, 6] y) {{
    [before] k = Tanh(x)
    [one] h = custom.Dense(k, u__weight, u__bias)
    [two] g = custom.Dense(h, v__weight, v__bias)
    [after] y = Tanh(g)
}}
{DENSE}"""
NESTED = f"""net (float[n, 6] x) => (float[n, 6] y) {{
    h = custom.Block(x, u__weight, u__bias, v__weight, v__bias)
    y = custom.Scale <factor = 2.0> (h)
}}
<opset_import: ["": 18, "custom": 1], domain: "custom"> Block (x, u, ub, v, vb) => (y) {{
    [first] h = custom.Dense(x, u, ub)
    [second] y = custom.Dense(h, v, vb)
}}
<opset_import: ["": 18], domain: "custom"> Scale <factor> (a) => (c) {{
    f = Constant <value_float: float = @factor> () c = Mul(a, f)
}}
<opset_import: ["": 18], domain: "custom"> Unused (a) => (c) {{ c = Abs(a) }}
{DENSE}"""
IN_BODIES = f"""net (float[n, 6] x, bool flag) => (float[n, 6] y) {{
    [scaled] s = Add(x, x)
    [choice] y = If (flag) <
        then_branch = yes () => (float[n, 6] z) {{ [call] z = custom.Dense(s, u__weight, u__bias) }},
        else_branch = no () => (float[n, 6] z) {{ [call] z = custom.Dense(x, v__weight, v__bias) }}
    >
}}
{DENSE}"""
TWO_RESULTS = """net (float[n, 6] x) => (float[n, 6] y) {
    [one] h, k = custom.Both <alpha = 0.5> (x, u__weight)
    [two] g, unread = custom.Both(h, v__weight, u__bias)
    y = Add(g, k)
}
<opset_import: ["": 18], domain: "custom"> Both <alpha: float = 1.0> (a, w, b) => (c, d) {
    [product] c = Gemm <alpha: float = @alpha> (a, w, b) [sign] d = Neg(c)
}
"""
MODELS = {"two calls": TWO_CALLS, "nested": NESTED, "in bodies": IN_BODIES, "two results": TWO_RESULTS}


def model(text: str = TWO_CALLS) -> onnx.ModelProto:
    return parse(text, WEIGHTS)


def written(graph: OnnxGraph, folder: Path) -> onnx.ModelProto:
    save(graph, folder / "out.onnx")
    proto = onnx.load(folder / "out.onnx")
    onnx.checker.check_model(proto, full_check=True)
    return proto


def bytes_of(proto: onnx.ModelProto | onnx.NodeProto | onnx.FunctionProto) -> bytes:
    return proto.SerializeToString(deterministic=True)


def read_back(proto: onnx.ModelProto) -> onnx.ModelProto:
    """What onnx_ir makes of a file that nothing was done to."""
    return ir.to_proto(ir.from_proto(proto))


def layers(graph: OnnxGraph) -> Sequence[str]:
    return [node.op for node in graph.nodes()]


@pytest.mark.parametrize("name", MODELS)
def test_a_file_in_which_nothing_is_rewritten_comes_back_byte_for_byte(name: str, tmp_path: Path) -> None:
    proto = model(MODELS[name])
    graph = load(proto)
    assert sites(graph), "the layers inside are seen"
    assert bytes_of(written(graph, tmp_path)) == bytes_of(read_back(proto))
    assert bytes_of(ir.to_proto(graph.closed())) == bytes_of(read_back(proto))
    assert bytes_of(written(graph.copy().copy(), tmp_path)) == bytes_of(read_back(proto))


def test_a_call_that_takes_fewer_results_than_there_are_comes_back_as_it_was() -> None:
    proto = model(TWO_RESULTS)
    del proto.graph.node[1].output[1]
    graph = load(proto)
    assert list(sites(graph)) == ["u", "v"]
    assert bytes_of(ir.to_proto(graph.closed())) == bytes_of(read_back(proto))


def test_only_the_call_that_holds_a_rewritten_layer_is_inlined(tmp_path: Path) -> None:
    proto = model()
    graph = load(proto)
    site = sites(graph)["v"]
    graph.replace(site, LOWRANK, full_rank(site))
    after = written(graph, tmp_path)
    assert [node.op_type for node in after.graph.node] == ["Tanh", "Dense", "LowrankLinear", "Relu", "Tanh"]
    assert bytes_of(after.graph.node[1]) == bytes_of(proto.graph.node[1])
    assert bytes_of(after.functions[0]) == bytes_of(read_back(proto).functions[0])
    assert [function.name for function in after.functions] == ["Dense", "LowrankLinear"]
    x = torch.randn(4, 6)
    torch.testing.assert_close(load(after).run(x)[0], load(proto).run(x)[0], rtol=1e-5, atol=1e-5)


def test_a_function_whose_every_call_was_inlined_is_left_out(tmp_path: Path) -> None:
    graph = load(model())
    for site in sites(graph).values():
        graph.replace(site, LOWRANK, full_rank(site))
    assert [function.name for function in written(graph, tmp_path).functions] == ["LowrankLinear"]


def test_nodes_and_values_of_an_inlined_call_are_named_after_it() -> None:
    graph = load(model())
    keys = [node.key for node in graph.nodes()]
    assert keys[1:4] == ["one/product", "one/sum", "one/act"]
    assert keys[4:7] == ["two/product", "two/sum", "two/act"]
    assert graph.value("one/p").producer is not None
    assert [graph.value(key).producer.key for key in ("h", "g")] == ["one/act", "two/act"]  # type: ignore[union-attr]
    assert list(sites(graph)) == ["u", "v"]


def test_a_nested_call_is_put_back_as_the_outer_one_that_it_belongs_to(tmp_path: Path) -> None:
    graph = load(model(NESTED))
    site = sites(graph)["u"]
    graph.replace(site, LOWRANK, full_rank(site))
    after = written(graph, tmp_path)
    ops = [node.op_type for node in after.graph.node]
    assert ops == ["LowrankLinear", "Relu", "MatMul", "Add", "Relu", "Scale"]
    assert [function.name for function in after.functions] == ["Scale", "Unused", "LowrankLinear"]


def test_calls_in_nested_bodies_are_put_back_one_by_one(tmp_path: Path) -> None:
    proto = model(IN_BODIES)
    graph = load(proto)
    site = sites(graph)["v"]
    graph.replace(site, LOWRANK, full_rank(site))
    choice = written(graph, tmp_path).graph.node[1]
    yes, no = (attribute.g for attribute in choice.attribute)
    assert [[node.op_type for node in body.node] for body in (yes, no)] == [["Dense"], ["LowrankLinear", "Relu"]]


def test_a_call_whose_inner_value_something_outside_reads_is_not_put_back() -> None:
    graph = load(model())
    inner = next(node for node in graph.model.graph if node.name == "one/sum").outputs[0]
    last = next(node for node in graph.model.graph if node.name == "after")
    last.replace_input_with(0, inner)
    assert [node.op_type for node in graph.closed().graph] == ["Tanh", "MatMul", "Add", "Relu", "Dense", "Tanh"]


def test_a_weight_made_in_the_function_is_no_hindrance(tmp_path: Path) -> None:
    """Constants of a function are nodes of it; a rewrite drops them, and a call without one goes back whole."""
    text = """net (float[n, 2] x) => (float[n, 2] y) { [one] h = custom.Fixed(x) [two] y = custom.Fixed(h) }
    <opset_import: ["": 18], domain: "custom"> Fixed (a) => (c) {
        w = Constant <value: tensor = float[2, 2] {1, 2, 3, 4}> () [product] p = MatMul(a, w) c = Relu(p)
    }"""
    graph = load(parse(text))
    first, second = sites(graph).values()
    graph.replace(second, LOWRANK, full_rank(second))
    assert [node.op_type for node in written(graph, tmp_path).graph.node] == ["Fixed", "LowrankLinearNoBias", "Relu"]
    assert first.name != second.name


@pytest.mark.parametrize(
    "body",
    [
        "Dense (a, w) => (a, c) { c = MatMul(a, w) }",
        "Dense (a, w) => (c, c) { c = MatMul(a, w) }",
    ],
)
def test_a_function_that_returns_an_operand_or_one_result_twice_stays_closed(body: str) -> None:
    text = f"""net (float[n, 6] x) => (float[n, 6] h, float[n, 6] y) {{ h, y = custom.Dense(x, u__weight) }}
    <opset_import: ["": 18], domain: "custom"> {body}"""
    graph = load(model(text))
    assert layers(graph) == ["custom.dense"]
    reason = "it returns an operand as it is, or one result twice"
    assert graph.notes == (f"function custom::Dense stays closed: {reason}",)


def test_marks_of_a_stranger_are_not_taken_for_calls(tmp_path: Path) -> None:
    proto = model()
    proto.graph.node[0].metadata_props.add(key="regraft.call", value="0")
    after = written(load(proto), tmp_path)
    assert [node.op_type for node in after.graph.node] == ["Tanh", "Dense", "Dense", "Tanh"]


def test_optimize_hands_out_a_model_with_the_calls_that_it_left_alone(tmp_path: Path) -> None:
    proto = parse(TWO_CALLS.replace("6]", "12]"), {name: tuple(2 * n for n in WEIGHTS[name]) for name in WEIGHTS})
    result = regraft.optimize(proto, LowRank(rank=2, targets=("u",)), progress=False)
    assert [node.op_type for node in result.model.graph] == ["Tanh", "LowrankLinear", "Relu", "Dense", "Tanh"]
    assert result.model is result.model
    assert [entry.site for entry in result.ledger.rewritten] == ["u"]
    assert [change.site for change in result.diff.changes] == ["u"]
    path = result.export(tmp_path / "small.onnx", opset=21)
    assert [node.op_type for node in onnx.load(path).graph.node] == ["Tanh", "LowrankLinear", "Relu", "Dense", "Tanh"]
    x = torch.randn(3, 12)
    torch.testing.assert_close(regraft.load(path)(x), result(x), rtol=1e-4, atol=1e-5)
    assert not onnx.load(result.export(tmp_path / "inline.onnx", functions="inline")).functions


@given(chosen=st.sets(st.integers(0, 3)))
def test_any_choice_of_layers_inlines_their_calls_and_no_others(chosen: set[int]) -> None:
    calls = " ".join(f"[c{i}] v{i + 1} = custom.Dense(v{i}, w{i}__weight, w{i}__bias)" for i in range(4))
    text = f"net (float[n, 3] v0) => (float[n, 3] v4) {{ {calls} }} {DENSE}"
    shapes = {f"w{i}.{kind}": shape for i in range(4) for kind, shape in (("weight", (3, 3)), ("bias", (3,)))}
    graph = load(parse(text, shapes))
    for i in chosen:
        site = sites(graph)[f"w{i}"]
        graph.replace(site, LOWRANK, full_rank(site))
    wanted = [op for i in range(4) for op in (["LowrankLinear", "Relu"] if i in chosen else ["Dense"])]
    closed = graph.closed()
    assert [node.op_type for node in closed.graph] == wanted
    onnx.checker.check_model(ir.to_proto(closed), full_check=True)
    x = torch.ones(2, 3)
    torch.testing.assert_close(load(closed).run(x)[0], graph.run(x)[0])
