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


def draw_floats(library: Library, extents: Extents, generator: torch.Generator) -> dict[str, Tensor]:
    """Return operands of a size that keeps sums near one."""
    found: dict[str, Tensor] = {}
    for item in library.arguments:
        if item.role == "in" and item.present:
            shape = item.shape(extents)
            drawn = torch.randn(shape, generator=generator, device=generator.device) / max(1, shape[-1]) ** 0.5
            found[item.name] = drawn.to(item.dtype)
    return found


@dataclass(frozen=True)
class Case:
    """An op on a GPU.

    Attributes:
        reference: the result in float64.
        unfused: the same in torch's operators, in the kernel's dtype.
        work: what one call must do.
        dense: the layer that the op stands for, as one product (cuBLAS); None where there is none.
        extents: from rows to the extents that are known at a call.
        draw: random operands.
    """

    reference: Callable[[Library, Tensors], Tensor]
    unfused: Callable[[Library, Tensors], Tensor]
    work: Callable[[Library, Extents], Work]
    dense: Callable[[Library, Tensors], Callable[[Tensors], Tensor]] | None = None
    extents: Callable[[Library, int], dict[str, int]] = lambda library, rows: {"rows": rows}
    draw: Callable[[Library, Extents, torch.Generator], dict[str, Tensor]] = draw_floats


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


def _quantized(x: Tensor) -> tuple[Tensor, Tensor]:
    """Codes from -128 to 127, one step a row, and the steps."""
    size = torch.maximum(x.amax(-1, keepdim=True), -x.amin(-1, keepdim=True) * (127 / 128))
    size = torch.where(size == 0, torch.ones_like(size), size)
    return torch.round(x * 127 / size).clamp(-128, 127), size / 127


def _int8_outlier(library: Library, t: Tensors) -> Tensor:
    """Columns that stay in floating point are zero for the codes, and multiplied beside them."""
    few = functional.linear(t["x"][:, t["outliers"]], t["outlier_weight"])
    inner = {name: t[name] for name in ("weight", "scale")} | {"x": t["x"] * t["inliers"]}
    return _with_bias(_int8(library, inner) + few, t).to(t["x"].dtype)


def _int8(library: Library, t: Tensors) -> Tensor:
    """Codes are rounded in single precision, as the kernel does it, so that the reference has the same ones."""
    del library
    codes, step = _quantized(t["x"].float())
    if t["scale"].dtype == torch.float64:
        y = functional.linear(codes.double(), t["weight"].double()) * step.double() * t["scale"]
    else:
        y = _integer_product(codes.to(torch.int8), t["weight"]) * step * t["scale"]
    return _with_bias(y, t).to(t["x"].dtype)


def _integer_product(codes: Tensor, weight: Tensor) -> Tensor:
    """torch's int8 product takes more than 16 rows and widths that are multiples of 8."""
    if codes.shape[0] > 16 and codes.shape[1] % 8 == 0 and weight.shape[0] % 8 == 0 and codes.is_cuda:
        return torch._int_mm(codes, weight.t()).float()
    return functional.linear(codes.float(), weight.float())


def _with_bias(y: Tensor, t: Tensors) -> Tensor:
    return y + t["bias"] if "bias" in t else y


def draw_codes(library: Library, extents: Extents, generator: torch.Generator) -> dict[str, Tensor]:
    """Return floats, and integers over the whole range of their type; scales keep sums near one."""
    found = draw_floats(library, extents, generator)
    for item in library.arguments:
        if item.role == "in" and item.present and not item.dtype.is_floating_point:
            low, high = (-127, 128) if item.dtype == torch.int8 else (1, 256)
            shape, device = item.shape(extents), generator.device
            found[item.name] = torch.randint(low, high, shape, generator=generator, device=device).to(item.dtype)
    if "outliers" in found:  # a few columns, spread over x
        inputs, few = library.sizes["in_features"], found["outliers"].numel()
        found["outliers"] = torch.arange(few, device=generator.device) * inputs // few
        found["inliers"] = torch.ones(inputs, dtype=torch.bool, device=generator.device)
        found["inliers"][found["outliers"]] = False
    inputs = library.sizes["in_features"]
    found["scale"] = found["scale"].abs() * (found["scale"].numel() ** 0.5) / (64 * inputs**0.5)
    return found


def _layer_work(library: Library, extents: Extents) -> Work:
    sizes, integer = library.sizes, library.op.startswith("int8") or library.options.get("activations", 0) == 2
    rate = "int8" if integer else library.dtype
    return Work(2.0 * extents["rows"] * sizes["in_features"] * sizes["out_features"], rate, moved(library, extents))


def _shift(library: Library, t: Tensors) -> Tensor:
    """A code is a sign (8) and an exponent e: 64 / 2^e, or zero for 7; lower halves of the bytes first."""
    terms, inputs = int(library.options.get("terms", 1)), library.sizes["in_features"]
    codes = torch.cat([t["codes"] & 15, t["codes"] >> 4], -1).long()
    exponent = codes & 7
    size = torch.where(exponent == 7, torch.zeros_like(exponent), 64 >> exponent)
    values = torch.where(codes >= 8, -size, size)
    if terms == 2:
        first, second = values.chunk(2, -1)
        values = ((first + second + 128) & 255) - 128
    weight = values[:, :inputs]
    if library.options.get("activations", 0) == 2:
        return _int8(library, {**t, "weight": weight.to(torch.int8)})
    y = functional.linear(t["x"], weight.to(t["x"].dtype)) * t["scale"]
    return _with_bias(y, t).to(t["x"].dtype)


def _monarch(library: Library, t: Tensors) -> Tensor:
    """Cut x into runs, multiply each, hand the results on to groups, multiply each; extents are padded with zeros."""
    sizes, x = library.sizes, t["x"]
    rank, groups, runs = sizes["block_rank"], sizes["out_blocks"], sizes["in_blocks"]
    width, height = t["right"].shape[1], t["left"].shape[2]
    padded = functional.pad(x, (0, runs * width - x.shape[1]))
    cut = padded.view(-1, width, runs).mT if library.options.get("in_strided", 0) else padded.view(-1, runs, width)
    inner = torch.einsum("nkp,kpq->nkq", cut, t["right"])
    handed = inner.view(-1, runs, groups, rank).transpose(1, 2).reshape(-1, groups, runs * rank)
    y = torch.einsum("nlq,lqs->nls", handed, t["left"])
    y = y.mT if library.options.get("out_strided", 0) else y
    return _with_bias(y.reshape(-1, groups * height)[:, : sizes["out_features"]], t)


def _monarch_work(library: Library, extents: Extents) -> Work:
    products = sum(torch.Size(i.shape(extents)).numel() for i in library.arguments if i.name in ("right", "left"))
    return Work(2.0 * extents["rows"] * products, library.dtype, moved(library, extents))


def _attention(library: Library, t: Tensors) -> Tensor:
    """Softmax of scores, by torch's own operator in the kernel's dtype and by its two products in float64."""
    split = bool(library.options.get("split", 0))
    q, k, v = (t[name].transpose(1, 2) if split else t[name] for name in ("q", "k", "v"))
    times = library.sizes["heads"] // library.sizes["kv_heads"]
    k, v = (x.repeat_interleave(times, 1) if times > 1 else x for x in (k, v))
    scale = float(library.options.get("scale", 1.0))
    offset = t.get("bias")
    if "mask" in t:
        hidden = torch.zeros((), dtype=q.dtype, device=q.device).masked_fill(~t["mask"], float("-inf"))
        offset = hidden if offset is None else offset + hidden
    causal = bool(library.options.get("causal", 0))
    if q.dtype != torch.float64:
        alone = causal and offset is None
        mask = offset if not causal or alone else _causal(q, k, offset)
        y = functional.scaled_dot_product_attention(q, k, v, mask, scale=scale, is_causal=alone)
    else:
        scores = q @ k.mT * scale
        scores = scores + (_causal(q, k, offset) if causal else 0 if offset is None else offset)
        y = torch.nan_to_num(torch.softmax(scores, -1)) @ v
    return y.transpose(1, 2) if split else y


def _causal(q: Tensor, k: Tensor, offset: Tensor | None) -> Tensor:
    seen = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril()
    hidden = torch.zeros(seen.shape, dtype=q.dtype, device=q.device).masked_fill(~seen, float("-inf"))
    return hidden if offset is None else hidden + offset


def _attention_extents(library: Library, rows: int) -> dict[str, int]:
    """Self-attention of one sequence for each 512 rows; causal or not, as many keys as queries."""
    del library
    batch = max(1, rows // 512)
    return {"batch": batch, "queries": max(1, rows // batch), "keys": max(1, rows // batch)}


def _draw_attention(library: Library, extents: Extents, generator: torch.Generator) -> dict[str, Tensor]:
    """Return scores of a spread of about one, and masks in which the last query of each sequence sees nothing."""
    found = draw_floats(library, extents, generator)
    for name in ("q", "k"):
        found[name] = found[name] * found[name].shape[-1] ** 0.5
    for item in library.arguments:
        if item.present and item.dtype == torch.bool:
            shape = item.shape(extents)
            found[item.name] = torch.rand(shape, generator=generator, device=generator.device) < 0.8
            if shape[2] > 1:
                found[item.name][:, :, -1] = False
    return found


def _attention_work(library: Library, extents: Extents) -> Work:
    sizes = library.sizes
    pairs = extents["batch"] * sizes["heads"] * extents["queries"] * extents["keys"]
    share = 0.5 if library.options.get("causal", 0) else 1.0
    return Work(2.0 * share * pairs * (sizes["head"] + sizes["value"]), library.dtype, moved(library, extents))


def _by_tensors(function: Callable[[Tensors], Tensor]) -> dict[str, Any]:
    return _by_library(lambda library, tensors: function(tensors))


def _by_library(function: Callable[[Library, Tensors], Tensor]) -> dict[str, Any]:
    return {"reference": lambda library, tensors: function(library, exact(tensors)), "unfused": function}


_LAYER = dense_layer("in_features", "out_features")

CASES: Mapping[str, Case] = {
    "lowrank_linear": Case(**_by_tensors(_lowrank), dense=_LAYER, work=_lowrank_work),
    "lowrank_mlp": Case(**_by_library(_mlp), work=_mlp_work),
    "int8_linear": Case(**_by_library(_int8), dense=_LAYER, work=_layer_work, draw=draw_codes),
    "int8_outlier_linear": Case(**_by_library(_int8_outlier), dense=_LAYER, work=_layer_work, draw=draw_codes),
    "shift_linear": Case(**_by_library(_shift), dense=_LAYER, work=_layer_work, draw=draw_codes),
    "monarch_linear": Case(**_by_library(_monarch), dense=_LAYER, work=_monarch_work),
    "multi_head_attention": Case(
        **_by_library(_attention), work=_attention_work, extents=_attention_extents, draw=_draw_attention
    ),
}
