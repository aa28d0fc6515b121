"""Numbers in a graph, as torch and as ONNX hold them."""

from typing import Any

import pytest
import torch
from fake_graph import FakeGraph

from regraft.graph import Value
from regraft.graph.scalars import scalar_of, scalar_operand


def _x(g: FakeGraph) -> Value:
    return g.input("x", "n", 4)


@pytest.mark.parametrize("shape", [(), (1,), (1, 1, 1)])
def test_a_constant_of_one_element_is_a_number(shape: tuple[int, ...]) -> None:
    g = FakeGraph()
    assert scalar_of(g, g.holding("c", torch.full(shape, 0.5))) == 0.5  # type: ignore[arg-type]


def test_a_constant_of_more_elements_and_what_is_computed_are_no_numbers() -> None:
    g = FakeGraph()
    assert scalar_of(g, g.weight("w", 2)) is None  # type: ignore[arg-type]
    assert scalar_of(g, g.node("relu", _x(g), shape=())) is None  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("op", "attributes", "number"),
    [
        ("mul", {"other": 3}, 3.0),
        ("pow", {"exponent": 2.0}, 2.0),
        ("add", {"other": 3, "alpha": 2}, 6.0),
    ],
)
def test_torch_holds_a_number_as_an_attribute(op: str, attributes: dict[str, Any], number: float) -> None:
    g = FakeGraph()
    x = _x(g)
    node = g.node(op, x, **attributes).producer
    assert node is not None
    found = scalar_operand(g, node)  # type: ignore[arg-type]
    assert found is not None
    assert (found.value, found.number, found.number_first) == (x, number, False)


@pytest.mark.parametrize("number_first", [False, True])
def test_onnx_holds_a_number_as_a_constant_on_either_side(number_first: bool) -> None:
    g = FakeGraph()
    x, half = _x(g), g.holding("half", torch.tensor(0.5))
    node = g.node("div", *((half, x) if number_first else (x, half))).producer
    assert node is not None
    found = scalar_operand(g, node)  # type: ignore[arg-type]
    assert found is not None
    assert (found.value, found.number, found.number_first) == (x, 0.5, number_first)


def test_two_tensors_a_text_and_one_operand_alone_are_no_pair_with_a_number() -> None:
    g = FakeGraph()
    x = _x(g)
    for node in (g.node("mul", x, x), g.node("mul", x, other="s0"), g.node("relu", x), g.node("where", x, x, x)):
        assert node.producer is not None
        assert scalar_operand(g, node.producer) is None  # type: ignore[arg-type]
