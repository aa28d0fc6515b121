"""The op lowrank_attention: what it computes, written out head by head; what it refuses, with the texts."""

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from regraft.errors import ShapeError
from regraft.graph.types import TensorType, type_of
from regraft.ops import evaluate, get_op

OP = get_op("lowrank_attention")
OUT = 6
OWNER: dict[str, dict[str, str]] = {"none": {}, "kv": {"value": "key"}, "qkv": {"key": "query", "value": "query"}}
"""Whose first factor a projection reads that has none of its own."""


@dataclass
class Case:
    """Operands, and the counts of heads, kv heads and blocks."""

    tensors: dict[str, Tensor]
    heads: int
    kv_heads: int
    blocks: int
    causal: int = 0
    scale: float = 0.7
    shared: str = "none"
    bias_inside: int = 0
    attributes: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        names = ("heads", "kv_heads", "blocks", "causal", "scale", "shared", "bias_inside")
        self.attributes = {name: getattr(self, name) for name in names}


def _randn(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Every combination of absent and present operands that the op takes."""
    blocks, per_block, group = (draw(st.integers(1, 3)) for _ in range(3))
    kv_heads = blocks * per_block
    heads = kv_heads * group
    batch, queries, keys, width, inner, head, wide = (draw(st.integers(1, 5)) for _ in range(7))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    crossed = draw(st.booleans())
    keys, inner = (keys, inner) if crossed else (queries, width)
    shared = draw(st.sampled_from(("none", "kv") if crossed else ("none", "kv", "qkv")))
    tensors = {"x": _randn(generator, batch, queries, width)}
    if crossed:
        tensors["context"] = _randn(generator, batch, keys, inner)
    for name, extent, count in (
        ("query", width, heads * head),
        ("key", inner, kv_heads * head),
        ("value", inner, kv_heads * wide),
    ):
        if name in OWNER[shared]:
            tensors[name] = _randn(generator, count, len(tensors[f"{OWNER[shared][name]}_down"]))
            continue
        rank = draw(st.integers(int(name in OWNER[shared].values()), 3))
        tensors[name] = _randn(generator, count, rank or extent)
        if rank:
            tensors[f"{name}_down"] = _randn(generator, rank, extent)
    rank = draw(st.integers(0, 3))
    tensors["out"] = _randn(generator, rank or OUT, heads * wide)
    if rank:
        tensors["out_up"] = _randn(generator, OUT, rank)
    for name, shape in (
        ("query_bias", (heads * head,)),
        ("value_bias", (OUT,)),
        ("out_bias", (OUT,)),
        ("residual", (batch, queries, OUT)),
    ):
        if draw(st.booleans()):
            tensors[name] = _randn(generator, *shape)
    inside = draw(st.booleans())  # then masks may be several, and of each head where there is one block
    if inside and "value_bias" in tensors:
        tensors["value_bias"] = _randn(generator, kv_heads * wide)
    hiding = draw(st.sets(st.sampled_from(["mask", "bias", "causal"]), max_size=3 if inside else 1))
    for name in hiding & {"mask", "bias"}:
        own = draw(st.sampled_from([1, heads])) if inside and blocks == 1 else 1
        hidden = torch.rand(batch, own, draw(st.sampled_from([1, queries])), keys, generator=generator) < 0.4
        tensors[name] = ~hidden if name == "mask" else _randn(generator, *hidden.shape).masked_fill(hidden, -torch.inf)
    return Case(tensors, heads, kv_heads, blocks, int("causal" in hiding), shared=shared, bias_inside=int(inside))


def _written_out(case: Case) -> Tensor:
    """The formula, one head of one sequence after the other."""
    t, x = case.tensors, case.tensors["x"]
    context = t.get("context", x)
    downs = {name: f"{OWNER[case.shared].get(name, name)}_down" for name in ("query", "key", "value")}
    weights = {name: t[name] @ t[down] if down in t else t[name] for name, down in downs.items()}
    out = t["out_up"] @ t["out"] if "out_up" in t else t["out"]
    head, wide = weights["query"].shape[0] // case.heads, weights["value"].shape[0] // case.kv_heads
    q = x @ weights["query"].t() + t.get("query_bias", torch.zeros(1).double())
    k, v = context @ weights["key"].t(), context @ weights["value"].t()
    v = v + t.get("value_bias", torch.zeros(1).double()) if case.bias_inside else v
    y = torch.zeros(*x.shape[:2], OUT).double()
    for b in range(x.shape[0]):
        for h in range(case.heads):
            g = h // (case.heads // case.kv_heads)
            at, of = slice(h * head, (h + 1) * head), slice(g * head, (g + 1) * head)
            scores = case.scale * q[b, :, at] @ k[b, :, of].t()
            scores = _hidden(case, scores, b, h)
            probabilities = scores.softmax(-1).nan_to_num(0.0)
            y[b] += probabilities @ v[b, :, g * wide : (g + 1) * wide] @ out[:, h * wide : (h + 1) * wide].t()
        if "value_bias" in t and not case.bias_inside:
            sees = _hidden(case, torch.zeros(x.shape[1], context.shape[1]).double(), b, 0).isfinite().any(-1)
            y[b] += sees[:, None].double() * t["value_bias"]
    return y + t.get("out_bias", torch.zeros(1).double()) + t.get("residual", torch.zeros(1).double())


def _hidden(case: Case, scores: Tensor, b: int, h: int) -> Tensor:
    if "bias" in case.tensors:
        bias = case.tensors["bias"][b]
        scores = scores + bias[h % len(bias)]
    if "mask" in case.tensors:
        mask = case.tensors["mask"][b]
        scores = scores.masked_fill(~mask[h % len(mask)], -torch.inf)
    later = torch.ones(scores.shape).triu(1).bool()
    return scores.masked_fill(later, -torch.inf) if case.causal else scores


@settings(deadline=None, max_examples=150)
@given(cases())
def test_it_is_the_formula_head_by_head(case: Case) -> None:
    found = evaluate(OP, case.tensors, case.attributes)
    torch.testing.assert_close(found, _written_out(case), rtol=1e-10, atol=1e-10)
    types = {name: type_of(tensor) for name, tensor in case.tensors.items()}
    assert OP.infer(**types, **case.attributes) == type_of(found)


def _types(**more: tuple[int, ...]) -> dict[str, TensorType]:
    shapes: dict[str, tuple[int, ...]] = {
        "x": (2, 5, 7),
        "query": (8, 7),
        "key": (8, 7),
        "value": (8, 7),
        "out": (6, 8),
    }
    return {name: TensorType("bool" if name == "mask" else "float32", shape) for name, shape in (shapes | more).items()}


_HIDING = "lowrank_attention: value_bias needs keys hidden by one of them alone; got "
_OF_HEADS = "of each head needs one block and no value_bias outside; got "


@pytest.mark.parametrize(
    ("more", "attributes", "text"),
    [
        ({"value_bias": (6,), "mask": (2, 1, 5, 5), "bias": (2, 1, 5, 5)}, {}, f"{_HIDING}mask and bias"),
        ({"value_bias": (6,), "mask": (2, 1, 1, 5)}, {"causal": 1}, f"{_HIDING}mask and causal"),
        ({"value_bias": (6,), "bias": (2, 1, 1, 5)}, {"causal": 1}, f"{_HIDING}bias and causal"),
        (
            {"value_bias": (6,), "mask": (2, 4, 5, 5)},
            {"blocks": 1},
            f"lowrank_attention: a mask {_OF_HEADS}bool[2, 4, 5, 5]",
        ),
        ({"bias": (2, 4, 5, 5)}, {}, f"lowrank_attention: a bias {_OF_HEADS}float32[2, 4, 5, 5]"),
        ({"mask": (5, 5)}, {}, "lowrank_attention: mask must have 4 dims; got bool[5, 5]"),
        ({}, {"blocks": 3}, "lowrank_attention: blocks must divide the 4 key and value heads; got 3"),
        ({}, {"heads": 3}, "lowrank_attention: heads must be a multiple of kv_heads; got 3 and 4"),
        ({"query": (10, 7)}, {}, "lowrank_attention: query must be a multiple of 4 heads wide; got float32[10, 7]"),
        ({"query": (12, 7)}, {}, "lowrank_attention: query and key must have heads of one width; got 12/4 and 8/4"),
        ({"out": (6, 12)}, {}, "lowrank_attention: value and out must have heads of one width; got 8/4 and 12/4"),
        ({"key": (8, 3)}, {}, "lowrank_attention: key takes 3 features; got float32[2, 5, 7]"),
        ({"key_down": (2, 7)}, {}, "lowrank_attention: ranks differ: key_down 2, key 7"),
        ({"out_up": (6, 3)}, {}, "lowrank_attention: ranks differ: out 6, out_up 3"),
        ({"query_bias": (6,)}, {}, "lowrank_attention: query_bias must be [8]; got float32[6]"),
        ({"value_bias": (6,)}, {"bias_inside": 1}, "lowrank_attention: value_bias must be [8]; got float32[6]"),
        ({"value_bias": (8,)}, {}, "lowrank_attention: value_bias must be [6]; got float32[8]"),
        ({"out_bias": (8,)}, {}, "lowrank_attention: out_bias must be [6]; got float32[8]"),
        ({}, {"shared": "all"}, "lowrank_attention: shared must be none, kv or qkv; got all"),
        ({}, {"shared": "qkv"}, "lowrank_attention: shared=qkv needs query_down and no key_down"),
        (
            {"key_down": (7, 7), "value_down": (7, 7)},
            {"shared": "kv"},
            "lowrank_attention: shared=kv needs key_down and no value_down",
        ),
        (
            {"query_down": (7, 7), "context": (2, 4, 7)},
            {"shared": "qkv"},
            "lowrank_attention: shared=qkv needs keys and values of x; got context float32[2, 4, 7]",
        ),
        (
            {"key_down": (3, 7), "key": (8, 3)},
            {"shared": "kv"},
            "lowrank_attention: ranks differ: value_down 3, value 7",
        ),
        ({"residual": (2, 5, 7)}, {}, "lowrank_attention: residual must be float32[2, 5, 6]; got float32[2, 5, 7]"),
    ],
)
def test_operands_that_do_not_fit_are_refused(
    more: dict[str, tuple[int, ...]], attributes: dict[str, int], text: str
) -> None:
    counts = {"heads": 4, "kv_heads": 4, "scale": 0.5, "causal": 0, "blocks": 2} | attributes
    with pytest.raises(ShapeError) as refused:
        OP.infer(**_types(**more), **counts)
    assert str(refused.value) == text


def test_multiply_adds_and_buffers_are_those_of_all_products() -> None:
    types = _types(query_down=(3, 7), query=(8, 3), out_up=(9, 6))
    cost = OP.cost(**types, heads=4, kv_heads=4, scale=0.5, causal=0, blocks=2)
    weights = 3 * 7 + 8 * 3 + 2 * 8 * 7 + 6 * 8 + 9 * 6
    assert cost.macs == 2 * 5 * weights + 2 * 5 * 5 * (8 + 8)
    assert cost.transient_bytes == 4 * 2 * 5 * 4  # queries of two heads
    first, group, total = 3, 4 * 4, 6  # P_q; q, k, v and what they give; the sum
    assert cost.inner_bytes == 4 * 2 * 5 * (first + group + total)


def test_a_first_factor_that_all_read_counts_once() -> None:
    down, weights = (3, 7), dict.fromkeys(("query", "key", "value"), (8, 3))
    shared = OP.cost(
        **_types(query_down=down, **weights), heads=4, kv_heads=4, scale=0.5, causal=0, blocks=2, shared="qkv"
    )
    downs = {f"{name}_down": down for name in weights}
    apart = OP.cost(**_types(**downs, **weights), heads=4, kv_heads=4, scale=0.5, causal=0, blocks=2)
    assert apart.macs - shared.macs == 2 * (2 * 5) * 3 * 7
    assert apart.inner_bytes - shared.inner_bytes == 2 * 4 * (2 * 5) * 3
