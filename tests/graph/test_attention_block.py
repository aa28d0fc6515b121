"""Finding attention with its projections, in the models of a library and in modules; and why something is none."""

import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import pytest
import torch
from tiny_transformers import (
    HEAD,
    HEADS,
    WIDTH,
    Attention,
    Kind,
    block_graph,
    library_example,
    library_graph,
    mask_of,
    rows,
    seeded,
)
from torch import Tensor, nn
from torch.nn import functional

from regraft.frontends.torch import capture
from regraft.graph import Graph
from regraft.graph.attention_block import AttentionBlock, Part, find_attention_blocks, with_residual


def _one(graph: Graph) -> AttentionBlock:
    blocks, misses = find_attention_blocks(graph)
    assert not misses, misses
    (block,) = blocks
    return block


def _miss(graph: Graph) -> str:
    blocks, misses = find_attention_blocks(graph)
    assert not blocks
    (miss,) = misses
    return miss.reason


def _projected(part: Part, x: Tensor) -> Tensor:
    return part.projection.reference(x)[..., part.start : part.stop]


def _heads(x: Tensor, count: int) -> Tensor:
    return x.reshape(*x.shape[:2], count, -1).transpose(1, 2)


def _reference(block: AttentionBlock, given: dict[str, Tensor]) -> Tensor:
    """What the block says that it computes, in float64."""
    site, x = block.attention, given["x"]
    context = given.get("context", x)
    q, k, v = (
        _heads(_projected(part, tensor), count)
        for part, tensor, count in (
            (block.query, x, site.heads),
            (block.key, context, site.kv_heads),
            (block.value, context, site.kv_heads),
        )
    )
    k, v = (part.repeat_interleave(site.heads // site.kv_heads, dim=1) for part in (k, v))
    scores = site.scale * q @ k.transpose(-1, -2)
    scores = scores + given["bias"].double() if "bias" in given else scores
    scores = scores.masked_fill(~given["mask"], -torch.inf) if "mask" in given else scores
    if site.causal:
        scores = scores.masked_fill(torch.ones(scores.shape[-2:]).triu(1).bool(), -torch.inf)
    y = block.outer.reference((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))
    return y + given["residual"].double() if "residual" in given else y


def _check(graph: Graph, block: AttentionBlock, example: Any) -> None:
    keys = [*block.operands.values(), block.output]
    _, tapped = graph.run(example, taps=keys)
    given = {name: tapped[key] for name, key in block.operands.items()}
    found = tapped[block.output].double()
    torch.testing.assert_close(_reference(block, given).reshape(found.shape), found, rtol=1e-5, atol=1e-5)


LIBRARY = {
    "bert": ("encoder.layer.0.attention.self", "24->4 heads of 6->24", ["x", "mask"]),
    "gpt2": ("h.0.attn", "24->4 heads of 6->24", ["x", "mask"]),
    "vit": ("layers.0.attention", "24->4 heads of 6->24", ["x", "mask"]),
    "t5": ("encoder.block.0.layer.0.SelfAttention", "24->4 heads of 5->24", ["x", "bias"]),
}


@pytest.mark.parametrize(
    ("name", "kind"), [*((name, "fx") for name in LIBRARY), *((name, "onnx") for name in ("bert", "gpt2", "t5"))]
)
def test_models_of_the_library_are_found_as_what_they_compute(name: str, kind: Kind) -> None:
    graph = library_graph(name, kind)
    block = _one(graph)
    site, text, operands = LIBRARY[name]
    assert (block.name, block.describe(), block.shared) == (site, text, False)
    # The exporter of torch turns masks into numbers.
    assert list(block.operands) == (operands if kind == "fx" else ["x", "bias"])
    _check(graph, block, library_example(name))
    wider = with_residual(graph, block)
    assert wider is not None
    assert list(wider.operands) == [*block.operands, "residual"]
    assert set(block.nodes) < set(wider.nodes)
    _check(graph, wider, library_example(name))


@pytest.mark.parametrize("kind", ["fx", "onnx"])
def test_one_projection_for_query_key_and_value_is_read_in_parts(kind: Kind) -> None:
    block = _one(library_graph("gpt2", kind))
    parts = (block.query, block.key, block.value)
    assert [(part.start, part.stop, part.width) for part in parts] == [(0, 24, 24), (24, 48, 24), (48, 72, 24)]
    assert len({part.projection.output.key for part in parts}) == 1
    assert [layer.name for layer in block.projections] == ["h.0.attn.c_attn", "h.0.attn.c_proj"]
    stored = block.key.projection.weight
    torch.testing.assert_close(block.key.weight, stored[24:48], rtol=0, atol=0)
    assert block.bytes == 4 * (24 * 72 + 72 + 24 * 24 + 24)


def test_rotary_positions_between_projection_and_product_are_told() -> None:
    reason = _miss(library_graph("llama"))
    assert reason.startswith("its queries are computed from their projection by add (")
    assert reason.endswith("), such as rotary positions or norms, before the product")


FORMS = [*(("fx", form) for form in ("mask", "causal", "grouped", "cross", "unbiased")), ("onnx", "grouped")]


@pytest.mark.parametrize(("kind", "form"), FORMS)
def test_modules_of_every_form_are_found(kind: Kind, form: str) -> None:
    graph = block_graph(kind, form)
    block = _one(graph)
    assert block.describe() == f"{WIDTH}->{HEADS} heads of {HEAD}->{WIDTH}"
    assert block.attention.kv_heads == (2 if form == "grouped" else HEADS)
    assert block.attention.causal == (form == "causal")
    assert ("context" in block.operands) == (form == "cross")
    assert block.name == "attention"
    assert (block.query.bias is None) == (form == "unbiased")


def test_context_is_an_operand_of_its_own() -> None:
    block = _one(block_graph("fx", "cross"))
    assert dict(block.operands) == {"x": "x", "mask": "mask", "context": "context"}
    assert (block.key.projection.in_features, block.query.projection.in_features) == (11, WIDTH)


# What is none


class Twice(Attention):
    """Keys and values of two tensors."""

    def forward(self, x: Tensor, other: Tensor) -> Tensor:  # type: ignore[override]
        q, k, v = (
            self.heads(layer, tensor, HEADS) for layer, tensor in ((self.query, x), (self.key, other), (self.value, x))
        )
        return self.out(functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Reader(Attention):
    """Something beside attention reads a value inside: queries, keys as heads (a cache), or what attends."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what = what

    def forward(self, x: Tensor, other: Tensor) -> Any:  # type: ignore[override]
        wide = self.query(x)
        q = wide.view(*x.shape[:2], HEADS, HEAD).transpose(1, 2)
        k, v = self.heads(self.key, x, HEADS), self.heads(self.value, x, HEADS)
        merged = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        extra = {"query": wide, "turned": k, "merged": merged}.get(self.what)
        return self.out(merged), k if extra is None else extra.relu()


class Headless(Attention):
    """Nothing linear behind attention."""

    def forward(self, x: Tensor, other: Tensor) -> Tensor:  # type: ignore[override]
        q, k, v = (self.heads(layer, x, HEADS) for layer in (self.query, self.key, self.value))
        return functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2).relu()


class Computed(Attention):
    """Values that no linear layer made."""

    def forward(self, x: Tensor, other: Tensor) -> Tensor:  # type: ignore[override]
        q, k = self.heads(self.query, x, HEADS), self.heads(self.key, x, HEADS)
        v = x.repeat(1, 1, 2)[:, :, : HEADS * HEAD].view(*x.shape[:2], HEADS, HEAD).transpose(1, 2)
        return self.out(functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Side(nn.Module):
    """Modules side by side, which read the same two inputs."""

    def __init__(self, **modules: nn.Module) -> None:
        super().__init__()
        self.of = nn.ModuleDict(modules)

    def forward(self, x: Tensor, other: Tensor) -> Any:
        return {name: module(x, other) for name, module in self.of.items()}


def _side(**modules: nn.Module) -> Graph:
    return capture(seeded(Side(**modules)), (rows(2, 7, WIDTH), rows(2, 7, WIDTH, seed=1)))


@lru_cache(maxsize=1)
def _reasons() -> dict[str, str]:
    readers = {what: Reader(what) for what in ("query", "cache", "turned", "merged")}
    graph = _side(twice=Twice(), headless=Headless(), computed=Computed(), **readers)
    blocks, misses = find_attention_blocks(graph)
    assert not blocks
    return {miss.name.removeprefix("of."): miss.reason for miss in misses}


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("twice", r"its keys and values are projections of two tensors"),
        ("headless", r"what attends \(\w+\) goes into no linear layer"),
        ("computed", r"repeat\w* is no linear layer's result"),
        ("query", r"linear\w* is also used by relu\w*"),
        ("cache", r"transpose\w* is returned by the graph"),
        ("turned", r"transpose\w* is also used by relu\w*"),
        ("merged", r"(view|flatten|reshape)\w* is also used by relu\w*"),
    ],
)
def test_what_cannot_be_taken_together_is_told(name: str, reason: str) -> None:
    assert re.fullmatch(reason, _reasons()[name])


class SharedWeights(nn.Module):
    """Two calls of one attention."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = Attention()

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(self.attention(x))


def test_weights_that_two_calls_share_are_told() -> None:
    blocks, misses = find_attention_blocks(capture(seeded(SharedWeights()), (rows(2, 7, WIDTH),)))
    assert not misses
    assert [(block.name, block.shared) for block in blocks] == [("attention", True), ("attention#2", True)]


# The sum behind it


class Summed(nn.Module):
    """Attention and something behind it."""

    def __init__(self, behind: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.attention, self.behind = Attention(), behind

    def forward(self, x: Tensor, other: Tensor) -> Any:
        return self.behind(self.attention(x), x)


SUMS: dict[str, Callable[[Tensor, Tensor], Any]] = {"first": lambda y, x: y + x, "second": lambda y, x: x + y}
OTHERS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "product": lambda y, x: y * x,
    "scaled": lambda y, x: torch.add(y, x, alpha=2),
    "read_twice": lambda y, x: (y + x, y.relu()),
    "returned": lambda y, x: (y + x, y),
    "doubled": lambda y, x: y + y,
    "broadcast": lambda y, x: y + x[:, :1],
    "no_sum": lambda y, x: y.relu(),
}


@lru_cache(maxsize=1)
def _sums() -> Graph:
    return _side(**{name: Summed(behind) for name, behind in (SUMS | OTHERS).items()})


def _wider(name: str) -> tuple[AttentionBlock, AttentionBlock | None]:
    blocks, _ = find_attention_blocks(_sums())
    block = next(block for block in blocks if block.name == f"of.{name}.attention")
    return block, with_residual(_sums(), block)


@pytest.mark.parametrize("name", SUMS)
def test_the_sum_is_taken_along_from_both_sides(name: str) -> None:
    block, wider = _wider(name)
    assert wider is not None
    assert dict(wider.operands) == {"x": "x", "residual": "x"}
    assert len(wider.nodes) == len(block.nodes) + 1
    _check(_sums(), wider, (rows(2, 7, WIDTH), rows(2, 7, WIDTH, seed=1)))


@pytest.mark.parametrize("name", OTHERS)
def test_anything_else_behind_it_stays_where_it_is(name: str) -> None:
    assert _wider(name)[1] is None


def test_a_mask_of_three_dims_has_heads_in_front() -> None:
    example = (rows(2, 7, WIDTH), mask_of(7, keys=7)[0])
    (block,), _ = find_attention_blocks(capture(seeded(Attention()), example, None))
    assert block.operands["mask"] == "mask"
    assert block.attention.mask_heads == 1
