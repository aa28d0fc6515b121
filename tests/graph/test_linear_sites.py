"""Finding linear layers: every spelling, every reason why something is none, and what a site says of itself."""

from collections.abc import Callable

import pytest
import torch
from fake_graph import FakeGraph
from torch import Tensor

from regraft.errors import GraphError
from regraft.graph import LinearSite, NearMiss, TensorType, Value, find_linear_sites

IN, OUT = 4, 3


def _one(g: FakeGraph) -> LinearSite:
    sites, misses = find_linear_sites(g)  # type: ignore[arg-type]
    assert not misses, misses
    (site,) = sites
    return site


def _miss(g: FakeGraph) -> NearMiss:
    sites, misses = find_linear_sites(g)  # type: ignore[arg-type]
    assert not sites, sites
    (miss,) = misses
    return miss


def _x(g: FakeGraph) -> Value:
    return g.input("x", "batch", IN)


# Spellings: each builds a graph and returns what it computes, written out


def _linear(g: FakeGraph) -> Callable[[Tensor], Tensor]:
    w, b = g.weight("layer.weight", OUT, IN), g.weight("layer.bias", OUT)
    g.node("linear", _x(g), w, b, shape=("batch", OUT), key="y")
    return lambda x: x @ _t(g, w).t() + _t(g, b)


def _linear_without_bias(g: FakeGraph) -> Callable[[Tensor], Tensor]:
    w = g.weight("layer.weight", OUT, IN)
    g.node("linear", _x(g), w, None, shape=("batch", OUT), key="y")
    return lambda x: x @ _t(g, w).t()


def _linear_of_two_operands(g: FakeGraph) -> Callable[[Tensor], Tensor]:
    w = g.weight("layer.weight", OUT, IN)
    g.node("linear", _x(g), w, shape=("batch", OUT), key="y")
    return lambda x: x @ _t(g, w).t()


def _addmm(g: FakeGraph) -> Callable[[Tensor], Tensor]:
    w, b = g.weight("layer.weight", IN, OUT), g.weight("layer.bias", OUT)
    g.node("addmm", b, _x(g), w, shape=("batch", OUT), key="y", alpha=1, beta=1)
    return lambda x: x @ _t(g, w) + _t(g, b)


def _addmm_with_factors(g: FakeGraph) -> Callable[[Tensor], Tensor]:
    w, b = g.weight("layer.weight", IN, OUT), g.weight("layer.bias", OUT)
    g.node("addmm", b, _x(g), w, shape=("batch", OUT), key="y", alpha=0.5, beta=-2.0)
    return lambda x: 0.5 * (x @ _t(g, w)) - 2.0 * _t(g, b)


def _addmm_of_a_transposed_weight(g: FakeGraph) -> Callable[[Tensor], Tensor]:
    w, b = g.weight("layer.weight", OUT, IN), g.weight("layer.bias", OUT)
    turned = g.node("transpose", w, shape=(IN, OUT), perm=(1, 0))
    g.node("addmm", b, _x(g), turned, shape=("batch", OUT), key="y")
    return lambda x: x @ _t(g, w).t() + _t(g, b)


def _matmul(g: FakeGraph) -> Callable[[Tensor], Tensor]:
    w = g.weight("layer.weight", IN, OUT)
    g.node("matmul", _x(g), w, shape=("batch", OUT), key="y")
    return lambda x: x @ _t(g, w)


def _matmul_add(g: FakeGraph) -> Callable[[Tensor], Tensor]:
    w, b = g.weight("layer.weight", IN, OUT), g.weight("layer.bias", OUT)
    product = g.node("matmul", _x(g), w, shape=("batch", OUT))
    g.node("add", product, b, shape=("batch", OUT), key="y")
    return lambda x: x @ _t(g, w) + _t(g, b)


def _matmul_add_bias_first(g: FakeGraph) -> Callable[[Tensor], Tensor]:
    w, b = g.weight("layer.weight", IN, OUT), g.weight("layer.bias", OUT)
    product = g.node("matmul", _x(g), w, shape=("batch", OUT))
    g.node("add", b, product, shape=("batch", OUT), key="y", alpha=1)
    return lambda x: x @ _t(g, w) + _t(g, b)


def _matmul_add_bias_of_one_row(g: FakeGraph) -> Callable[[Tensor], Tensor]:
    w, b = g.weight("layer.weight", IN, OUT), g.weight("layer.bias", 1, OUT)
    product = g.node("matmul", _x(g), w, shape=("batch", OUT))
    g.node("add", product, b, shape=("batch", OUT), key="y")
    return lambda x: x @ _t(g, w) + _t(g, b)


def _matmul_of_a_weight_transposed_twice(g: FakeGraph) -> Callable[[Tensor], Tensor]:
    w = g.weight("layer.weight", IN, OUT)
    once = g.node("transpose", w, shape=(OUT, IN), perm=(1, 0))
    twice = g.node("transpose", g.node("clone", once, shape=(OUT, IN)), shape=(IN, OUT))  # no perm: reversed
    g.node("matmul", _x(g), twice, shape=("batch", OUT), key="y")
    return lambda x: x @ _t(g, w)


def _addmm_of_one_number(g: FakeGraph) -> Callable[[Tensor], Tensor]:
    w, b = g.weight("layer.weight", IN, OUT), g.weight("layer.bias")
    g.node("addmm", b, _x(g), w, shape=("batch", OUT), key="y", beta=3.0)
    return lambda x: x @ _t(g, w) + 3.0 * _t(g, b)


def _gemm(
    trans_b: int, alpha: float, beta: float, bias_shape: tuple[int, ...] | None
) -> Callable[..., Callable[..., Tensor]]:
    def build(g: FakeGraph) -> Callable[[Tensor], Tensor]:
        w = g.weight("layer.weight", *((OUT, IN) if trans_b else (IN, OUT)))
        b = g.weight("layer.bias", *bias_shape) if bias_shape is not None else None
        g.node("gemm", _x(g), w, b, shape=("batch", OUT), key="y", alpha=alpha, beta=beta, transA=0, transB=trans_b)
        product = _t(g, w).t() if trans_b else _t(g, w)
        return lambda x: alpha * (x @ product) + (beta * _t(g, b) if b is not None else 0)

    return build


SPELLINGS = {
    "linear": _linear,
    "linear without bias": _linear_without_bias,
    "linear of two operands": _linear_of_two_operands,
    "addmm": _addmm,
    "addmm with factors": _addmm_with_factors,
    "addmm of a transposed weight": _addmm_of_a_transposed_weight,
    "matmul": _matmul,
    "matmul + add": _matmul_add,
    "add of bias and matmul": _matmul_add_bias_first,
    "matmul + add of one row": _matmul_add_bias_of_one_row,
    "matmul of a weight transposed twice": _matmul_of_a_weight_transposed_twice,
    "gemm": _gemm(0, 1.0, 1.0, (OUT,)),
    "gemm, transB": _gemm(1, 1.0, 1.0, (OUT,)),
    "gemm with factors": _gemm(0, 0.5, -2.0, (1, OUT)),
    "gemm, transB, with factors": _gemm(1, 0.25, 3.0, (OUT,)),
    "gemm without bias": _gemm(1, 2.0, 5.0, None),
    "gemm with a bias of one number": _gemm(1, 2.0, 5.0, ()),
    "gemm with a bias of one number in one dim": _gemm(0, 1.0, 1.0, (1,)),
    "gemm with a bias of one number in two dims": _gemm(0, 1.0, 0.5, (1, 1)),
    "addmm with a bias of one number": _addmm_of_one_number,
}


def _t(g: FakeGraph, value: Value) -> Tensor:
    tensor = g.constant(value)
    assert tensor is not None
    return tensor.double()


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_is_found_and_its_reference_computes_the_same(spelling: str) -> None:
    g = FakeGraph()
    direct = SPELLINGS[spelling](g)
    site = _one(g)
    assert (site.name, site.operands, site.output) == ("layer", {"x": "x"}, "y")
    assert (site.in_features, site.out_features, site.shape, site.describe()) == (IN, OUT, "3x4", "3x4")
    assert site.input_type == TensorType("float32", ("batch", IN))
    x = torch.randn(5, IN, generator=torch.Generator().manual_seed(9))
    assert site.reference(x).dtype == torch.float64
    torch.testing.assert_close(site.reference(x), direct(x.double()), rtol=1e-6, atol=1e-6)
    assert site.weight.shape == (OUT, IN)
    assert site.bias is None or site.bias.shape == (OUT,)
    stored = 0 if site.bias_value is None else _t(g, site.bias_value).numel()
    assert site.bytes == 4 * (OUT * IN + stored)
    assert site.bias_fits == (site.bias_value is None or _t(g, site.bias_value).shape == (OUT,))


def test_a_site_covers_its_product_its_sum_and_the_transposes_of_its_weight() -> None:
    for build, count in (
        (_matmul_add, 2),
        (_addmm_of_a_transposed_weight, 2),
        (_matmul_of_a_weight_transposed_twice, 4),
    ):
        g = FakeGraph()
        build(g)
        site = _one(g)
        assert site.nodes[0] == "y"
        assert sorted(site.nodes) == sorted(node.key for node in g.nodes())
        assert len(site.nodes) == count


def test_only_a_stored_bias_of_one_dim_can_be_read_as_it_is() -> None:
    g = FakeGraph()
    _gemm(0, 0.5, 2.0, (1, OUT))(g)
    assert not _one(g).bias_fits
    for build in (_linear, _linear_without_bias):
        g = FakeGraph()
        build(g)
        assert _one(g).bias_fits


@pytest.mark.parametrize(("shape", "rank"), [((3, 4), 2), ((8, 8), 4), ((1, 9), 1), ((384, 1536), 308)])
def test_the_break_even_rank_is_the_first_that_is_not_smaller(shape: tuple[int, int], rank: int) -> None:
    g = FakeGraph()
    g.node("linear", g.input("x", "batch", shape[1]), g.weight("w", *shape), shape=("batch", shape[0]))
    assert _one(g).break_even_rank == rank
    assert rank * sum(shape) >= shape[0] * shape[1] > (rank - 1) * sum(shape)


def test_weights_without_content_are_an_error_that_names_them() -> None:
    g = FakeGraph()
    _linear(g)
    site = _one(g)
    g.constant = lambda value: None  # type: ignore[method-assign]
    with pytest.raises(GraphError, match=r"^layer: weight layer\.weight has no content$"):
        _ = site.weight
    with pytest.raises(GraphError, match=r"^layer: bias layer\.bias has no content$"):
        _ = site.bias


# A product whose sum is no bias stays a product


def _product_and(g: FakeGraph, other: Value, **attributes: int) -> LinearSite:
    product = g.node("matmul", _x(g), g.weight("layer.weight", IN, OUT), shape=("batch", OUT), key="product")
    g.node("add", product, other, shape=("batch", OUT), **attributes)
    return _one(g)


@pytest.mark.parametrize("shape", [(), (1,), (2, OUT), (OUT, 1), (1, 1, OUT)])
def test_a_constant_that_is_not_one_row_is_not_taken_for_a_bias(shape: tuple[int, ...]) -> None:
    g = FakeGraph()
    site = _product_and(g, g.weight("other", *shape))
    assert site.bias_value is None
    assert site.output == "product"


def test_a_bias_with_leading_ones_is_taken_where_the_product_has_as_many_dims() -> None:
    g = FakeGraph()
    x = g.input("x", "batch", "sequence", IN)
    product = g.node("matmul", x, g.weight("layer.weight", IN, OUT), shape=("batch", "sequence", OUT))
    g.node("add", product, g.weight("bias", 1, 1, OUT), shape=("batch", "sequence", OUT), key="y")
    assert _one(g).output == "y"


def test_a_computed_summand_an_alpha_and_an_input_are_no_bias() -> None:
    g = FakeGraph()
    assert _product_and(g, g.node("relu", g.input("h", OUT), shape=(OUT,))).bias_value is None
    g = FakeGraph()
    assert _product_and(g, g.weight("b", OUT), alpha=2).bias_value is None
    g = FakeGraph()
    assert _product_and(g, g.input("b", OUT)).bias_value is None


def test_a_product_that_is_used_or_returned_beside_its_sum_stays_a_product() -> None:
    for returned in (False, True):
        g = FakeGraph()
        product = g.node("matmul", _x(g), g.weight("w", IN, OUT), shape=("batch", OUT), key="product")
        g.node("add", product, g.weight("b", OUT), shape=("batch", OUT))
        if returned:
            g.output(product)
        else:
            g.node("relu", product)
        assert (_one(g).output, _one(g).bias_value) == ("product", None)


# Near misses


def test_a_computed_weight_is_a_near_miss() -> None:
    g = FakeGraph()
    g.node("matmul", _x(g), g.node("relu", g.weight("w", IN, OUT), shape=(IN, OUT), key="r"), scope="layer")
    assert _miss(g) == NearMiss("layer", "neither operand is a constant (the right one is r)")


def test_a_weight_that_is_an_input_is_a_near_miss() -> None:
    g = FakeGraph()
    g.node("matmul", _x(g), g.input("w", IN, OUT), key="product")
    assert _miss(g) == NearMiss("product", "its weight w is an input of the graph")


def test_a_constant_left_operand_is_a_near_miss() -> None:
    g = FakeGraph()
    g.node("matmul", g.weight("w", OUT, IN), g.input("x", IN, "columns"), key="product")
    reason = "the constant is its left operand; a layer's weight is the right one"
    assert _miss(g) == NearMiss("product", reason)


def test_a_product_of_two_constants_is_a_near_miss() -> None:
    g = FakeGraph()
    g.node("matmul", g.weight("a", 2, IN), g.weight("w", IN, OUT), key="product")
    assert _miss(g) == NearMiss("product", "both operands are constants (a and w)")


def test_a_batched_constant_is_a_near_miss() -> None:
    g = FakeGraph()
    g.node("matmul", g.input("x", 2, 5, IN), g.weight("w", 2, IN, OUT), key="product")
    assert _miss(g) == NearMiss("product", "the weight w must be a matrix, it is float32[2, 4, 3]")


def test_a_weight_of_unknown_or_symbolic_shape_is_a_near_miss() -> None:
    for shape, text in ((None, "float32[?]"), (("n", OUT), "float32[n, 3]")):
        g = FakeGraph()
        w = g.holding("w", torch.zeros(IN, OUT), TensorType("float32", shape))
        g.node("matmul", _x(g), w, key="product")
        assert _miss(g) == NearMiss("product", f"the weight w must be a matrix, it is {text}")


def test_a_weight_of_integers_is_a_near_miss() -> None:
    g = FakeGraph()
    g.node("matmul", _x(g), g.weight("w", IN, OUT, dtype=torch.int8), key="product")
    assert _miss(g) == NearMiss("product", "the weight w must be of floating-point numbers, it is int8[4, 3]")


@pytest.mark.parametrize("trans_b", [0, 1])
def test_a_transposed_left_operand_of_gemm_is_a_near_miss(trans_b: int) -> None:
    g = FakeGraph()
    w = g.weight("w", *((OUT, IN) if trans_b else (IN, OUT)))
    g.node("gemm", g.input("x", IN, "batch"), w, key="y", transA=1, transB=trans_b)
    reason = "its first operand is transposed (transA=1); a Transpose node before a Gemm with transA=0 is a layer"
    assert _miss(g) == NearMiss("y", reason)


@pytest.mark.parametrize(
    ("op", "shape", "text"),
    [
        ("addmm", (1, 1, 1), "float32[1, 1, 1]"),
        ("addmm", (5, OUT), "float32[5, 3]"),
        ("gemm", (1, 2), "float32[1, 2]"),
        ("gemm", (5, 1), "float32[5, 1]"),
        ("linear", (OUT + 1,), "float32[4]"),
    ],
)
def test_a_bias_that_is_not_one_row_is_a_near_miss(op: str, shape: tuple[int, ...], text: str) -> None:
    g = FakeGraph()
    x, b = _x(g), g.weight("b", *shape)
    w = g.weight("w", *((OUT, IN) if op == "linear" else (IN, OUT)))
    g.node(op, *((b, x, w) if op == "addmm" else (x, w, b)), shape=("batch", OUT), key="y")
    assert _miss(g) == NearMiss("y", f"its bias b is {text}, [3] is needed")


def test_a_computed_bias_and_one_of_unknown_shape_are_near_misses() -> None:
    g = FakeGraph()
    computed = g.node("relu", g.weight("b", OUT), shape=(OUT,), key="r")
    g.node("addmm", computed, _x(g), g.weight("w", IN, OUT), shape=("batch", OUT), key="y")
    assert _miss(g) == NearMiss("y", "its bias r is not a constant")
    g = FakeGraph()
    unknown = g.holding("b", torch.zeros(OUT), TensorType("float32"))
    g.node("addmm", unknown, _x(g), g.weight("w", IN, OUT), shape=("batch", OUT), key="y")
    assert _miss(g) == NearMiss("y", "its bias b has no known shape")


@pytest.mark.parametrize("name", ["alpha", "beta"])
def test_a_factor_that_is_not_a_number_is_a_near_miss(name: str) -> None:
    g = FakeGraph()
    g.node("addmm", g.weight("b", OUT), _x(g), g.weight("w", IN, OUT), shape=("batch", OUT), key="y", **{name: "s0"})
    assert _miss(g) == NearMiss("y", f"its {name} is 's0', a number is needed")


def test_a_transpose_that_is_not_the_one_of_a_matrix_is_not_looked_through() -> None:
    g = FakeGraph()
    same = g.node("transpose", g.weight("w", IN, OUT), shape=(IN, OUT), perm=(0, 1), key="same")
    g.node("matmul", _x(g), same, key="y")
    assert _miss(g) == NearMiss("y", "neither operand is a constant (the right one is same)")


def test_other_operations_are_neither_sites_nor_near_misses() -> None:
    g = FakeGraph()
    g.node("relu", g.node("add", _x(g), g.weight("b", IN)))
    assert find_linear_sites(g) == ([], [])  # type: ignore[arg-type]


# Names, heads, tied weights


def test_a_site_is_named_after_its_scope_else_its_weight_else_its_bias_else_its_node() -> None:
    cases = (("scope", "w.weight", "b.bias", "scope"), ("", "w.weight", "b.bias", "w"), ("", "val_93", "b.bias", "b"))
    for scope, weight, bias, name in (*cases, ("", "val_93", "val_94", "y")):
        g = FakeGraph()
        g.node(
            "addmm", g.weight(bias, OUT), _x(g), g.weight(weight, IN, OUT), shape=("batch", OUT), key="y", scope=scope
        )
        assert _one(g).name == name


def test_a_layer_that_is_called_several_times_is_one_site() -> None:
    g = FakeGraph()
    value, w = g.input("x", "batch", IN), g.weight("loop.weight", IN, IN)
    for _ in range(3):
        value = g.node("linear", value, w, shape=("batch", IN), scope="loop")
    g.node("linear", value, g.weight("other.weight", OUT, IN), shape=("batch", OUT), scope="other")
    sites, _ = find_linear_sites(g)  # type: ignore[arg-type]
    assert [site.name for site in sites] == ["loop", "other"]
    assert [call.output for call in sites[0].calls] == ["linear_0", "linear_1", "linear_2"]
    assert sites[0].inputs == ("x", "linear_0", "linear_1")
    assert [site.describe() for site in sites] == [f"{IN}x{IN}, called 3 times", f"{OUT}x{IN}"]
    assert [site.weight_readers for site in sites] == [(), ()]


def test_different_layers_of_one_name_get_numbers_and_their_calls_the_same() -> None:
    g = FakeGraph()
    value, weights = _x(g), [g.weight("a", IN, IN), g.weight("b", IN, IN)]
    for place in (0, 1, 0, 1):
        value = g.node("linear", value, weights[place], shape=("batch", IN), scope="loop")
    sites, _ = find_linear_sites(g)  # type: ignore[arg-type]
    assert [[call.name for call in site.calls] for site in sites] == [["loop", "loop"], ["loop#2", "loop#2"]]


def test_layers_of_one_weight_and_bias_are_one_site_named_after_the_first() -> None:
    g = FakeGraph()
    value, w, b = _x(g), g.weight("w", IN, IN), g.weight("b", IN)
    for name in ("first", "second", "first"):
        value = g.node("linear", value, w, b, shape=("batch", IN), scope=name)
    site = _one(g)
    assert (site.name, site.layers, len(site.calls)) == ("first", ("first", "second"), 3)
    assert site.describe() == f"{IN}x{IN}, shared by 2 layers"


@pytest.mark.parametrize("differing", ["another bias", "no bias", "turned", "scaled"])
def test_layers_that_read_one_weight_in_different_ways_are_two_sites_that_know_of_each_other(differing: str) -> None:
    g = FakeGraph()
    x, w, b = _x(g), g.weight("w", IN, IN), g.weight("b", IN)
    g.node("gemm", x, w, b, shape=("batch", IN), transB=1, alpha=1.0, beta=1.0, scope="one")
    changed = {"turned": {"transB": 0}, "scaled": {"alpha": 2.0}}.get(differing, {})
    bias = {"another bias": g.weight("c", IN), "no bias": None}.get(differing, b)
    g.node("gemm", x, w, bias, shape=("batch", IN), **({"transB": 1, "alpha": 1.0, "beta": 1.0} | changed), scope="two")
    sites, _ = find_linear_sites(g)  # type: ignore[arg-type]
    assert [(site.name, site.weight_readers) for site in sites] == [("one", ("two",)), ("two", ("one",))]


def _loop(g: FakeGraph, weights: list[Value], bias: list[Value], scopes: str) -> list[LinearSite]:
    value = _x(g)
    for weight, summand, scope in zip(weights, bias, scopes, strict=True):
        value = g.node("linear", value, weight, summand, shape=("batch", IN), scope=scope)
    return find_linear_sites(g)[0]  # type: ignore[arg-type]


def test_copies_of_a_weight_that_one_layer_reads_with_one_bias_are_one_weight() -> None:
    g, content = FakeGraph(), torch.randn(IN, IN, generator=torch.Generator().manual_seed(0))
    copies, b = [g.holding(f"copy{place}", content.clone()) for place in range(3)], g.weight("b", IN)
    (site,) = _loop(g, copies, [b] * 3, "aaa")
    assert [call.weight_value.name for call in site.calls] == ["copy0", "copy1", "copy2"]
    assert site.weight_readers == ()
    g.node("relu", copies[2], key="reader")
    assert _one(g).weight_readers == ("reader",)


def test_equal_weights_of_other_layers_or_with_other_biases_stay_apart() -> None:
    for scopes, biases in (("ab", "xx"), ("aa", "xy")):
        g, content = FakeGraph(), torch.ones(IN, IN)
        copies = [g.holding(name, content.clone()) for name in ("one", "two")]
        known = {name: g.weight(name, IN) for name in "xy"}
        assert len(_loop(g, copies, [known[name] for name in biases], scopes)) == 2


@pytest.mark.parametrize("other", [torch.eye(IN) + 1e-6, torch.eye(IN).double()])
def test_weights_that_differ_at_all_are_no_copies(other: Tensor) -> None:
    g = FakeGraph()
    weights, b = [g.holding("one", torch.eye(IN)), g.holding("two", other)], g.weight("b", IN)
    assert [site.name for site in _loop(g, weights, [b, b], "aa")] == ["a", "a#2"]


def test_a_weight_that_the_model_returns_has_the_output_among_its_readers() -> None:
    g = FakeGraph()
    w = g.weight("w", OUT, IN)
    g.node("linear", _x(g), w, shape=("batch", OUT))
    g.output(w)
    assert _one(g).weight_readers == ("the model's output",)


def test_only_the_first_few_readers_of_a_weight_are_listed() -> None:
    g = FakeGraph()
    w = g.weight("w", OUT, IN)
    g.node("linear", _x(g), w, shape=("batch", OUT))
    for place in range(20):
        g.node("relu", w, key=f"reader{place:02}")
    assert _one(g).weight_readers == tuple(f"reader{place:02}" for place in range(8))


def test_other_readers_of_a_weight_are_listed_also_behind_transposes() -> None:
    g = FakeGraph()
    ids, w = g.input("ids", "batch", dtype="int64"), g.weight("wte.weight", 5, IN)
    h = g.node("embedding", w, ids, shape=("batch", IN), scope="wte")
    turned = g.node("transpose", w, shape=(IN, 5), perm=(1, 0))
    g.node("relu", g.node("clone", turned, shape=(IN, 5)), key="reader")
    logits = g.node("matmul", h, turned, shape=("batch", 5), scope="lm_head")
    g.output(logits)
    site = _one(g)
    assert site.name == "lm_head"
    assert site.weight_readers == ("reader", "wte")


def test_a_weight_of_its_own_has_no_other_readers() -> None:
    for build in (_linear, _matmul_add, _addmm_of_a_transposed_weight, _matmul_of_a_weight_transposed_twice):
        g = FakeGraph()
        build(g)
        assert _one(g).weight_readers == ()


def test_a_layer_feeds_the_output_directly_or_through_changes_of_layout() -> None:
    for layout in ((), ("reshape",), ("dropout", "squeeze"), ("unsqueeze", "cast", "identity")):
        g = FakeGraph()
        value = g.node("linear", _x(g), g.weight("w", OUT, IN), shape=("batch", OUT))
        for op in layout:
            value = g.node(op, value)
        g.output(value)
        assert _one(g).feeds_output, layout


def test_a_layer_behind_which_something_is_computed_is_no_head() -> None:
    g = FakeGraph()
    value = g.node("linear", _x(g), g.weight("w", OUT, IN), shape=("batch", OUT))
    g.output(g.node("relu", g.node("reshape", value)))
    assert not _one(g).feeds_output


def test_what_a_nested_body_returns_is_not_the_output_of_the_graph() -> None:
    g = FakeGraph()
    x = _x(g)
    x.nested = True
    value = g.node("linear", x, g.weight("w", OUT, IN), shape=("batch", OUT), nested=True)
    g.output(value)
    site = _one(g)
    assert site.nested
    assert not site.feeds_output


def test_sites_and_near_misses_come_in_graph_order() -> None:
    g = FakeGraph()
    x = _x(g)
    for name in ("a", "b", "c"):
        x = g.node("linear", x, g.weight(f"{name}.weight", IN, IN), shape=("batch", IN), scope=name)
        g.node("matmul", x, x, key=f"square of {name}")
    sites, misses = find_linear_sites(g)  # type: ignore[arg-type]
    assert [site.name for site in sites] == ["a", "b", "c"]
    assert [miss.name for miss in misses] == ["square of a", "square of b", "square of c"]
