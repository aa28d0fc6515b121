"""Ops that are computed by several kernels: `lowrank_attention`, and on a GPU `int8_topk_linear`."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import functional

from regraft.backends.tvm._maker import Made, Maker, Varying
from regraft.backends.tvm._operator import register
from regraft.ops import TorchBuilder, get_op

Function = Callable[[Sequence[Tensor], Sequence[Tensor]], Tensor]
"""(activations, packed) -> the result, in torch operators and calls of kernels; can be traced."""
_Layer = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class ComposedCode:
    """What the key of a composed op names.

    Attributes:
        function: computes it.
        width: last extent of the result, whose others are those of the first activation.
    """

    function: Function
    width: int

    def run(self, activations: Sequence[Tensor], packed: Sequence[Tensor]) -> Tensor:
        """Return the result."""
        empty = self.result_like(activations)
        return self.function(activations, packed) if empty.numel() else empty

    def result_like(self, activations: Sequence[Tensor]) -> Tensor:
        """Return an empty tensor of the type of the result."""
        return activations[0].new_empty((*activations[0].shape[:-1], self.width))


@dataclass(frozen=True, eq=False)
class Composed:
    """Kernels that together compute an op, with the weights of a layer."""

    key: str
    packed: tuple[Tensor, ...]
    function: Function

    def __call__(self, *activations: Tensor) -> Tensor:
        """Return the result of the op."""
        return self.function(activations, self.packed)


@dataclass(frozen=True)
class Composition:
    """How an op is composed.

    Attributes:
        activations: operands that may vary.
        make: (constants, varying, attributes, maker) -> the kernels, or why there are none.
    """

    activations: tuple[str, ...]
    make: Callable[[Mapping[str, Tensor], Mapping[str, Varying], Mapping[str, Any], Maker], Composed | str]


@dataclass
class _Parts:
    """Kernels while they are collected: their weights one behind the other, and the keys of their code."""

    maker: Maker
    packed: list[Tensor]
    keys: list[str]

    def add(self, made: Made) -> tuple[str, int, int]:
        """Return key, and from where to where its weights are."""
        start = len(self.packed)
        self.packed += made.packed
        self.keys.append(made.key)
        return made.key, start, len(self.packed)

    def keep(self, tensor: Tensor) -> int:
        """Return the place of a tensor that no kernel packs."""
        self.packed.append(tensor.detach().contiguous())
        return len(self.packed) - 1

    def finished(self, op: str, function: Function, width: int, described: Mapping[str, Any]) -> Composed:
        """Return the whole, its code registered."""
        key = json.dumps({"composed": op, "kernels": self.keys, **described}, sort_keys=True)
        register(key, ComposedCode(function, width))
        return Composed(key, tuple(self.packed), function)


@dataclass(frozen=True)
class _Slot:
    """A linear layer: a kernel, or torch's own product (key None), and where its weights are."""

    key: str | None
    start: int
    stop: int

    def layer(self, packed: Sequence[Tensor]) -> _Layer:
        weights = list(packed[self.start : self.stop])
        if self.key is None:
            return lambda x: functional.linear(x, *weights)
        key = self.key
        return lambda x: torch.ops.regraft_kernels.run([x], weights, key)


class _KernelBuilder(TorchBuilder):
    """The meaning of an op, its weights layers that run on kernels, attention a kernel, too."""

    def __init__(self, attend: Callable[[Sequence[Tensor]], Tensor]) -> None:
        self._attend = attend

    def split(self, x: Any, axis: int, count: int) -> Sequence[Any]:
        """The layers of a weight that was cut before."""
        return x if isinstance(x, list) else super().split(x, axis, count)

    def linear(self, x: Tensor, weight: Any) -> Tensor:
        return weight(x)

    def linear_after(self, x: Tensor, weight: Any, bias: Tensor | None, earlier: Tensor | None) -> Tensor:
        del earlier
        assert bias is None, "layers have their bias inside"
        return weight(x)

    def accumulate(self, total: Tensor, x: Tensor, weight: Any) -> Tensor:
        return self.add_to(total, weight(x))

    def attention(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, bias: Tensor | None, **described: Any
    ) -> Tensor:
        del described  # those that the kernel was made for
        return self._attend([x for x in (q, k, v, mask, bias) if x is not None])


_CUT: Final = {"query": 0, "key": 0, "value": 0, "out": 1}
"""Weights that are cut by groups of heads, and the axis."""


def _lowrank_attention(
    constants: Mapping[str, Tensor], varying: Mapping[str, Varying], attributes: Mapping[str, Any], maker: Maker
) -> Composed | str:
    """Projections are dense products of each group of heads, attention is `multi_head_attention`."""
    op = get_op("lowrank_attention")
    parts, blocks = _Parts(maker, [], []), int(attributes["blocks"])
    x = varying["x"]
    biases = {"query": constants.get("query_bias")}
    if attributes.get("bias_inside", 0):
        biases["value"] = constants.get("value_bias")
    layers: dict[str, list[_Slot]] = {}
    for name in op.linear_weights:
        if name in constants:
            found = _layers(parts, constants[name], biases.get(name), _CUT.get(name), blocks, x)
            if isinstance(found, str):
                return found
            layers[name] = found
    attend = _attention_of_group(constants, varying, attributes, maker)
    if isinstance(attend, str):
        return attend
    parts.keys.append(attend.key)
    fused = [*op.linear_weights, *(f"{name}_bias" for name in biases)]
    kept = {name: parts.keep(tensor) for name, tensor in constants.items() if name not in fused}
    order, given = tuple(varying), dict(attributes)

    def function(activations: Sequence[Tensor], packed: Sequence[Tensor]) -> Tensor:
        operands: dict[str, Any] = dict(zip(order, activations, strict=True))
        operands |= {name: packed[place] for name, place in kept.items()}
        for name, slots in layers.items():
            made = [slot.layer(packed) for slot in slots]
            operands[name] = made if name in _CUT else made[0]
        builder = _KernelBuilder(lambda tensors: torch.ops.regraft_kernels.run(tensors, [], attend.key))
        return op.decompose(builder, **operands, **given)

    width = constants["out_up" if "out_up" in constants else "out"].shape[0]
    return parts.finished(op.name, function, width, {"attributes": given, "operands": [*order, *constants]})


def _layers(
    parts: _Parts, weight: Tensor, bias: Tensor | None, axis: int | None, blocks: int, x: Varying
) -> list[_Slot] | str:
    """The layers of a weight, cut by groups where it is."""
    count = 1 if axis is None else blocks
    weights = torch.chunk(weight, count, dim=axis or 0)
    offsets = [None] * count if bias is None else torch.chunk(bias, count)
    slots: list[_Slot] = []
    for part, offset in zip(weights, offsets, strict=True):
        given = {"weight": part} | ({} if offset is None else {"bias": offset})
        if not parts.maker.dense:
            places = [parts.keep(tensor) for tensor in given.values()]
            parts.keys.append(f"linear{list(part.shape)}")
            slots.append(_Slot(None, places[0], places[-1] + 1))
            continue
        made = parts.maker.make("linear", given, {"x": x.with_width(part.shape[1])}, {})
        if isinstance(made, str):
            return made
        slots.append(_Slot(*parts.add(made)))
    return slots


def _attention_of_group(
    constants: Mapping[str, Tensor], varying: Mapping[str, Varying], attributes: Mapping[str, Any], maker: Maker
) -> Made | str:
    blocks, x = int(attributes["blocks"]), varying["x"]
    other = varying.get("context", x)
    given = {"q": x.with_width(constants["query"].shape[0] // blocks)}
    given |= {
        name: other.with_width(constants[long].shape[0] // blocks) for name, long in (("k", "key"), ("v", "value"))
    }
    given |= {name: varying[name] for name in ("mask", "bias") if name in varying}
    counts = {name: int(attributes[name]) // blocks for name in ("heads", "kv_heads")}
    described = {**counts, "split": 1, "scale": attributes["scale"], "causal": attributes["causal"]}
    return maker.make("multi_head_attention", {}, given, described)


def _int8_topk_linear(
    constants: Mapping[str, Tensor], varying: Mapping[str, Varying], attributes: Mapping[str, Any], maker: Maker
) -> Composed | str:
    """The columns are found by torch's operators; the product is that of `int8_outlier_linear`."""
    if maker.may_vary("int8_outlier_linear") is not None:
        return "its columns are found in each call, and packed weights cannot be read by column"
    x, weight = varying["x"], constants["weight"]
    columns, threshold = int(attributes["columns"]), float(attributes["threshold"])
    outer, inner = weight.shape
    found = {
        "inliers": Varying(torch.bool, (inner,), (inner,)),
        "outliers": Varying(torch.int64, (columns,), (columns,)),
        "outlier_weight": Varying(x.dtype, (outer, columns), (outer, columns)),
    }
    made = maker.make("int8_outlier_linear", constants, {"x": x, **found}, {"per_row": attributes["per_row"]})
    if isinstance(made, str):
        return made
    parts = _Parts(maker, [], [])
    key, start, stop = parts.add(made)
    place_of = {name: place for place, name in enumerate(constants)}  # kernels for a GPU pack them in order

    def function(activations: Sequence[Tensor], packed: Sequence[Tensor]) -> Tensor:
        rows = activations[0]
        weight, scale = packed[place_of["weight"]], packed[place_of["scale"]]
        sizes = rows.reshape(-1, inner).abs().amax(0)
        peaks, places = torch.topk(sizes, columns)
        reached = peaks >= threshold
        kept = torch.ones_like(sizes).scatter(0, places, 1 - reached.to(sizes.dtype))
        few = weight.index_select(1, places).to(scale.dtype) * scale[:, None] * reached
        given = [rows, kept > 0, places, few.to(rows.dtype)]
        return torch.ops.regraft_kernels.run(given, list(packed[start:stop]), key)

    return parts.finished("int8_topk_linear", function, outer, {"columns": columns, "threshold": threshold})


COMPOSITIONS: Final[Mapping[str, Composition]] = {
    "lowrank_attention": Composition(("x", "context", "mask", "bias", "residual"), _lowrank_attention),
    "int8_topk_linear": Composition(("x",), _int8_topk_linear),
}
"""By the name of the op."""
