"""Recognizing activation functions: every spelling of models and exporters, and what only looks like one."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from fake_graph import FakeGraph
from hypothesis import given
from hypothesis import strategies as st

from regraft.graph import Value
from regraft.graph.activation import FUNCTIONS, Activation, recognize_activation

ROOT = math.sqrt(2 / math.pi)


class Speller:
    """Writes arithmetic into a fake graph as torch does (numbers are attributes) or as ONNX does (constants)."""

    def __init__(self, style: str, dtype: torch.dtype = torch.float32) -> None:
        self.graph, self.style, self.dtype = FakeGraph(), style, dtype
        self.x = self.graph.input("x", "n", 4, dtype=str(dtype).removeprefix("torch."))
        self.made = 0

    def __call__(self, op: str, *operands: Any, **attributes: Any) -> Value:
        values = [operand for operand in operands if isinstance(operand, Value)]
        numbers = [operand for operand in operands if not isinstance(operand, Value)]
        if numbers and self.style == "torch":
            name = "exponent" if op == "pow" else "other"
            return self.graph.node(op, *values, **{name: numbers[0]}, **attributes)
        return self.graph.node(op, *(self._value(operand) for operand in operands), **attributes)

    def _value(self, operand: Any) -> Value:
        if isinstance(operand, Value):
            return operand
        self.made += 1
        return self.graph.holding(f"c{self.made}", torch.tensor(operand, dtype=self.dtype))


def found(s: Speller, value: Value) -> Activation | None:
    return recognize_activation(s.graph, value)  # type: ignore[arg-type]


# One function a spelling, of the speller and x


def _gelu_halved_first(s: Speller) -> Value:
    return s("mul", s("mul", s.x, 0.5), s("add", s("erf", s("div", s.x, math.sqrt(2))), 1.0))


def _gelu_halved_last(s: Speller) -> Value:
    return s("mul", s("mul", s.x, s("add", s("erf", s("div", s.x, math.sqrt(2))), 1.0)), 0.5)


def _gelu_of_the_exporter(s: Speller) -> Value:
    return s("mul", s.x, s("mul", s("add", s("erf", s("div", s.x, math.sqrt(2))), 1.0), 0.5))


def _gelu_that_multiplies_inside(s: Speller) -> Value:
    return s("div", s("mul", s.x, s("add", s("erf", s("mul", s.x, math.sqrt(0.5))), 1.0)), 2.0)


def _gelu_through_copies(s: Speller) -> Value:
    x = s("clone", s.x)
    return s("dropout", s("mul", s("mul", x, 0.5), s("identity", s("add", s("erf", s("mul", s.x, 2**-0.5)), 1.0))))


def _tanh_of_a_cube(s: Speller) -> Value:
    bent = s("add", s.x, s("mul", s("pow", s.x, 3.0), 0.044715))
    return s("mul", s("mul", s.x, 0.5), s("add", s("tanh", s("mul", bent, ROOT)), 1.0))


def _tanh_of_products(s: Speller) -> Value:
    cube = s("mul", s("mul", s.x, s.x), s.x)
    bent = s("add", s("mul", cube, 0.044715), s.x)
    return s("mul", s("mul", s.x, s("add", s("tanh", s("mul", bent, ROOT)), 1.0)), 0.5)


def _tanh_factored(s: Speller) -> Value:
    bent = s("add", s("mul", s("mul", s.x, 0.044715), s.x), 1.0)
    return s("mul", s("mul", s.x, 0.5), s("add", s("tanh", s("mul", s("mul", s.x, ROOT), bent)), 1.0))


def _silu(s: Speller) -> Value:
    return s("mul", s.x, s("sigmoid", s.x))


def _silu_turned(s: Speller) -> Value:
    return s("mul", s("sigmoid", s("clone", s.x)), s.x)


SPELLED: list[tuple[Callable[[Speller], Value], str]] = [
    (_gelu_halved_first, "gelu"),
    (_gelu_halved_last, "gelu"),
    (_gelu_of_the_exporter, "gelu"),
    (_gelu_that_multiplies_inside, "gelu"),
    (_gelu_through_copies, "gelu"),
    (_tanh_of_a_cube, "gelu_tanh"),
    (_tanh_of_products, "gelu_tanh"),
    (_tanh_factored, "gelu_tanh"),
    (_silu, "silu"),
    (_silu_turned, "silu"),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("style", ["torch", "onnx"])
@pytest.mark.parametrize(("spelling", "kind"), SPELLED)
def test_a_spelling_is_recognized_with_all_of_its_nodes(
    spelling: Callable[[Speller], Value], kind: str, style: str, dtype: torch.dtype
) -> None:
    s = Speller(style, dtype)
    activation = found(s, spelling(s))
    assert activation is not None
    assert (activation.kind, activation.source) == (kind, s.x)
    assert {node.key for node in activation.nodes} == {node.key for node in s.graph.nodes()}


NATIVE = [
    ("gelu", {"approximate": "none"}, "gelu"),
    ("gelu", {}, "gelu"),
    ("gelu", {"approximate": "tanh"}, "gelu_tanh"),
    ("com.microsoft.fast_gelu", {}, "gelu_tanh"),
    ("com.microsoft.quick_gelu", {"alpha": 1.0}, "silu"),
    ("swish", {}, "silu"),
    ("relu", {}, "relu"),
    ("silu", {}, "silu"),
    ("tanh", {}, "tanh"),
    ("sigmoid", {}, "sigmoid"),
]


@pytest.mark.parametrize(("op", "attributes", "kind"), NATIVE)
def test_one_operation_is_recognized_by_its_name(op: str, attributes: dict[str, Any], kind: str) -> None:
    s = Speller("torch")
    activation = found(s, s("clone", s(op, s.x, **attributes)))
    assert activation is not None
    assert (activation.kind, activation.source, len(activation.nodes)) == (kind, s.x, 2)


def _another_number(s: Speller) -> Value:
    return s("mul", s("mul", s.x, 0.5), s("add", s("erf", s("div", s.x, 1.5)), 1.0))


def _not_halved(s: Speller) -> Value:
    return s("mul", s.x, s("add", s("erf", s("div", s.x, math.sqrt(2))), 1.0))


def _another_cube(s: Speller) -> Value:
    bent = s("add", s.x, s("mul", s("pow", s.x, 3.0), 0.0448))
    return s("mul", s("mul", s.x, 0.5), s("add", s("tanh", s("mul", bent, ROOT)), 1.0))


def _quick_gelu(s: Speller) -> Value:
    return s("mul", s.x, s("sigmoid", s("mul", s.x, 1.702)))


def _sigmoid_of_something_else(s: Speller) -> Value:
    return s("mul", s.x, s("sigmoid", s("relu", s.x)))


def _divided(s: Speller) -> Value:
    return s("mul", s("mul", s.x, 0.5), s("add", s("erf", s("mul", s("relu", s.x), math.sqrt(0.5))), 1.0))


def _square(s: Speller) -> Value:
    return s("mul", s.x, s.x)


def _with_a_bias(s: Speller) -> Value:
    return s("gelu", s.x, s.graph.weight("bias", 4))


def _another_function(s: Speller) -> Value:
    return s("elu", s.x)


def _nothing(s: Speller) -> Value:
    return s.x


def _quick_by_name(s: Speller) -> Value:
    return s("com.microsoft.quick_gelu", s.x)


@pytest.mark.parametrize("style", ["torch", "onnx"])
@pytest.mark.parametrize(
    "spelling",
    [
        _another_number,
        _not_halved,
        _another_cube,
        _quick_gelu,
        _sigmoid_of_something_else,
        _divided,
        _square,
        _with_a_bias,
        _quick_by_name,
        _another_function,
        _nothing,
    ],
)
def test_what_only_looks_like_one_is_none(spelling: Callable[[Speller], Value], style: str) -> None:
    s = Speller(style)
    assert found(s, spelling(s)) is None


@given(st.floats(-6, 6))
def test_the_spelled_out_forms_are_what_the_functions_compute(number: float) -> None:
    x = torch.tensor(number, dtype=torch.float64)
    written = {
        "gelu": 0.5 * x * (1 + torch.erf(x / math.sqrt(2))),
        "gelu_tanh": 0.5 * x * (1 + torch.tanh(ROOT * (x + 0.044715 * x**3))),
        "silu": x * torch.sigmoid(x),
        "relu": x.clamp_min(0),
    }
    for kind, value in written.items():
        torch.testing.assert_close(FUNCTIONS[kind](x), value, rtol=1e-10, atol=1e-12)
