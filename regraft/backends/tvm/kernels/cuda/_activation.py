"""Activations of a number in single precision, as expressions of a TileLang program."""

import math

import tilelang.language as T

_CUBIC = 0.044715


def activate(x, kind):
    """Return the activation of that name, one of `regraft.graph.activation.FUNCTIONS`."""
    return {"gelu": _gelu, "gelu_tanh": _tanh_gelu, "relu": _relu, "silu": _silu, "tanh": T.tanh, "sigmoid": _sigmoid}[
        kind
    ](x)


def _gelu(x):
    return 0.5 * x * (1.0 + T.erf(x * (1 / math.sqrt(2))))


def _tanh_gelu(x):
    return 0.5 * x * (1.0 + T.tanh(math.sqrt(2 / math.pi) * (x + _CUBIC * x * x * x)))


def _relu(x):
    return T.max(x, T.float32(0))


def _silu(x):
    return x * _sigmoid(x)


def _sigmoid(x):
    return 1.0 / (1.0 + T.exp(-x))
