"""The matcher: what it matches, and that it can say why it does not."""

import pytest
from fake_graph import FakeGraph

from regraft.graph.matcher import Call, Match, Mismatch, Pattern, call, constant, match, pattern, source
from regraft.graph.view import Node, Value

add, mul, sub, matmul, sigmoid = (call(name) for name in ("add", "mul", "sub", "matmul", "sigmoid"))


@pattern
def biased_product(x: Pattern, w: Pattern, b: Pattern) -> Pattern:
    return add(matmul(x, constant(w, rank=2)), constant(b))


@pattern
def silu(x: Pattern) -> Pattern:
    return mul(x, sigmoid(x))


def _producer(value: Value) -> Node:
    assert value.producer is not None
    return value.producer


def _found(what: Call, value: Value) -> Match:
    outcome = match(what, _producer(value))
    assert isinstance(outcome, Match), outcome
    return outcome


def _missed(what: Call, value: Value) -> Mismatch:
    outcome = match(what, _producer(value))
    assert isinstance(outcome, Mismatch)
    return outcome


def test_a_match_binds_the_parameters_and_lists_the_nodes_root_first() -> None:
    g = FakeGraph()
    x, w, b = g.input("x", 2, 4), g.weight("w", 4, 3), g.weight("b", 3)
    y = g.node("matmul", x, w, key="product")
    z = g.node("add", y, b, key="sum")
    found = _found(biased_product, z)
    assert found.bindings == {"x": x, "w": w, "b": b}
    assert [node.key for node in found.nodes] == ["sum", "product"]


@pytest.mark.parametrize("op", ["add", "mul"])
def test_commutative_operations_match_in_both_orders(op: str) -> None:
    for swapped in (False, True):
        g = FakeGraph()
        x, w = g.input("x", 2), g.weight("w", 2)
        y = g.node("relu", x)
        z = g.node(op, *((w, y) if swapped else (y, w)))
        what = pattern(lambda a, b: call(op)(call("relu")(a), constant(b)))
        assert _found(what, z).bindings == {"a": x, "b": w}


def test_other_operations_match_only_as_written() -> None:
    g = FakeGraph()
    x, w = g.input("x", 2), g.weight("w", 2)
    what = pattern(lambda a, b: sub(a, constant(b)))
    assert _found(what, g.node("sub", x, w)).bindings == {"a": x, "b": w}
    assert _missed(what, g.node("sub", w, x)).reason == "b must be a constant, x is an input of the graph"


def test_a_name_used_twice_must_be_the_same_value() -> None:
    g = FakeGraph()
    x, other = g.input("x", 2), g.input("other", 2)
    assert _found(silu, g.node("mul", x, g.node("sigmoid", x))).bindings == {"x": x}
    assert _found(silu, g.node("mul", g.node("sigmoid", x), x)).bindings == {"x": x}
    missed = _missed(silu, g.node("mul", other, g.node("sigmoid", x)))
    assert missed == Mismatch("x must be one value, got other and x", depth=2)


def test_a_later_operand_may_need_another_order_inside_an_earlier_one() -> None:
    """(a + b) · b: whichever way the sum is written, and whichever side it stands on."""
    what = pattern(lambda a, b: mul(add(a, b), b))
    for inner_swapped in (False, True):
        for outer_swapped in (False, True):
            g = FakeGraph()
            x, y = g.input("x", 2), g.input("y", 2)
            inner = g.node("add", *((y, x) if inner_swapped else (x, y)))
            outer = g.node("mul", *((y, inner) if outer_swapped else (inner, y)))
            assert _found(what, outer).bindings == {"a": x, "b": y}


@pytest.mark.parametrize("op", ["dropout", "clone", "identity", "contiguous", "detach", "alias"])
def test_operations_that_change_nothing_are_looked_through_and_covered(op: str) -> None:
    g = FakeGraph()
    x, w, b = g.input("x", 2, 4), g.weight("w", 4, 3), g.weight("b", 3)
    y = g.node(op, g.node("matmul", x, w, key="product"), key="copy")
    z = g.node("add", y, g.node(op, b), key="sum")
    found = _found(biased_product, z)
    assert found.bindings["b"] is b
    assert [node.key for node in found.nodes] == ["sum", "copy", "product"]


def test_several_operations_that_change_nothing_are_looked_through_at_once() -> None:
    g = FakeGraph()
    x, w, b = g.input("x", 2, 4), g.weight("w", 4, 3), g.weight("b", 3)
    y = g.node("clone", g.node("dropout", g.node("matmul", x, w, key="product"), key="inner"), key="outer")
    found = _found(biased_product, g.node("add", y, b, key="sum"))
    assert [node.key for node in found.nodes] == ["sum", "outer", "inner", "product"]


def test_nothing_is_looked_through_when_told_so() -> None:
    g = FakeGraph()
    x, w, b = g.input("x", 2, 4), g.weight("w", 4, 3), g.weight("b", 3)
    z = g.node("add", g.node("clone", g.node("matmul", x, w), key="copy"), b)
    outcome = match(biased_product, _producer(z), look_through=())
    assert outcome == Mismatch("matmul is needed, copy is clone", depth=1)


def test_the_mask_of_a_dropout_is_not_a_copy_of_its_input() -> None:
    g = FakeGraph()
    x = g.input("x", 2)
    kept = g.node("dropout", x, results=2, key="dropout")
    mask = _producer(kept).outputs[1]
    assert source(kept) == (x, (_producer(kept),))
    assert source(mask) == (mask, ())
    drop = pattern(lambda a: sigmoid(call("relu")(a)))
    assert _missed(drop, g.node("sigmoid", mask)).reason == "relu is needed, dropout.1 is a further result of dropout"


def test_a_further_result_of_a_node_is_not_its_result() -> None:
    g = FakeGraph()
    x = g.input("x", 2)
    second = _producer(g.node("sigmoid", x, results=2, key="both")).outputs[1]
    what = pattern(lambda a: sigmoid(sigmoid(a)))
    missed = _missed(what, g.node("sigmoid", second))
    assert missed == Mismatch("sigmoid is needed, both.1 is a further result of both", depth=1)


def test_an_interior_value_that_is_used_elsewhere_is_refused_and_its_user_named() -> None:
    g = FakeGraph()
    x, w, b = g.input("x", 2, 4), g.weight("w", 4, 3), g.weight("b", 3)
    y = g.node("matmul", x, w, key="product")
    z = g.node("add", y, b)
    g.node("relu", y, key="elsewhere")
    assert _missed(biased_product, z) == Mismatch("product is also used by elsewhere", depth=1)


def test_an_interior_value_behind_a_copy_that_is_used_elsewhere_is_refused() -> None:
    for tapped in ("product", "inner", "outer"):
        g = FakeGraph()
        x, w, b = g.input("x", 2, 4), g.weight("w", 4, 3), g.weight("b", 3)
        values = {"product": g.node("matmul", x, w, key="product")}
        values["inner"] = g.node("clone", values["product"], key="inner")
        values["outer"] = g.node("clone", values["inner"], key="outer")
        z = g.node("add", values["outer"], b)
        g.node("relu", values[tapped], key="elsewhere")
        assert _missed(biased_product, z).reason == f"{tapped} is also used by elsewhere"


def test_an_interior_value_that_the_graph_returns_is_refused() -> None:
    g = FakeGraph()
    x, w, b = g.input("x", 2, 4), g.weight("w", 4, 3), g.weight("b", 3)
    y = g.node("matmul", x, w, key="product")
    z = g.node("add", y, b)
    g.output(y)
    assert _missed(biased_product, z) == Mismatch("product is returned by the graph", depth=1)


def test_the_result_of_the_root_may_be_used_and_returned_as_one_likes() -> None:
    g = FakeGraph()
    x, w, b = g.input("x", 2, 4), g.weight("w", 4, 3), g.weight("b", 3)
    z = g.node("add", g.node("matmul", x, w), b)
    g.node("relu", z)
    g.output(z)
    _found(biased_product, z)


def test_the_failure_that_came_furthest_is_the_one_reported() -> None:
    """The first order of the sum fails at once, the second one inside the product: that is the interesting reason."""
    for swapped in (False, True):
        g = FakeGraph()
        x, w, b = g.input("x", 2, 4), g.input("w", 4, 3), g.weight("b", 3)
        y = g.node("matmul", x, w)
        z = g.node("add", *((b, y) if swapped else (y, b)))
        assert _missed(biased_product, z) == Mismatch("w must be a constant, w is an input of the graph", depth=2)


def test_reasons_say_what_was_found_and_what_is_needed() -> None:
    g = FakeGraph()
    x, w, b = g.input("x", 2, 4), g.weight("w", 4, 3), g.weight("b", 3)
    cases = {
        "add is needed, relu_0 is relu": g.node("relu", x),
        "matmul is needed, x is an input of the graph": g.node("add", x, b),
        "matmul is needed, b is a constant": g.node("add", b, b),
        "matmul is needed, inner is relu": g.node("add", g.node("relu", x, key="inner"), b),
        "w must have 2 dims, b is float32[3]": g.node("add", g.node("matmul", x, b), b),
        "b must be a constant, gate is computed": g.node("add", g.node("matmul", x, w), g.node("relu", x, key="gate")),
        "sum has 3 operands, 2 are needed": g.node("add", x, b, b, key="sum"),
    }
    for reason, value in cases.items():
        assert _missed(biased_product, value).reason == reason


def test_absent_operands_do_not_count() -> None:
    g = FakeGraph()
    x = g.input("x", 2)
    assert _found(silu, g.node("mul", x, g.node("sigmoid", x, None), None)).bindings == {"x": x}


def test_a_constant_of_unknown_rank_may_be_the_one_needed() -> None:
    g = FakeGraph()
    x, w, b = g.input("x", 2, 4), g.weight("w", 4, 3), g.weight("b", 3)
    w.type = type(w.type)("float32")
    _found(biased_product, g.node("add", g.node("matmul", x, w), b))


def test_a_function_that_is_no_operation_is_no_pattern() -> None:
    with pytest.raises(AssertionError, match="a pattern must end in an operation"):
        pattern(lambda x: x)
    with pytest.raises(AssertionError, match="takes a parameter"):
        pattern(lambda x: add(constant(sigmoid(x)), x))
