"""Evaluating a part of an ONNX graph, wherever it lives."""

import pytest
import torch
from onnx_models import LOWRANK, branches, full_rank, mlp, parse, rewrite_all, sites

from regraft.errors import GraphError
from regraft.frontends.onnx import load
from regraft.graph import find_linear_sites

X = torch.randn(5, 6, generator=torch.Generator().manual_seed(3))


def test_a_part_computes_what_the_whole_does() -> None:
    graph = load(mlp())
    (y,), tapped = graph.run(X, ["h1", "h2"])
    (hidden,) = graph.evaluate(["h2"], {"h1": tapped["h1"]})
    (from_hidden,) = graph.evaluate(["y"], {"h2": tapped["h2"]})
    assert torch.equal(hidden, tapped["h2"])
    torch.testing.assert_close(from_hidden, y)


def test_several_values_come_in_the_order_asked_for() -> None:
    graph = load(mlp())
    _, tapped = graph.run(X, ["h0", "h1"])
    total, product, given, weight = graph.evaluate(["h1", "h0", "x", "w0"], {"x": X})
    torch.testing.assert_close(total, tapped["h1"])
    torch.testing.assert_close(product, tapped["h0"])
    stored = graph.constant(graph.value("w0"))
    assert torch.equal(given, X) and stored is not None and torch.equal(weight, stored)


def test_every_site_before_and_after_its_rewriting_computes_the_same() -> None:
    graph = load(branches())
    rewritten = graph.copy()
    rewrite_all(rewritten)
    for site in find_linear_sites(graph)[0]:
        (before,) = graph.evaluate([site.output], {site.input: X})
        (after,) = rewritten.evaluate([site.output], {site.input: X})
        torch.testing.assert_close(before, site.reference(X).float())
        torch.testing.assert_close(after, before)


def test_extents_may_differ_from_those_that_the_file_fixes(capfd: pytest.CaptureFixture[str]) -> None:
    text = """net (float[2, 7, 6] x) => (float[2, 7, 4] y) <float[2, 7, 4] h, float[2, 7, 4] s, float[2, 7, 4] r> {
        h = MatMul(x, w) s = Add(h, bias) r = Relu(s) y = Add(r, h)
    }"""
    graph = load(parse(text, {"w": (6, 4), "bias": (4,)}))
    (y, r) = graph.evaluate(["y", "r"], {"x": torch.ones(1, 256, 6)})
    assert y.shape == r.shape == (1, 256, 4)
    assert capfd.readouterr() == ("", "")


def test_floating_point_input_takes_the_type_of_the_graph() -> None:
    graph = load(mlp())
    (y,) = graph.evaluate(["h0"], {"x": X.double()})
    assert y.dtype == torch.float32


def test_a_node_with_bodies_can_be_evaluated_and_sees_what_it_captures() -> None:
    graph = load(branches())
    flag = torch.tensor(True)
    (whole,), _ = graph.run({"x": X, "flag": flag})
    (part,) = graph.evaluate(["y"], {"s": X + X, "x": X, "flag": flag})
    torch.testing.assert_close(part, whole)


@pytest.mark.parametrize(
    ("output", "given", "text"),
    [
        ("y", {}, "y depends on the input x, which is not given"),
        ("x", {}, "x depends on the input x, which is not given"),
    ],
)
def test_an_input_that_is_needed_and_not_given_is_named(output: str, given: dict[str, torch.Tensor], text: str) -> None:
    with pytest.raises(GraphError) as caught:
        load(mlp()).evaluate([output], given)
    assert str(caught.value) == text


def test_an_unknown_value_is_named() -> None:
    with pytest.raises(GraphError, match=r"^net: the graph has no value 'ghost'$"):
        load(mlp()).evaluate(["y"], {"ghost": X})


LOOP = """net (int64 n, float[2] start) => (float[2] y) {
    [loop] y = Loop (n, "", start) <body = step (int64 i, bool go, float[2] state) => (bool again, float[2] next) {
        again = Identity(go) [grow] p = MatMul(state, w) next = Add(p, state)
    }>
}"""


def test_a_layer_that_reads_a_loop_variable_is_evaluated_when_it_is_given() -> None:
    graph = load(parse(LOOP, {"w": (2, 2)}))
    (site,) = sites(graph).values()
    assert site.nested and site.input == "loop/body/state"
    (y,) = graph.evaluate([site.output], {site.input: torch.ones(2)})
    torch.testing.assert_close(y, site.reference(torch.ones(2)).float())
    with pytest.raises(GraphError, match=r"^loop/body/p depends on the input loop/body/state, which is not given$"):
        graph.evaluate([site.output], {})


def test_a_loop_computes_the_same_with_its_layer_rewritten() -> None:
    graph = load(parse(LOOP, {"w": (2, 2)}))
    inputs = {"n": torch.tensor(3), "start": torch.tensor([1.0, -2.0])}
    (before,), _ = graph.run(inputs)
    (site,) = sites(graph).values()
    graph.replace(site, LOWRANK, full_rank(site))
    (after,), _ = graph.run(inputs)
    torch.testing.assert_close(after, before)
    graph.validate()
