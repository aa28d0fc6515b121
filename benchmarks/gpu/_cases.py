"""What each op's kernel is held against on a GPU: its formula in float64, and what one would run without the kernel.

Needs torch alone, and shares no code with the kernels or with Regraft's own definitions of the ops.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from _bundle import Library
from torch import Tensor
from torch.nn import functional

Tensors = Mapping[str, Tensor]
Extents = Mapping[str, int]

TOLERANCES = {"float16": 4e-3, "bfloat16": 3e-2, "float32": 2e-5, "tf32": 4e-3}
"""Of a result relative to the largest element of the reference."""


@dataclass(frozen=True)
class Work:
    """What one call must do at least: operations (two a multiply-add) at the rate of a dtype, and bytes moved."""

    operations: float
    rate: str
    bytes: float

    def least_us(self, rates: Mapping[str, float]) -> float:
        """Return the time below which no kernel gets on this card."""
        return max(self.operations / rates[self.rate], self.bytes / rates["bytes"]) * 1e6


@dataclass(frozen=True)
class Case:
    """An op on a GPU.

    Attributes:
        reference: the result in float64.
        unfused: the same in torch's operators, in the kernel's dtype.
        dense: the layer that the op stands for, as one product (cuBLAS); None where there is none.
        work: what one call must do.
        extents: from rows to the extents that are known at a call.
        draw: random operands.
    """

    reference: Callable[[Library, Tensors], Tensor]
    unfused: Callable[[Library, Tensors], Tensor]
    dense: Callable[[Library, Tensors], Callable[[Tensors], Tensor]] | None
    work: Callable[[Library, Extents], Work]
    extents: Callable[[Library, int], dict[str, int]]
    draw: Callable[[Library, Extents, torch.Generator], dict[str, Tensor]]


def rows_only(library: Library, rows: int) -> dict[str, int]:
    """Extents of an op on rows."""
    del library
    return {"rows": rows}


def draw_floats(library: Library, extents: Extents, generator: torch.Generator) -> dict[str, Tensor]:
    """Return operands of a size that keeps sums near one."""
    found: dict[str, Tensor] = {}
    for item in library.arguments:
        if item.role == "in" and item.present:
            shape = item.shape(extents)
            drawn = torch.randn(shape, generator=generator, device=generator.device) / max(1, shape[-1]) ** 0.5
            found[item.name] = drawn.to(item.dtype)
    return found


def moved(library: Library, extents: Extents) -> float:
    """Bytes of everything that a kernel reads or writes once; scratch is its own affair."""
    total = 0
    for item in library.arguments:
        if item.present and item.role != "scratch":
            total += torch.Size(item.shape(extents)).numel() * item.dtype.itemsize
    return float(total)


def exact(tensors: Tensors) -> dict[str, Tensor]:
    """Return the operands in float64."""
    return {name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}


def dense_layer(width: str, outer: str) -> Callable[[Library, Tensors], Callable[[Tensors], Tensor]]:
    """Return what makes the dense layer of the same extents, with a random weight."""

    def make(library: Library, tensors: Tensors) -> Callable[[Tensors], Tensor]:
        x = tensors["x"]
        shape = (library.sizes[outer], library.sizes[width])
        weight = torch.randn(shape, device=x.device, dtype=torch.float32).to(x.dtype)
        return lambda given: functional.linear(given["x"], weight)

    return make


def _lowrank(t: Tensors) -> Tensor:
    y = functional.linear(functional.linear(t["x"], t["down"]), t["up"])
    return y + t["bias"] if "bias" in t else y


def _lowrank_work(library: Library, extents: Extents) -> Work:
    sizes = library.sizes
    products = extents["rows"] * sizes["rank"] * (sizes["in_features"] + sizes["out_features"])
    return Work(2.0 * products, library.dtype, moved(library, extents))


ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "relu": functional.relu,
    "gelu": functional.gelu,
    "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "silu": functional.silu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "identity": lambda x: x,
}


def _mlp(library: Library, t: Tensors) -> Tensor:
    def through(down: str, up: str, x: Tensor) -> Tensor:
        return functional.linear(functional.linear(x, t[down]) if down in t else x, t[up])

    act = ACTIVATIONS[str(library.options["activation"])]
    inner = through("in_down", "in_up", t["x"])
    inner = inner + t["in_bias"] if "in_bias" in t else inner
    if "gate_up" in t:
        gate = through("gate_down", "gate_up", t["x"])
        inner = act(gate + t["gate_bias"] if "gate_bias" in t else gate) * inner
    else:
        inner = act(inner)
    y = functional.linear(inner, t["out_down"])
    y = functional.linear(y, t["out_up"]) if "out_up" in t else y
    for name in ("out_bias", "residual"):
        y = y + t[name] if name in t else y
    return y


def _mlp_work(library: Library, extents: Extents) -> Work:
    """All weights are multiplied once by each row."""
    weights = [item for item in library.arguments if item.present and item.name.endswith(("_up", "_down"))]
    products = extents["rows"] * sum(torch.Size(item.shape(extents)).numel() for item in weights)
    return Work(2.0 * products, library.dtype, moved(library, extents))


def _by_tensors(function: Callable[[Tensors], Tensor]) -> dict[str, Any]:
    return {
        "reference": lambda library, tensors: function(exact(tensors)),
        "unfused": lambda library, tensors: function(tensors),
    }


def _by_library(function: Callable[[Library, Tensors], Tensor]) -> dict[str, Any]:
    return {"reference": lambda library, tensors: function(library, exact(tensors)), "unfused": function}


CASES: Mapping[str, Case] = {
    "lowrank_linear": Case(
        **_by_tensors(_lowrank),
        dense=dense_layer("in_features", "out_features"),
        work=_lowrank_work,
        extents=rows_only,
        draw=draw_floats,
    ),
    "lowrank_mlp": Case(**_by_library(_mlp), dense=None, work=_mlp_work, extents=rows_only, draw=draw_floats),
}
