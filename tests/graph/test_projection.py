"""Projections: dense and low-rank layers read alike, in both graph kinds."""

from io import BytesIO

import onnx
import pytest
import torch
from fake_graph import FakeGraph
from torch import Tensor, nn

import regraft
from regraft.frontends.onnx import load
from regraft.frontends.torch import capture
from regraft.graph import Projection, Value, find_projections
from regraft.passes import LowRank

IN, OUT, RANK = 6, 5, 2


def _only(graph: FakeGraph) -> Projection:
    (projection,) = find_projections(graph).values()  # type: ignore[arg-type]
    return projection


def _content(graph: FakeGraph, value: Value) -> Tensor:
    content = graph.constant(value)
    assert content is not None
    return content


def test_a_dense_layer_is_a_projection_without_a_first_factor():
    g = FakeGraph()
    w, b = g.weight("a.weight", OUT, IN), g.weight("a.bias", OUT)
    g.node("linear", g.input("x", "n", IN), w, b, shape=("n", OUT), key="y", scope="a")
    found = _only(g)
    assert (found.name, found.x.key, found.output.key, found.rank) == ("a", "x", "y", None)
    assert found.down is None
    assert not found.is_factored
    assert torch.equal(found.up, _content(g, w))
    assert found.weight is found.up
    assert found.bias is not None
    assert torch.equal(found.bias, _content(g, b))


@pytest.mark.parametrize("kind", ["fx", "onnx"])
def test_the_factors_of_a_low_rank_layer_are_read_as_the_op_means_them(kind: str):
    g = FakeGraph()
    g.kind = kind
    turned = kind == "onnx"
    down = g.weight("a.down", *((IN, RANK) if turned else (RANK, IN)))
    up = g.weight("a.up", *((RANK, OUT) if turned else (OUT, RANK)))
    g.node("lowrank_linear", g.input("x", "n", IN), down, up, shape=("n", OUT), key="y", scope="a")
    found = _only(g)
    assert (found.in_features, found.out_features, found.rank) == (IN, OUT, RANK)
    assert found.down is not None
    assert (tuple(found.down.shape), tuple(found.up.shape)) == ((RANK, IN), (OUT, RANK))
    x = torch.randn(3, IN, dtype=torch.float64)
    torch.testing.assert_close(found.reference(x), x @ found.weight.double().t(), rtol=1e-6, atol=1e-6)


def test_scaled_products_and_biases_of_one_number_are_read_in_full():
    g = FakeGraph()
    w, b = g.weight("w", IN, OUT), g.weight("b", 1)
    g.node("gemm", g.input("x", "n", IN), w, b, shape=("n", OUT), key="y", alpha=2.0, beta=3.0)
    found = _only(g)
    assert torch.equal(found.up, _content(g, w).t() * 2)
    assert found.bias is not None
    assert torch.equal(found.bias, (_content(g, b) * 3).expand(OUT))


def test_a_factor_that_is_computed_makes_no_projection():
    g = FakeGraph()
    down = g.node("relu", g.weight("a.down", RANK, IN), shape=(RANK, IN))
    g.node("lowrank_linear", g.input("x", "n", IN), down, g.weight("a.up", OUT, RANK), shape=("n", OUT))
    assert not find_projections(g)  # type: ignore[arg-type]


def test_calls_of_one_weight_know_that_it_is_shared():
    g = FakeGraph()
    w = g.weight("a.weight", IN, IN)
    h = g.node("linear", g.input("x", "n", IN), w, shape=("n", IN), key="h")
    g.node("linear", h, w, shape=("n", IN), key="y")
    found = find_projections(g)  # type: ignore[arg-type]
    assert {key: one.shared for key, one in found.items()} == {"h": True, "y": True}


def _exported(model: nn.Module, x: Tensor) -> onnx.ModelProto:
    file = BytesIO()
    torch.onnx.export(model, (x,), file, dynamo=False, opset_version=17)  # type: ignore[arg-type]
    return onnx.load_from_string(file.getvalue())


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("kind", ["fx", "onnx"])
def test_a_layer_that_low_rank_has_rewritten_stays_the_same_projection(kind: str):
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh()).eval(), torch.randn(3, 16)
    native = model if kind == "fx" else _exported(model, x)
    before = capture(model, (x,)) if kind == "fx" else load(_exported(model, x))
    after = regraft.optimize(native, [LowRank(keep=0.5)], example_inputs=(x,), progress=False).graph
    dense, factored = find_projections(before), find_projections(after)
    assert dense.keys() == factored.keys()
    for key, projection in factored.items():
        assert projection.rank == 4
        assert projection.name == dense[key].name
        assert projection.bias is not None
        assert dense[key].bias is not None
        torch.testing.assert_close(projection.bias, dense[key].bias)
        error = torch.linalg.matrix_norm(projection.weight - dense[key].weight, 2)
        assert error <= torch.linalg.svdvals(dense[key].weight)[4] * 1.001  # Eckart-Young
