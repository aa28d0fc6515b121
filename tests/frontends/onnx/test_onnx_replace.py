"""Replacing: one node in the site's place, what nothing uses goes, everything else stays as it was."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import onnx
import onnx_ir as ir
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx_models import LOWRANK, branches, chain, full_rank, mlp, parse, rewrite_all, seconds, sites

from regraft.errors import GraphError
from regraft.frontends.onnx import OnnxGraph, load
from regraft.graph import Site, Value, find_linear_sites
from regraft.ops import get_op

X = torch.randn(5, 6, generator=torch.Generator().manual_seed(3))


def test_a_layer_becomes_one_node_in_its_place() -> None:
    graph = load(mlp())
    before = graph.value("h1").type
    graph.replace(sites(graph)["up"], LOWRANK, full_rank(sites(graph)["up"]))
    assert [node.key for node in graph.nodes()] == ["up", "act", "down"]
    node = graph.value("h1").producer
    assert node is not None
    assert (node.op, node.native, node.scope) == ("lowrank_linear", "regraft::LowrankLinear", "up")
    assert [value.key for value in node.inputs if value] == ["x", "up.down", "up.up", "up.bias_2"]
    assert graph.value("h1").type == before


def test_a_rewritten_model_computes_what_it_did() -> None:
    graph = load(mlp())
    (before,), _ = graph.run(X)
    rewrite_all(graph)
    (after,), _ = graph.run(X)
    torch.testing.assert_close(after, before)
    graph.validate()


def test_weights_of_products_are_stored_transposed() -> None:
    graph = load(mlp())
    site = sites(graph)["up"]
    down, up = torch.randn(2, 6), torch.randn(4, 2)
    graph.replace(site, LOWRANK, {"down": down, "up": up, "bias": None})
    stored = graph.constant(graph.value("up.down"))
    assert stored is not None and torch.equal(stored, down.t())
    (function,) = graph.model.functions.values()
    assert [node.op_type for node in function] == ["MatMul", "MatMul"]
    assert function.doc_string is not None and "stored transposed" in function.doc_string


def test_constants_that_nothing_reads_any_more_are_gone_and_others_stay() -> None:
    graph = load(mlp())
    rewrite_all(graph)
    assert set(graph.model.graph.initializers) == {
        "up.down", "up.up", "up.bias_2", "down.down", "down.up", "down.bias_2",
    }  # fmt: skip
    with pytest.raises(GraphError, match="no value 'w0'"):
        graph.value("w0")


def test_a_shared_constant_is_shared_and_keeps_its_name() -> None:
    graph = load(mlp())
    site = sites(graph)["up"]
    graph.replace(site, LOWRANK, {**full_rank(site), "bias": site.bias_value})
    assert "up.bias" in graph.model.graph.initializers
    (after,), _ = graph.run(X)
    torch.testing.assert_close(after, load(mlp()).run(X)[0][0])


def test_a_shared_weight_of_a_product_is_turned_by_a_node() -> None:
    text = "net (float[b, 6] x) => (float[b, 6] y) { h = MatMul(x, w) y = Add(h, w) }"
    graph = load(parse(text, {"w": (6, 6)}))
    weight = graph.value("w")
    site = Site("layer", {"x": "x"}, "h", [graph.nodes()[0].key])
    graph.replace(site, LOWRANK, {"down": torch.eye(6), "up": weight})
    assert [node.op for node in graph.nodes()] == ["transpose", "lowrank_linear", "add"]
    (after,) = graph.evaluate(["h"], {"x": X})
    torch.testing.assert_close(after, X @ _content(graph, "w").t())  # up is [out, rank], as in the op's file


def _content(graph: OnnxGraph, key: str) -> torch.Tensor:
    content = graph.constant(graph.value(key))
    assert content is not None
    return content


def test_a_transposed_weight_leaves_no_node_behind() -> None:
    text = "net (float[b, 6] x) => (float[b, 4] y) { t = Transpose <perm = [1, 0]> (w) y = MatMul(x, t) }"
    graph = load(parse(text, {"w": (4, 6)}))
    rewrite_all(graph)
    assert [node.op for node in graph.nodes()] == ["lowrank_linear"]
    assert "w" not in graph.model.graph.initializers


def test_a_constant_node_that_nothing_reads_is_gone() -> None:
    text = """net (float[b, 2] x) => (float[b, 2] y) {
        w = Constant <value = float[2, 2] {1, 2, 3, 4}> () y = MatMul(x, w)
    }"""
    graph = load(parse(text))
    rewrite_all(graph)
    assert [node.op_type for node in graph.model.graph] == ["LowrankLinearNoBias"]


def test_a_tied_weight_stays_for_its_other_reader() -> None:
    text = """net (int64[b, t] ids) => (float[b, t, 9] y) { e = Gather(table, ids) t = Transpose <perm = [1, 0]> (table)
        y = MatMul(e, t) }"""
    graph = load(parse(text, {"table": (9, 6)}))
    rewrite_all(graph)
    assert "table" in graph.model.graph.initializers
    assert [node.op for node in graph.nodes()] == ["gather", "lowrank_linear"]


def test_an_intermediate_result_with_another_reader_stays() -> None:
    text = "net (float[b, 6] x) => (float[b, 4] y, float[b, 4] z) { p = MatMul(x, w) y = Add(p, bias) z = Relu(p) }"
    graph = load(parse(text, {"w": (6, 4), "bias": (4,)}))
    site = Site("layer", {"x": "x"}, "y", [node.key for node in graph.nodes()[:2]])
    graph.replace(site, LOWRANK, {"down": torch.ones(1, 6), "up": torch.ones(4, 1)})
    assert [node.op for node in graph.nodes()] == ["matmul", "lowrank_linear", "relu"]
    graph.validate()


def test_a_graph_output_keeps_its_name_and_place() -> None:
    graph = load(mlp())
    rewrite_all(graph)
    assert [value.key for value in graph.outputs()] == ["y"]
    assert graph.outputs()[0].producer is graph.nodes()[-1]


def test_one_of_several_outputs_of_a_node_can_be_taken_over() -> None:
    text = "net (float[b, 4] x) => (float[b, 2] l, float[b, 2] r) { l, r = Split <axis = 1, num_outputs = 2> (x) }"
    graph = load(parse(text))
    (split,) = graph.nodes()
    graph.replace(
        Site("half", {"x": "x"}, "r", [split.key]), LOWRANK, {"down": torch.ones(1, 4), "up": torch.ones(2, 1)}
    )
    (left, right), _ = graph.run(torch.arange(8.0).reshape(2, 4))
    assert left.tolist() == [[0, 1], [4, 5]]
    assert right.tolist() == [[6, 6], [22, 22]]
    graph.validate()


def test_layers_in_nested_bodies_are_replaced_there() -> None:
    graph = load(branches())
    wanted = {flag: graph.run({"x": X, "flag": torch.tensor(flag)})[0][0] for flag in (True, False)}
    rewrite_all(graph)
    assert [node.key for node in graph.nodes()] == [
        "scaled", "choice/then_branch/layer", "choice/else_branch/product_2", "choice",
    ]  # fmt: skip
    assert {"layer.down", "product.down"} <= set(graph.model.graph.initializers)
    for flag, before in wanted.items():
        torch.testing.assert_close(graph.run({"x": X, "flag": torch.tensor(flag)})[0][0], before)
    graph.validate()


def test_layers_in_nested_bodies_of_a_copy_get_the_same_keys() -> None:
    first, second = load(branches()), load(branches()).copy()
    rewrite_all(first)
    rewrite_all(second)
    assert seen(second) == seen(first)


def test_readers_of_a_value_stay_in_graph_order() -> None:
    text = """net (float[b, 6] x) => (float[b, 4] q, float[b, 4] k, float[b, 4] v) {
        q = MatMul(x, wq) k = MatMul(x, wk) v = MatMul(x, wv)
    }"""
    graph = load(parse(text, {"wq": (6, 4), "wk": (6, 4), "wv": (6, 4)}))
    site = sites(graph)["q"]
    graph.replace(site, LOWRANK, full_rank(site))
    assert [user.outputs[0].key for user in graph.value("x").users] == ["q", "k", "v"]


def test_names_that_became_free_are_used_again() -> None:
    graph = load(mlp())
    site = sites(graph)["up"]
    names: list[str] = []
    for _ in range(3):
        producer = graph.value(site.output).producer
        assert producer is not None
        graph.replace(Site("up", site.operands, site.output, [producer.key]), LOWRANK, full_rank(site))
        names += [name for name in graph.model.graph.initializers if name.startswith("up.down")]
    assert names == ["up.down", "up.down_2", "up.down"]


def test_what_was_written_by_the_exporter_travels_to_the_new_node() -> None:
    model = mlp()
    model.graph.node[1].metadata_props.add(key="pkg.torch.onnx.name_scopes", value="['', 'block', 'block.up', 'add']")
    model.graph.node[1].doc_string = "the sum"
    graph = load(model)
    (site,) = [site for site in find_linear_sites(graph)[0] if site.output == "h1"]
    graph.replace(site, LOWRANK, full_rank(site))
    node = graph.value("h1").producer
    assert node is not None and node.scope == "block.up"
    native = graph.model.graph.node(0)
    assert native.doc_string == "the sum"
    graph.annotate("h1", {"regraft.pass": "low-rank"})
    assert node.metadata["regraft.pass"] == "low-rank"


def test_annotating_what_no_node_computes_is_refused() -> None:
    with pytest.raises(GraphError, match=r"^net: 'x' is computed by no node and cannot be annotated$"):
        load(mlp()).annotate("x", {})


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"output": "ghost"}, "up: the graph has no value 'ghost' (any more)"),
        ({"operands": {"x": "ghost"}}, "up: the graph has no value 'ghost' (any more)"),
        ({"nodes": ("ghost",)}, "up: the graph has no node 'ghost' (any more)"),
        ({"output": "x"}, "up: x is computed by no node and cannot be replaced"),
        ({"operands": {}}, "up: lowrank_linear needs x; got down, up, bias"),
    ],
)
def test_a_site_that_does_not_fit_is_refused_and_nothing_has_changed(change: Mapping[str, object], text: str) -> None:
    graph = load(mlp())
    site = sites(graph)["up"]
    before = ir.to_proto(graph.model)
    with pytest.raises(GraphError) as caught:
        graph.replace(replace(site, **change), LOWRANK, full_rank(site))
    assert str(caught.value) == text
    assert ir.to_proto(graph.model) == before


def test_an_operand_that_the_op_has_not_is_refused() -> None:
    graph = load(mlp())
    site = sites(graph)["up"]
    with pytest.raises(GraphError, match=r"^up: lowrank_linear has no operand bais; it has bias, down, up, x$"):
        graph.replace(site, LOWRANK, {**full_rank(site), "bais": None})


def test_a_site_cannot_be_replaced_by_what_is_not_visible_there() -> None:
    graph = load(branches())
    site = Site("choice", {"x": "choice/then_branch/p"}, "y", ["choice"])
    wanted = r"^choice: operand x \(choice/then_branch/p\) cannot be seen from y$"
    with pytest.raises(GraphError, match=wanted):
        graph.replace(site, LOWRANK, {"down": torch.ones(1, 4), "up": torch.ones(4, 1)})


def test_a_computed_value_is_no_weight_to_share() -> None:
    graph = load(mlp())
    site = sites(graph)["down"]
    with pytest.raises(GraphError, match=r"^down: h1 is no constant and cannot be shared$"):
        graph.replace(site, LOWRANK, {**full_rank(site), "bias": graph.value("h1")})


def test_another_function_of_the_same_name_is_not_overwritten() -> None:
    model = mlp()
    body = onnx.helper.make_node("Identity", ["x"], ["y"])
    imports = [onnx.helper.make_opsetid("", 18)]
    names = ["x", "down", "up", "bias"]
    model.functions.append(onnx.helper.make_function("regraft", "LowrankLinear", names, ["y"], [body], imports))
    graph = load(model)
    site = sites(graph)["up"]
    wanted = r"^lowrank_linear: the model has another function named regraft::LowrankLinear$"
    with pytest.raises(GraphError, match=wanted):
        graph.replace(site, LOWRANK, full_rank(site))


def test_a_replaced_layer_can_be_replaced_again() -> None:
    graph = load(mlp())
    (before,), _ = graph.run(X)
    site = sites(graph)["up"]
    graph.replace(site, LOWRANK, full_rank(site))
    again = Site("up", site.operands, site.output, ["up"])
    graph.replace(again, LOWRANK, full_rank(site))
    assert [node.op for node in graph.nodes()] == ["lowrank_linear", "relu", "gemm"]
    torch.testing.assert_close(graph.run(X)[0][0], before)
    graph.validate()


def test_a_site_found_in_one_graph_is_replaced_in_a_copy_after_others() -> None:
    graph = load(mlp())
    before = ir.to_proto(graph.model)
    copy = graph.copy()
    found = list(sites(graph).values())
    for site in reversed(found):
        copy.replace(site, LOWRANK, full_rank(site))
    assert [node.op for node in copy.nodes()] == ["lowrank_linear", "relu", "lowrank_linear"]
    assert ir.to_proto(graph.model) == before
    torch.testing.assert_close(copy.run(X)[0][0], graph.run(X)[0][0])


def test_a_copy_shares_the_weights() -> None:
    graph = load(mlp())
    mine, theirs = (one.model.graph.initializers["w0"].const_value for one in (graph, graph.copy()))
    assert mine is theirs


@pytest.mark.parametrize(("before", "after"), [(7, 8), (8, 8), (10, 10)])
def test_the_ir_version_is_raised_only_as_far_as_functions_need(before: int, after: int) -> None:
    model = mlp(13)
    model.ir_version = before
    graph = load(model)
    rewrite_all(graph)
    assert graph.model.ir_version == after
    assert graph.model.opset_imports["regraft"] == 1
    assert {function.opset_imports[""] for function in graph.model.functions.values()} == {13}


def test_what_is_not_rewritten_stays_as_it_was_node_by_node() -> None:
    model = mlp()
    model.doc_string, model.producer_name, model.model_version = "a net", "me", 7
    model.metadata_props.add(key="author", value="me")
    model.graph.doc_string = "the graph"
    model.graph.node[2].doc_string = "the activation"
    model.graph.node[2].metadata_props.add(key="note", value="keep me")
    model.graph.value_info[2].doc_string = "the hidden state"
    graph = load(model)
    site = sites(graph)["up"]
    graph.replace(site, LOWRANK, full_rank(site))
    after = ir.to_proto(graph.model)
    assert [after.graph.node[1], after.graph.node[2]] == [model.graph.node[2], model.graph.node[3]]
    assert list(after.graph.input) == list(model.graph.input)
    assert list(after.graph.output) == list(model.graph.output)
    kept = {tensor.name: tensor for tensor in after.graph.initializer}
    assert all(kept[name] == tensor for tensor in model.graph.initializer if (name := tensor.name).startswith("down"))
    infos = {info.name: info for info in after.graph.value_info}
    assert [infos[name] for name in ("h1", "h2")] == list(model.graph.value_info)[1:]
    for field in ("doc_string", "producer_name", "model_version", "metadata_props"):
        assert getattr(after, field) == getattr(model, field)
    assert after.graph.doc_string == "the graph"
    assert [(one.domain, one.version) for one in after.opset_import] == [("", 18), ("custom", 1), ("regraft", 1)]


def without_types_of_weights(graph: onnx.GraphProto) -> onnx.GraphProto:
    """Writing adds a type to every initializer, which has one of its own already."""
    weights = {tensor.name for tensor in graph.initializer}
    kept = [info for info in graph.value_info if info.name not in weights]
    del graph.value_info[:]
    graph.value_info.extend(kept)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                without_types_of_weights(attribute.g)
    return graph


@pytest.mark.parametrize("make", [mlp, branches])
def test_a_model_that_is_only_loaded_stays_as_it_was_altogether(make: Callable[[], onnx.ModelProto]) -> None:
    model = make()
    after = ir.to_proto(load(model).model)
    assert without_types_of_weights(after.graph) == model.graph
    assert (after.ir_version, after.opset_import) == (model.ir_version, model.opset_import)


@dataclass(frozen=True)
class Seen:
    """What the views say of a graph."""

    nodes: list[tuple[str, str, list[str | None], list[str]]]
    users: dict[str, list[str]]


def seen(graph: OnnxGraph) -> Seen:
    def key(value: Value | None) -> str | None:
        return None if value is None else value.key

    nodes = graph.nodes()
    values = {value.key: value for node in nodes for value in (*node.inputs, *node.outputs) if value}
    return Seen(
        [
            (node.key, node.op, [key(value) for value in node.inputs], [out.key for out in node.outputs])
            for node in nodes
        ],
        {name: [user.key for user in value.users] for name, value in values.items()},
    )


@given(st.permutations(range(4)), st.integers(0, 4))
def test_views_after_any_rewrites_are_those_of_the_model_read_anew(order: list[int], count: int) -> None:
    graph = load(chain(4))
    found = find_linear_sites(graph)[0]
    for place in order[:count]:
        graph.replace(found[place], LOWRANK, {"down": torch.ones(1, 8), "up": torch.ones(8, 1)})
        assert seen(graph) == seen(load(graph.model))
        assert seen(graph) == seen(graph.copy())


def test_the_time_of_a_rewrite_does_not_depend_on_the_size_of_the_graph() -> None:
    def one_rewrite(length: int) -> float:
        graph = load(chain(length))
        waiting = find_linear_sites(graph)[0][:60]
        factors = {"down": torch.ones(1, 8), "up": torch.ones(8, 1)}

        def step() -> None:
            site = waiting.pop()
            graph.replace(site, LOWRANK, factors)
            graph.annotate(site.output, {"regraft.pass": "low-rank"})
            assert graph.value(site.output).producer is not None

        return seconds(50, step)

    assert one_rewrite(5000) < 5 * one_rewrite(50)


def test_before_opset_15_the_function_is_made_for_the_types_of_all_operands() -> None:
    op = get_op("int8_linear")
    graph = load(mlp(13))
    site = sites(graph)["up"]
    tensors = {"weight": torch.ones(4, 6, dtype=torch.int8), "scale": torch.ones(4), "bias": None}
    graph.replace(site, op, tensors, {"per_row": 1})
    graph.validate()
    (function,) = graph.model.functions.values()
    assert function.name.endswith("_per_row1_float32_int8_float32")
    (y,) = graph.evaluate([site.output], {site.input: X})
    torch.testing.assert_close(y, X.sum(dim=1, keepdim=True).expand(-1, 4), rtol=0.05, atol=0.05)
