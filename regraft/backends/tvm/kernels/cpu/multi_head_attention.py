"""CPU kernel of `multi_head_attention`: heads are read where they lie, split off or not; see `_attention`."""

# TVM has no types, so that those of expressions are unknown.
# pyright: reportUnknownLambdaType=false

from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor

from regraft.backends.tvm.kernels.cpu._attention import Attention, Element, Offsets, Sizes
from regraft.backends.tvm.kernels.cpu._floating import TILES, block_of, default_tiles
from regraft.backends.tvm.kernels.cpu._host import Host
from regraft.backends.tvm.kernels.cpu._ir import Function, by_work, function
from regraft.backends.tvm.kernels.cpu._kernel import CpuKernel, Operands, Plan, Tiles, dense

_OFFSETS: Final = ("mask", "bias")


def plan(given: Operands, tiles: Tiles, host: Host) -> Plan | str:
    """Return a plan, or why the kernel does not fit."""
    found = {name: dtype for name, dtype in given.activations.items() if name != "mask"}
    if set(found.values()) != {torch.float32}:
        return "activations must all be float32"
    counts = {name: int(given.attributes[name]) for name in ("heads", "kv_heads", "split", "causal")}
    scale, rows = float(given.attributes["scale"]), int(given.attributes.get("rows", 0))
    split = bool(counts["split"])
    widths = {name: given.shapes[name][-1] for name in ("q", "k", "v")}
    if None in widths.values():
        return "widths of heads must be known"
    heads, kv_heads = counts["heads"], counts["kv_heads"]
    head = _of(widths["q"], heads if split else 1)
    value = _of(widths["v"], kv_heads if split else 1)
    present = [name for name in _OFFSETS if name in given.activations]
    block = block_of(tiles, host, "float32")

    def write(f: Function) -> None:
        shape = {name: _shape(name, split, heads, kv_heads, width) for name, width in widths.items()}
        q, k, v = (f.parameter(name, shape[name], "float32") for name in ("q", "k", "v"))
        offsets = tuple(_offsets(f, name) for name in present)
        y = f.parameter("y", _shape("q", split, heads, kv_heads, heads * value if split else value), "float32")
        sizes = Sizes(f.symbol("batch"), f.symbol("queries"), f.symbol("keys"), heads, kv_heads, head, value)
        layer = Attention(
            sizes,
            _element(q, split, head),
            _element(k, split, head),
            _element(v, split, value),
            lambda batch, of, row, at: (batch, row, of * value + at) if split else (batch, of, row, at),
            y,
            scale,
            bool(counts["causal"]),
            offsets,
            block,
            tiles["query_chunk"],
            tiles["key_block"],
        )
        products = sizes.batch * sizes.queries * sizes.keys * (heads * (head + value))
        by_work(products, layer.write)

    def arguments(activations: Sequence[Tensor]) -> list[Any]:
        q, k, v, *others = activations
        target = (q.shape[0], heads, q.shape[-2], k.shape[-2])
        return [dense(q), dense(k), dense(v), *(item for other in others for item in _flat(other, target))]

    def seen(activations: Sequence[Tensor], result: Tensor) -> Tensor:
        return result.view(*activations[0].shape[:-1], heads * value if split else value)

    problem = {**counts, "head": head, "value": value, "scale": scale, "offsets": present, "rows": rows}
    return Plan(
        problem, (), lambda: function(write), arguments, _result(heads * value, split, value, rows), seen, in_rows=False
    )


def _of(width: int | None, count: int) -> int:
    assert width is not None
    return width // count


def _result(wide: int, split: bool, value: int, rows: int) -> Any:
    def shape(activations: Sequence[Tensor]) -> Sequence[Any]:
        q = activations[0]
        if rows:
            return (q.shape[0] * q.shape[1], wide)
        return (*q.shape[:-1], wide if split else value)

    return shape


def _shape(name: str, split: bool, heads: int, kv_heads: int, width: int | None) -> tuple[Any, ...]:
    length = "queries" if name == "q" else "keys"
    if split:
        return ("batch", length, width)
    return ("batch", heads if name == "q" else kv_heads, length, width)


def _element(buffer: Any, split: bool, width: int) -> Element:
    if split:
        return lambda batch, head, row, at: buffer[batch, row, head * width + at]
    return lambda batch, head, row, at: buffer[batch, head, row, at]


def _offsets(f: Function, name: str) -> Offsets:
    buffer = f.parameter(name, (f"{name}_size",), "uint8" if name == "mask" else "float32")
    strides = [f.number(f"{name}_{dim}") for dim in ("batch", "head", "query", "key")]
    return Offsets(buffer, (strides[0], strides[1], strides[2], strides[3]))


def _flat(offsets: Tensor, target: Sequence[int]) -> list[Any]:
    """The numbers of a mask, and the strides by which they are broadcast."""
    kept = dense(offsets.view(torch.uint8) if offsets.dtype == torch.bool else offsets)
    return [kept.view(-1), *kept.expand(*target).stride()]


_TILES: Final[Mapping[str, tuple[int, ...]]] = {
    "block_rows": TILES["block_rows"],
    "block_vectors": TILES["block_vectors"],
    "query_chunk": (32, 16, 64, 128),
    "key_block": (128, 64, 256),
}


def _default(host: Host) -> Mapping[str, int]:
    found = default_tiles(host)
    return {
        "block_rows": found["block_rows"],
        "block_vectors": found["block_vectors"],
        "query_chunk": 32,
        "key_block": 128,
    }


kernel: Final = CpuKernel("multi_head_attention", ("q", "k", "v", "mask", "bias"), _TILES, _default, plan)
