"""Activations by name, and GELU spelled out in the forms that runtimes recognize.

gelu        x · (1 + erf(x / √2)) / 2
gelu_tanh   x · (1 + tanh(√(2/π) · (x + 0.044715 · x³))) / 2
silu        x · sigmoid(x)
"""

import math
from collections.abc import Callable, Mapping
from typing import Final, Protocol

from regraft.ops._builder import Builder, V

CUBIC: Final = 0.044715
"""Coefficient of x³ in the approximation of GELU."""


class Elementary(Protocol[V]):
    """The part of a `Builder` that GELU is spelled in."""

    def add(self, a: V, b: V) -> V: ...
    def mul(self, a: V, b: V) -> V: ...
    def div(self, a: V, b: V) -> V: ...
    def erf(self, x: V) -> V: ...
    def tanh(self, x: V) -> V: ...
    def widen(self, x: V) -> V: ...
    def cast_like(self, x: V, like: V) -> V: ...
    def scalar(self, value: float, like: V) -> V: ...


def activate(b: Builder[V], x: V, kind: str) -> V:
    """Apply the activation of that name, which must be one of `regraft.graph.activation.FUNCTIONS`."""
    functions: Mapping[str, Callable[[V], V]] = {
        "gelu": lambda x: b.gelu(x, tanh=False),
        "gelu_tanh": lambda x: b.gelu(x, tanh=True),
        "relu": b.relu,
        "silu": b.silu,
        "tanh": b.tanh,
        "sigmoid": b.sigmoid,
    }
    return functions[kind](x)


def erf_gelu(b: Elementary[V], x: V) -> V:
    """GELU in elementary operations; halved last, the order that ONNX Runtime fuses.

    Erf runs in single precision: ONNX Runtime has no other one.
    """
    erf = b.cast_like(b.erf(b.widen(b.div(x, b.scalar(math.sqrt(2), x)))), x)
    return b.mul(b.mul(x, b.add(erf, b.scalar(1.0, x))), b.scalar(0.5, x))


def tanh_gelu(b: Elementary[V], x: V) -> V:
    """The approximation of GELU in elementary operations, in the order that ONNX Runtime fuses."""
    one = b.scalar(1.0, x)
    bent = b.add(b.mul(b.mul(x, b.scalar(CUBIC, x)), x), one)
    inner = b.mul(b.mul(x, b.scalar(math.sqrt(2 / math.pi), x)), bent)
    return b.mul(b.mul(x, b.scalar(0.5, x)), b.add(b.tanh(inner), one))
