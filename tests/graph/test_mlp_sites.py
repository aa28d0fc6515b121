"""Finding feed-forward layers: plain, gated, in factors, reshaped; and every reason why something is none."""

from collections.abc import Callable

import pytest
import torch
from fake_graph import FakeGraph

from regraft.graph import Value
from regraft.graph.mlp import MlpSite, find_mlp_sites, with_residual

IN, HIDDEN, OUT, RANK = 4, 6, 4, 2
ROWS = ("batch", "seq")


def _find(g: FakeGraph) -> tuple[list[MlpSite], list[tuple[str, str]]]:
    sites, misses = find_mlp_sites(g)  # type: ignore[arg-type]
    return sites, [(miss.name, miss.reason) for miss in misses]


def _one(g: FakeGraph) -> MlpSite:
    sites, misses = _find(g)
    assert not misses, misses
    (site,) = sites
    return site


def _miss(g: FakeGraph) -> tuple[str, str]:
    sites, misses = _find(g)
    assert not sites, sites
    (miss,) = misses
    return miss


def _dense(g: FakeGraph, x: Value, out: int, name: str, rows: tuple[str, ...] = ROWS, *, nested: bool = False) -> Value:
    width = int((x.type.shape or (0,))[-1])
    weight, bias = g.weight(f"{name}.weight", out, width), g.weight(f"{name}.bias", out)
    return g.node("linear", x, weight, bias, shape=(*rows, out), key=name, scope=name, nested=nested)


def _factored(g: FakeGraph, x: Value, out: int, name: str, rows: tuple[str, ...] = ROWS) -> Value:
    width = int((x.type.shape or (0,))[-1])
    down, up = g.weight(f"{name}.down", RANK, width), g.weight(f"{name}.up", out, RANK)
    return g.node("lowrank_linear", x, down, up, None, shape=(*rows, out), key=name, scope=name)


def _act(g: FakeGraph, x: Value, op: str = "gelu", key: str = "act") -> Value:
    return g.node(op, x, shape=x.type.shape, key=key)


def _like(g: FakeGraph, op: str, x: Value, *others: Value, key: str = "") -> Value:
    return g.node(op, x, *others, shape=x.type.shape, key=key)


def _x(g: FakeGraph) -> Value:
    return g.input("x", *ROWS, IN)


def _plain(g: FakeGraph) -> Value:
    return _dense(g, _act(g, _dense(g, _x(g), HIDDEN, "block.fc1")), OUT, "block.fc2")


def _gated(g: FakeGraph) -> Value:
    x = _x(g)
    gate, inner = _dense(g, x, HIDDEN, "block.gate"), _dense(g, x, HIDDEN, "block.up")
    return _dense(g, _like(g, "mul", _act(g, gate, "silu"), inner, key="product"), OUT, "block.down")


# What is found


def test_two_layers_with_an_activation_between_them_are_one() -> None:
    g = FakeGraph()
    _plain(g)
    site = _one(g)
    assert site.name == "block"
    assert site.describe() == "4->6->4 gelu"
    assert (dict(site.operands), site.output) == ({"x": "x"}, "block.fc2")
    assert set(site.nodes) == {node.key for node in g.nodes()}
    assert list(site.tensors()) == ["in_up", "in_bias", "out_down", "out_bias"]


@pytest.mark.parametrize("turned", [False, True])
def test_a_gate_is_the_layer_that_is_activated(turned: bool) -> None:
    g = FakeGraph()
    x = _x(g)
    gate, inner = _dense(g, x, HIDDEN, "block.gate"), _dense(g, x, HIDDEN, "block.up")
    opened = _act(g, gate, "silu")
    product = _like(g, "mul", *((inner, opened) if turned else (opened, inner)))
    _dense(g, product, OUT, "block.down")
    site = _one(g)
    assert site.gate is not None
    assert [layer.name for layer in site.layers] == ["block.gate", "block.up", "block.down"]
    assert site.describe() == "4->6->4 gated silu"
    assert set(site.nodes) == {node.key for node in g.nodes()}
    assert set(site.tensors()) == {"in_up", "in_bias", "gate_up", "gate_bias", "out_down", "out_bias"}


def test_a_gate_whose_activation_is_spelled_out_is_told_from_the_product_with_it() -> None:
    g = FakeGraph()
    x = _x(g)
    gate, inner = _dense(g, x, HIDDEN, "block.gate"), _dense(g, x, HIDDEN, "block.up")
    opened = _like(g, "mul", gate, _act(g, gate, "sigmoid"))
    _dense(g, _like(g, "mul", opened, inner), OUT, "block.down")
    site = _one(g)
    assert (site.activation, site.gate is not None) == ("silu", True)


@pytest.mark.parametrize("first", [_dense, _factored])
@pytest.mark.parametrize("second", [_dense, _factored])
def test_layers_may_be_dense_or_in_factors(first: Callable[..., Value], second: Callable[..., Value]) -> None:
    g = FakeGraph()
    second(g, _act(g, first(g, _x(g), HIDDEN, "a")), OUT, "b")
    site = _one(g)
    assert ("in_down" in site.tensors(), "out_up" in site.tensors()) == (first is _factored, second is _factored)


def test_what_is_found_is_what_the_layers_compute() -> None:
    g = FakeGraph()
    _gated(g)
    site = _one(g)
    x = torch.randn(3, IN, dtype=torch.float64)
    t = {name: tensor.double() for name, tensor in site.tensors().items()}
    gate, inner = x @ t["gate_up"].t() + t["gate_bias"], x @ t["in_up"].t() + t["in_bias"]
    wanted = (torch.sigmoid(gate) * gate * inner) @ t["out_down"].t() + t["out_bias"]
    torch.testing.assert_close(site.reference(x), wanted)
    torch.testing.assert_close(site.reference(x, x), wanted + x)


def test_copies_dropouts_and_reshapes_of_the_leading_dims_are_looked_through() -> None:
    g = FakeGraph()
    rows = g.node("reshape", _x(g), shape=("n", IN), key="rows")
    inner = _dense(g, rows, HIDDEN, "a", ("n",))
    back = g.node("reshape", inner, shape=(*ROWS, HIDDEN), key="back")
    act = _like(g, "dropout", _act(g, back))
    again = g.node("reshape", act, shape=("n", HIDDEN), key="again")
    _dense(g, again, OUT, "b", ("n",))
    site = _one(g)
    assert site.operands == {"x": "rows"}
    assert {"back", "again", "act"} <= set(site.nodes)
    assert "rows" not in site.nodes


def test_layers_of_one_name_are_numbered_and_names_without_a_common_part_are_the_first_ones() -> None:
    g = FakeGraph()
    x = _plain(g)
    x = _dense(g, _act(g, _dense(g, x, HIDDEN, "block.fc3"), key="act2"), OUT, "block.fc4")
    _dense(g, _act(g, _dense(g, x, HIDDEN, "p"), key="act3"), OUT, "q")
    assert [site.name for site in _find(g)[0]] == ["block", "block#2", "p"]


def test_a_weight_that_another_layer_reads_is_told() -> None:
    g = FakeGraph()
    weight = g.weight("w", HIDDEN, IN)
    inner = g.node("linear", _x(g), weight, shape=(*ROWS, HIDDEN), key="a")
    _dense(g, _act(g, inner), OUT, "b")
    assert not _one(g).shared
    g.node("embedding", weight, g.input("ids", "n"), shape=("n", IN))
    assert _one(g).shared


# The addition behind it


@pytest.mark.parametrize("turned", [False, True])
def test_the_sum_behind_it_can_be_taken_along(turned: bool) -> None:
    g = FakeGraph()
    y = _like(g, "dropout", _plain(g), key="drop")
    x = g.inputs()[0]
    _like(g, "add", *((x, y) if turned else (y, x)), key="sum")
    wider = with_residual(_one(g))
    assert wider is not None
    assert (dict(wider.operands), wider.output) == ({"x": "x", "residual": "x"}, "sum")
    assert set(wider.nodes) == {node.key for node in g.nodes()}


def test_a_sum_behind_a_reshape_takes_x_from_before_its_reshape() -> None:
    g = FakeGraph()
    x = _x(g)
    rows = g.node("reshape", x, shape=("n", IN), key="rows")
    y = _dense(g, _act(g, _dense(g, rows, HIDDEN, "a", ("n",))), OUT, "b", ("n",))
    back = g.node("reshape", y, shape=(*ROWS, OUT), key="back")
    _like(g, "add", back, x, key="sum")
    wider = with_residual(_one(g))
    assert wider is not None
    assert dict(wider.operands) == {"x": "x", "residual": "x"}


def _read_twice(g: FakeGraph, y: Value) -> None:
    _like(g, "add", y, g.inputs()[0])
    _like(g, "relu", y)


def _returned(g: FakeGraph, y: Value) -> None:
    _like(g, "add", y, g.inputs()[0])
    g.output(y)


def _scaled(g: FakeGraph, y: Value) -> None:
    g.node("add", y, g.inputs()[0], shape=y.type.shape, alpha=2)


def _broadcast(g: FakeGraph, y: Value) -> None:
    g.node("add", y, g.input("one", 1, "seq", OUT), shape=y.type.shape)


def _constant(g: FakeGraph, y: Value) -> None:
    g.node("add", y, g.weight("c", OUT), shape=y.type.shape)


def _doubled(g: FakeGraph, y: Value) -> None:
    _like(g, "add", y, y)


def _nobody(g: FakeGraph, y: Value) -> None:
    del g, y


def _multiplied(g: FakeGraph, y: Value) -> None:
    _like(g, "mul", y, g.inputs()[0])


@pytest.mark.parametrize(
    "behind", [_read_twice, _returned, _scaled, _broadcast, _constant, _doubled, _multiplied, _nobody]
)
def test_any_other_reader_keeps_the_sum_where_it_is(behind: Callable[[FakeGraph, Value], None]) -> None:
    g = FakeGraph()
    behind(g, _plain(g))
    assert with_residual(_one(g)) is None


# Refusals


def test_a_hidden_value_that_something_else_reads_stays() -> None:
    g = FakeGraph()
    hidden = _act(g, _dense(g, _x(g), HIDDEN, "a"))
    _dense(g, hidden, OUT, "b")
    _like(g, "relu", hidden, key="reader")
    assert _miss(g) == ("b", "act is also used by reader")


def test_a_hidden_value_that_the_graph_returns_stays() -> None:
    g = FakeGraph()
    inner = _dense(g, _x(g), HIDDEN, "a")
    _dense(g, _act(g, inner), OUT, "b")
    g.output(inner)
    assert _miss(g) == ("b", "a is returned by the graph")


def test_an_activation_of_something_else_is_told() -> None:
    g = FakeGraph()
    _dense(g, _act(g, _x(g), "relu"), OUT, "b")
    assert _miss(g) == ("b", "its activation relu is applied to x, which is no linear layer's result")


def test_an_unknown_activation_is_told_with_those_that_are_known() -> None:
    g = FakeGraph()
    _dense(g, _act(g, _dense(g, _x(g), HIDDEN, "a"), "elu"), OUT, "b")
    assert _miss(g) == ("b", "its activation elu is none of gelu, gelu_tanh, relu, silu, tanh, sigmoid")


def test_a_gate_that_reads_something_else_is_told() -> None:
    g = FakeGraph()
    gate, inner = _dense(g, _x(g), HIDDEN, "gate"), _dense(g, g.input("z", *ROWS, IN), HIDDEN, "up")
    _dense(g, _like(g, "mul", _act(g, gate), inner), OUT, "down")
    assert _miss(g) == ("down", "gate reads x, up reads z")


def test_an_activation_that_multiplies_no_layers_result_is_told() -> None:
    g = FakeGraph()
    gate = _act(g, _dense(g, _x(g), HIDDEN, "gate"))
    _dense(g, _like(g, "mul", gate, g.input("z", *ROWS, HIDDEN), key="product"), OUT, "down")
    assert _miss(g) == ("down", "product multiplies an activation and no two linear layers' results")


def test_rows_in_another_shape_are_told() -> None:
    g = FakeGraph()
    inner = _act(g, _dense(g, _x(g), HIDDEN, "a"))
    rows = g.node("reshape", inner, shape=("n", HIDDEN))
    _dense(g, rows, OUT, "b", ("n",))
    reason = "b is float32[n, 4], it should have the leading dims of x, which is float32[batch, seq, 4]"
    assert _miss(g) == ("b", reason)


def test_a_layer_belongs_to_one_feed_forward_layer() -> None:
    g = FakeGraph()
    y = _plain(g)
    _dense(g, _act(g, y, key="act2"), OUT, "block.fc3")
    sites, misses = _find(g)
    assert [site.name for site in sites] == ["block"]
    assert misses == [("block.fc3", "block.fc2 belongs to the feed-forward layer block")]


def test_layers_of_different_bodies_stay_apart() -> None:
    g = FakeGraph()
    _dense(g, _act(g, _dense(g, _x(g), HIDDEN, "a")), OUT, "b", nested=True)
    assert _miss(g) == ("b", "a stands outside of the nested body of b")


def test_layers_that_follow_each_other_or_stand_behind_other_operations_are_not_even_near() -> None:
    g = FakeGraph()
    x = _dense(g, _x(g), IN, "a")
    y = _dense(g, x, IN, "b")
    z = g.node("transpose", y, shape=(*ROWS, IN))
    _dense(g, _like(g, "mul", z, x), OUT, "c")
    assert _find(g) == ([], [])
