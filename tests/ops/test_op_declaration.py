"""An op's declaration follows from the signature of its `decompose`, and its examples from a seed."""

from typing import Any

import pytest
import torch

from regraft.errors import InputError, ShapeError
from regraft.graph.cost_types import OpCost
from regraft.graph.types import TensorType
from regraft.ops import Example, Ints, Op, Operand, evaluate
from regraft.ops._op import require


def _scaled(b: Any, x: Any, weight: Any, bias: Any = None, *, scale: float, steps: int = 1) -> Any:
    y = b.linear(x, weight)
    for _ in range(steps):
        y = b.mul(y, b.scalar(scale, y))
    return y if bias is None else b.add(y, bias)


def _postponed(b: "Any", x: "Any", *, scale: "float", steps: "int") -> "Any":
    return b.mul(x, b.scalar(scale * steps, x))


def _named(b: Any, x: Any, *, activation: str, steps: int) -> Any:
    return getattr(b, activation)(x)


def _op(decompose: Any, name: str = "scaled_linear") -> Op:
    return Op(name, "", lambda *_: TensorType(), decompose, lambda *_: OpCost(), ())


def test_operands_are_the_positional_parameters_and_those_with_a_default_are_optional() -> None:
    assert _op(_scaled).operands == (Operand("x", False), Operand("weight", False), Operand("bias", True))


def test_attributes_are_the_keyword_parameters_with_their_kinds_in_order() -> None:
    assert list(_op(_scaled).attributes.items()) == [("scale", "float"), ("steps", "int")]
    assert list(_op(_named).attributes.items()) == [("activation", "str"), ("steps", "int")]
    assert _op(lambda b, x: x).attributes == {}


def test_annotations_that_are_texts_mean_the_same() -> None:
    assert dict(_op(_postponed).attributes) == {"scale": "float", "steps": "int"}


@pytest.mark.parametrize(
    ("name", "onnx"), [("lowrank_linear", "LowrankLinear"), ("monarch", "Monarch"), ("llm_int8_x", "LlmInt8X")]
)
def test_the_onnx_name_is_the_name_in_camel_case(name: str, onnx: str) -> None:
    assert _op(_scaled, name).onnx_name == onnx


def test_an_example_draws_the_same_operands_from_the_same_seed() -> None:
    example = Example("e", {"x": (3, 4), "codes": Ints((5, 2), -3, 3), "ids": Ints((7,), 0, 1, "int64")})
    first, again, other = example.tensors(), example.tensors(), example.tensors(seed=1)
    assert list(first) == ["x", "codes", "ids"]
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["x"], other["x"])


def test_operands_of_an_example_have_the_shapes_types_and_ranges_that_it_says() -> None:
    example = Example("e", {"x": (3, 4), "codes": Ints((500,), -3, 3)})
    tensors = example.tensors(torch.float16)
    assert (tensors["x"].shape, tensors["x"].dtype) == ((3, 4), torch.float16)
    assert (tensors["codes"].shape, tensors["codes"].dtype) == ((500,), torch.int8)
    assert tensors["codes"].unique().tolist() == [-3, -2, -1, 0, 1, 2, 3]
    assert torch.equal(tensors["x"], example.tensors()["x"].half())


def test_require_raises_its_text_unless_the_condition_holds() -> None:
    require(True, "never")
    with pytest.raises(ShapeError, match=r"^this is why$"):
        require(False, "this is why")


def test_evaluate_hands_operands_by_name_and_attributes_to_decompose() -> None:
    x, weight, bias = torch.randn(2, 3), torch.randn(4, 3), torch.randn(4)
    operands = {"bias": bias, "weight": weight, "x": x}  # in any order
    y = evaluate(_op(_scaled), operands, {"scale": 0.5, "steps": 3})
    torch.testing.assert_close(y, x @ weight.t() / 8 + bias)
    torch.testing.assert_close(evaluate(_op(_scaled), {**operands, "bias": None}, {"scale": 1.0}), x @ weight.t())
    assert torch.equal(evaluate(_op(_named), {"x": x}, {"activation": "tanh", "steps": 1}), x.tanh())


def test_evaluate_refuses_operands_that_are_missing_or_misspelled() -> None:
    takes = "scaled_linear takes the operands x, weight, bias (optional)"
    x, weight = torch.randn(2, 3), torch.randn(4, 3)
    cases: list[tuple[dict[str, torch.Tensor | None], str]] = [
        ({"x": x}, "x"),
        ({"x": x, "weight": None}, "x"),
        ({"x": x, "weight": weight, "bais": weight}, "bais, weight, x"),
        ({}, "none"),
    ]
    for operands, given in cases:
        with pytest.raises(InputError) as caught:
            evaluate(_op(_scaled), operands, {"scale": 1.0})
        assert str(caught.value) == f"{takes}; got {given}"
