"""Recognizing activation functions, as one operation or spelled out in the ways of models and exporters.

    gelu        x · (1 + erf(x / √2)) / 2
    gelu_tanh   x · (1 + tanh(√(2/π) · (x + 0.044715 · x³))) / 2,   also with x · (1 + 0.044715 · x²) inside
    silu        x · sigmoid(x)

A product is flattened first, so that the order of its factors, and where a constant stands in it, do not matter.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional

from regraft.graph.graph import Graph
from regraft.graph.matcher import source
from regraft.graph.scalars import scalar_operand
from regraft.graph.view import Node, Value

FUNCTIONS: Final[Mapping[str, Callable[[Tensor], Tensor]]] = {
    "gelu": functional.gelu,
    "gelu_tanh": partial(functional.gelu, approximate="tanh"),
    "relu": torch.relu,
    "silu": functional.silu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
}
"""What activations compute, by kind."""

_TOLERANCE: Final[Mapping[str | None, float]] = {"float16": 1e-3, "bfloat16": 1e-2}
"""Relative error of a constant that is stored in a type of few digits; 1e-5 in others."""

_CUBIC: Final = 0.044715


@dataclass(frozen=True)
class Activation:
    """An activation function and where it stands.

    Attributes:
        kind: a key of FUNCTIONS.
        source: what it is applied to.
        nodes: the nodes that compute it, and those looked through.
    """

    kind: str
    source: Value
    nodes: tuple[Node, ...]


@dataclass(frozen=True)
class _Product:
    """coefficient · Π factors; no factor is a product or a copy of something else."""

    coefficient: float
    factors: tuple[Value, ...]
    nodes: tuple[Node, ...]


def recognize_activation(graph: Graph, value: Value) -> Activation | None:
    """Return the activation whose result a value is, or None.

    Args:
        graph: where constants are read from.
        value: looked through copies and dropouts.
    """
    value, passed = source(value)
    node = value.producer
    if node is None or value is not node.outputs[0]:
        return None
    kind = _native_kind(node)
    if kind is not None:
        operand = node.inputs[0]
        return None if operand is None else Activation(kind, operand, (*passed, node))
    if node.op not in ("mul", "div"):
        return None
    found = _spelled_out(graph, _product(graph, value))
    return None if found is None else Activation(found.kind, found.source, (*passed, *found.nodes))


def _native_kind(node: Node) -> str | None:
    present = [value for value in node.inputs if value is not None]
    if len(present) != 1:  # the forms of com.microsoft with a bias
        return None
    if node.op == "gelu":
        return "gelu_tanh" if node.attributes.get("approximate") == "tanh" else "gelu"
    if node.op in ("swish", "com.microsoft.quick_gelu"):
        default = 1.0 if node.op == "swish" else 1.702
        return "silu" if node.attributes.get("alpha", default) == 1.0 else None
    names = {name: name for name in ("relu", "silu", "tanh", "sigmoid")} | {"com.microsoft.fast_gelu": "gelu_tanh"}
    return names.get(node.op)


def _spelled_out(graph: Graph, product: _Product) -> Activation | None:
    for x, other in _pairs(product.factors):
        node = other.producer
        if node is None:
            continue
        if node.op == "sigmoid" and _is(product.coefficient, 1.0, x) and _reads(node, x):
            return Activation("silu", x, (*product.nodes, *_between(node), node))
        bent = _plus_one(graph, other) if _is(product.coefficient, 0.5, x) else None
        inner = None if bent is None else bent[0].producer
        if bent is None or inner is None or inner.op not in _BENT:
            continue
        kind, matches = _BENT[inner.op]
        nodes = matches(graph, inner, x)
        if nodes is not None:
            return Activation(kind, x, (*product.nodes, *bent[1], inner, *nodes))
    return None


def _pairs(factors: tuple[Value, ...]) -> list[tuple[Value, Value]]:
    return [(factors[0], factors[1]), (factors[1], factors[0])] if len(factors) == 2 else []


def _is_erf_argument(graph: Graph, erf: Node, x: Value) -> tuple[Node, ...] | None:
    argument = _argument(graph, erf)
    if argument is None or argument.factors != (x,) or not _is(argument.coefficient, math.sqrt(0.5), x):
        return None
    return argument.nodes


def _is_tanh_argument(graph: Graph, tanh: Node, x: Value) -> tuple[Node, ...] | None:
    argument = _argument(graph, tanh)
    if argument is None or not _is(argument.coefficient, math.sqrt(2 / math.pi), x):
        return None
    if len(argument.factors) == 1:  # x + 0.044715 · x³
        bent = _plus(argument.factors[0], x)
        power = None if bent is None else _power(graph, bent[0], x, 3)
    else:  # x · (1 + 0.044715 · x²)
        others = [factor for factor in argument.factors if factor is not x]
        bent = _plus_one(graph, others[0]) if len(argument.factors) == 2 and len(others) == 1 else None
        power = None if bent is None else _power(graph, bent[0], x, 2)
    return None if bent is None or power is None else (*argument.nodes, *bent[1], *power)


def _plus(value: Value, x: Value) -> tuple[Value, tuple[Node, ...]] | None:
    """The other summand of x, and the nodes from there on."""
    node = value.producer
    operands = [] if node is None or node.op != "add" else [operand for operand in node.inputs if operand is not None]
    if node is None or len(operands) != 2 or node.attributes.get("alpha", 1) != 1:
        return None
    for first, second in (operands, operands[::-1]):
        origin, passed = source(first)
        if origin is x:
            return second, (node, *passed)
    return None


def _plus_one(graph: Graph, value: Value) -> tuple[Value, tuple[Node, ...]] | None:
    """The other summand of 1, and the nodes from there on."""
    node = value.producer
    operands = None if node is None or node.op != "add" else scalar_operand(graph, node)
    if node is None or operands is None or not _is(operands.number, 1.0, value):
        return None
    origin, passed = source(operands.value)
    return origin, (node, *passed)


_BENT: Final = {"erf": ("gelu", _is_erf_argument), "tanh": ("gelu_tanh", _is_tanh_argument)}
"""The two GELUs, by the function inside."""


def _power(graph: Graph, value: Value, x: Value, exponent: int) -> tuple[Node, ...] | None:
    """The nodes of 0.044715 · x^exponent, or None when it is something else."""
    product = _product(graph, value)
    if not _is(product.coefficient, _CUBIC, x) or any(factor is not x for factor in product.factors):
        return None
    return product.nodes if len(product.factors) == exponent else None


def _argument(graph: Graph, node: Node) -> _Product | None:
    operand = node.inputs[0]
    return None if operand is None else _product(graph, operand)


def _product(graph: Graph, value: Value) -> _Product:
    """Flatten a product; whole powers count as products."""
    value, passed = source(value)
    node = value.producer
    split = None if node is None else _SPLITS.get(node.op)
    parts = None if node is None or split is None else split(graph, node)
    if node is None or parts is None:
        return _Product(1.0, (value,), passed)
    coefficient, operands = parts
    products = [_product(graph, operand) for operand in operands]
    return _Product(
        coefficient * math.prod(product.coefficient for product in products),
        tuple(factor for product in products for factor in product.factors),
        tuple(dict.fromkeys((*passed, node, *(inner for product in products for inner in product.nodes)))),
    )


_Parts = tuple[float, list[Value]]


def _split_mul(graph: Graph, node: Node) -> _Parts | None:
    operands = scalar_operand(graph, node)
    if operands is not None:
        return operands.number, [operands.value]
    values = [value for value in node.inputs if value is not None]
    return (1.0, values) if len(values) == 2 else None


def _split_div(graph: Graph, node: Node) -> _Parts | None:
    operands = scalar_operand(graph, node)
    if operands is None or operands.number_first or operands.number == 0:
        return None
    return 1 / operands.number, [operands.value]


def _split_pow(graph: Graph, node: Node) -> _Parts | None:
    operands = scalar_operand(graph, node)
    if operands is None or operands.number_first or operands.number not in (2, 3):
        return None
    return 1.0, [operands.value] * int(operands.number)


_SPLITS: Final[Mapping[str, Callable[[Graph, Node], _Parts | None]]] = {
    "mul": _split_mul,
    "div": _split_div,
    "pow": _split_pow,
}


def _reads(node: Node, x: Value) -> bool:
    operand = node.inputs[0]
    return operand is not None and source(operand)[0] is x


def _between(node: Node) -> tuple[Node, ...]:
    operand = node.inputs[0]
    return () if operand is None else source(operand)[1]


def _is(number: float, wanted: float, like: Value) -> bool:
    return math.isclose(number, wanted, rel_tol=_TOLERANCE.get(like.type.dtype, 1e-5))
