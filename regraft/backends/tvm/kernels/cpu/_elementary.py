"""Elementary functions of float32 vectors, in multiplications and additions.

LLVM has no vectors of them: it would call the C library for every number. Errors are a few units in the last place of
the result, or for erf 1.5e-7. Sources: Cephes (expf, tanhf); Abramowitz & Stegun 1964, 7.1.26 (erf).
"""

# TVM has no types, so that those of expressions are unknown.
# pyright: reportUnknownLambdaType=false

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from regraft.backends.tvm.kernels.cpu._integer import vector_of
from regraft.backends.tvm.kernels.cpu._ir import T, load, number, registers, spread, store, tirx
from regraft.ops._activation import CUBIC

_LOWEST: Final = -87.3
_HIGHEST: Final = 88.3
_LN2: Final = (0.693359375, -2.12194440e-4)
_EXP: Final = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)
_TANH: Final = (-5.70498872745e-3, 2.06390887954e-2, -5.37397155531e-2, 1.33314422036e-1, -3.33332819422e-1)
_SMALL: Final = 0.625
"""Below it tanh is a polynomial."""
_ERF: Final = (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592)
_ERF_WIDTH: Final = 0.3275911


class Elementary:
    """Functions of vectors of so many numbers."""

    def __init__(self, lanes: int) -> None:
        self._lanes = lanes

    def kept(self, value: Any) -> Any:
        """Return a vector that is computed once, however often it is read."""
        found = registers(self._lanes, "float32")
        store(found, value, [0], self._lanes)
        return load(found, [0], self._lanes)

    def constant(self, value: float) -> Any:
        """Return a vector of one number."""
        return spread(number(value, "float32"), self._lanes)

    def exp(self, x: Any) -> Any:
        """e^x; 0 below -87.3, and e^88.3 above that; NaN of NaN."""
        x = self.kept(x)
        kept = tirx.max(tirx.min(x, self.constant(_HIGHEST)), self.constant(_LOWEST))
        power = self.kept(tirx.nearbyint(kept * self.constant(1 / math.log(2))))
        rest = self.kept(kept - power * self.constant(_LN2[0]) - power * self.constant(_LN2[1]))
        fraction = self._polynomial(_EXP, rest) * rest * rest + rest + self.constant(1)
        ones = spread(number(127, "int32"), self._lanes)
        bits = (tirx.Cast(vector_of("int32", self._lanes), power) + ones) << spread(number(23, "int32"), self._lanes)
        value = fraction * T.reinterpret(vector_of("float32", self._lanes), bits)
        low = self.constant(_LOWEST)
        # Both comparisons are false of what is no number, which stays so.
        otherwise = tirx.Select(x < low, self.constant(0), x)
        return tirx.Select(x >= low, value, otherwise)

    def sigmoid(self, x: Any) -> Any:
        """1 / (1 + e^-x)."""
        return self.constant(1) / (self.constant(1) + self.exp(self.constant(0) - x))

    def tanh(self, x: Any) -> Any:
        """A polynomial near 0, else 1 - 2 / (1 + e^2|x|) with the sign of x."""
        x = self.kept(x)
        square, size = self.kept(x * x), self.kept(self._size(x))
        near = self._polynomial(_TANH, square) * square * x + x
        far = self.kept(self.constant(1) - self.constant(2) / (self.constant(1) + self.exp(size + size)))
        signed = tirx.Select(x < self.constant(0), self.constant(0) - far, far)
        return tirx.Select(size < self.constant(_SMALL), near, signed)

    def erf(self, x: Any) -> Any:
        """1 - t · polynomial(t) · e^-x², with t = 1 / (1 + 0.33 |x|), with the sign of x."""
        x = self.kept(x)
        t = self.kept(self.constant(1) / (self.constant(1) + self.constant(_ERF_WIDTH) * self._size(x)))
        far = self.kept(self.constant(1) - self._polynomial(_ERF, t) * t * self.exp(self.constant(0) - x * x))
        return tirx.Select(x < self.constant(0), self.constant(0) - far, far)

    def activation(self, kind: str) -> Callable[[Any], Any]:
        """Return the activation of that name, one of `regraft.graph.activation.FUNCTIONS`."""
        functions: Mapping[str, Callable[[Any], Any]] = {
            "gelu": self._gelu,
            "gelu_tanh": self._gelu_tanh,
            "relu": lambda x: tirx.max(self.constant(0), x),
            "silu": lambda x: x * self.sigmoid(x),
            "tanh": self.tanh,
            "sigmoid": self.sigmoid,
        }
        return lambda x: functions[kind](self.kept(x))

    def _gelu(self, x: Any) -> Any:
        return x * self.constant(0.5) * (self.constant(1) + self.erf(x * self.constant(math.sqrt(0.5))))

    def _gelu_tanh(self, x: Any) -> Any:
        inner = self.constant(math.sqrt(2 / math.pi)) * (x + self.constant(CUBIC) * x * x * x)
        return x * self.constant(0.5) * (self.constant(1) + self.tanh(inner))

    def _size(self, x: Any) -> Any:
        return tirx.max(x, self.constant(0) - x)

    def _polynomial(self, coefficients: Sequence[float], x: Any) -> Any:
        total = self.constant(coefficients[0])
        for coefficient in coefficients[1:]:
            total = total * x + self.constant(coefficient)
        return total
