"""flash-svd on layers of query, key and value at once: their one first factor stays one, and nothing is lost."""

from functools import lru_cache
from typing import Any

import pytest
import torch
from tiny_transformers import (
    HEAD,
    HEADS,
    WIDTH,
    Example,
    Kind,
    library_example,
    library_graph,
    mask_of,
    rows,
    seeded,
)
from torch import Tensor, nn
from torch.nn import functional

from regraft.backends.onnxruntime._from_torch import to_onnx
from regraft.frontends.torch import capture
from regraft.graph import Graph
from regraft.ledger import Ledger
from regraft.ops import cost
from regraft.passes import Settings, resolve_passes, run_passes

FULL = HEADS * HEAD


def _run(graph: Graph, passes: str, example: Example) -> tuple[Graph, Ledger]:
    return run_passes(graph, resolve_passes(passes), Settings(probes=[example], strict=False))


def _apart(x: Tensor, heads: int) -> Tensor:
    return x.view(*x.shape[:2], heads, HEAD).transpose(1, 2)


def _repeated(x: Tensor) -> Tensor:
    batch, few, keys, _ = x.shape
    if few == HEADS:
        return x
    return x[:, :, None].expand(batch, few, HEADS // few, keys, HEAD).reshape(batch, HEADS, keys, HEAD)


class Merged(nn.Module):
    """One layer of query, key and value, cut in three; grouped heads or not."""

    def __init__(self, kv_heads: int = HEADS, *, bias: bool = True) -> None:
        super().__init__()
        self.widths = (FULL, kv_heads * HEAD, kv_heads * HEAD)
        self.qkv, self.out = nn.Linear(WIDTH, sum(self.widths), bias=bias), nn.Linear(FULL, WIDTH)

    def cut(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = (_apart(part, part.shape[-1] // HEAD) for part in self.qkv(x).split(self.widths, -1))
        return q, _repeated(k), _repeated(v)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        y = functional.scaled_dot_product_attention(*self.cut(x), attn_mask=mask)
        return self.out(y.transpose(1, 2).reshape(*x.shape[:2], FULL))


class Sliced(Merged):
    """Its parts are slices."""

    def cut(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        wide = self.qkv(x)
        parts = (wide[..., :FULL], wide[..., FULL:-FULL], wide[..., -FULL:])
        q, k, v = (_apart(part, HEADS) for part in parts)
        return q, k, v


class Stacked(Merged):
    """Its parts stand in a dim of their own, as in vision transformers."""

    def cut(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = self.qkv(x).reshape(*x.shape[:2], 3, HEADS, HEAD).permute(2, 0, 3, 1, 4).unbind(0)
        return q, k, v


class Indexed(Merged):
    """As `Stacked`, by indices."""

    def cut(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        wide = self.qkv(x).reshape(*x.shape[:2], 3, HEADS, HEAD).permute(2, 0, 3, 1, 4)
        return wide[0], wide[1], wide[-1]


class Crossed(nn.Module):
    """A layer of queries, and one of keys and values."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.kv, self.out = nn.Linear(WIDTH, FULL), nn.Linear(11, 2 * FULL), nn.Linear(FULL, WIDTH)

    def forward(self, x: Tensor, mask: Tensor, context: Tensor) -> Tensor:
        q, k, v = (_apart(part, HEADS) for part in (self.query(x), *self.kv(context).chunk(2, -1)))
        y = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.out(y.transpose(1, 2).reshape(*x.shape[:2], FULL))


class QueryKey(nn.Module):
    """A layer of queries and keys, and one of values: a pair that the op has no shared factor for."""

    def __init__(self) -> None:
        super().__init__()
        self.qk, self.value, self.out = nn.Linear(WIDTH, 2 * FULL), nn.Linear(WIDTH, FULL), nn.Linear(FULL, WIDTH)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        q, k, v = (_apart(part, HEADS) for part in (*self.qk(x).chunk(2, -1), self.value(x)))
        y = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.out(y.transpose(1, 2).reshape(*x.shape[:2], FULL))


MODELS: dict[str, Any] = {
    "merged": Merged,
    "unbiased": lambda: Merged(bias=False),
    "grouped": lambda: Merged(2),
    "sliced": Sliced,
    "stacked": Stacked,
    "indexed": Indexed,
    "crossed": Crossed,
    "query and key": QueryKey,
}


def _example(name: str, batch: int = 2, queries: int = 7, dtype: torch.dtype = torch.float32) -> Example:
    keys = queries + 2 if name == "crossed" else queries
    mask = mask_of(*[max(0, keys - 3 * place) for place in range(batch)], keys=keys)
    x = rows(batch, queries, WIDTH, dtype=dtype)
    return (x, mask, rows(batch, keys, 11, seed=1, dtype=dtype)) if name == "crossed" else (x, mask)


@lru_cache(maxsize=16)
def _graph(name: str, kind: Kind = "fx", dtype: torch.dtype = torch.float32) -> Graph:
    fx = capture(seeded(MODELS[name](), dtype), _example(name, dtype=dtype))
    return fx if kind == "fx" else to_onnx(fx, 18)


def _shared(graph: Graph) -> list[Any]:
    return [node.attributes["shared"] for node in graph.nodes() if node.op == "lowrank_attention"]


def _same(after: Graph, before: Graph, example: Example, tolerance: float) -> None:
    (wanted,), (found,) = (graph.run(example)[0][:1] for graph in (before, after))
    torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("keep", [0.3, 0.8])
@pytest.mark.parametrize("name", ["merged", "unbiased", "grouped", "sliced", "stacked", "indexed", "crossed"])
def test_the_one_first_factor_stays_one_and_the_function_stays(name: str, keep: float) -> None:
    dtype = torch.float64
    example = _example(name, dtype=dtype)
    before, _ = _run(_graph(name, "fx", dtype), f"low-rank{{keep={keep},heads=true}}", example)
    after, ledger = _run(before, "flash-svd", example)
    (entry,) = ledger
    assert entry.status == "rewritten"
    assert entry.announced_error < 1e-12
    assert _shared(after) == ["kv" if name == "crossed" else "qkv"]
    for batch, queries in ((2, 7), (3, 12), (1, 1)):
        _same(after, before, _example(name, batch, queries, dtype), 1e-12)


@pytest.mark.parametrize("name", ["merged", "grouped", "sliced", "stacked", "indexed", "crossed"])
def test_it_stays_in_onnx(name: str) -> None:
    before, _ = _run(_graph(name, "onnx"), "low-rank{keep=0.6,heads=true}", _example(name))
    after, ledger = _run(before, "flash-svd", _example(name))
    assert [entry.status for entry in ledger] == ["rewritten"]
    for batch, queries in ((2, 7), (3, 12), (1, 1)):
        _same(after, before, _example(name, batch, queries), 1e-5)


@pytest.mark.parametrize("kind", ["fx", "onnx"])
def test_gpt2_takes_no_more_multiply_adds_than_its_factors(kind: Kind) -> None:
    example = library_example("gpt2")
    before, _ = _run(library_graph("gpt2", kind), "low-rank{keep=0.6,heads=true}", example)
    after, ledger = _run(before, "flash-svd", example)
    assert [(entry.site, entry.status) for entry in ledger] == [("h.0.attn", "rewritten"), ("h.0.mlp", "rewritten")]
    assert ledger.entries[0].after == "factors kept, heads of 6, 1 group"
    for given in (example, library_example("gpt2", 3, 10, seed=1), library_example("gpt2", 1, 1, seed=2)):
        _same(after, before, given, 1e-5)


def test_a_factor_below_the_head_size_narrows_the_heads_behind_it() -> None:
    dtype = torch.float64
    example = _example("merged", dtype=dtype)
    before, _ = _run(_graph("merged", "fx", dtype), "low-rank{rank=3,heads=true}", example)
    after, ledger = _run(before, "flash-svd", example)
    assert ledger.entries[0].after == "rank space of the factors, heads of 3, 1 group"
    assert ledger.entries[0].announced_error < 1e-12
    _same(after, before, _example("merged", 3, 11, dtype), 1e-12)


def test_heads_cut_behind_the_factor_are_cut_as_well_as_on_x() -> None:
    """The rank space of the factors announces the error that rank space on x has, for the same products."""
    dtype = torch.float64
    example = _example("merged", dtype=dtype)
    before, _ = _run(_graph("merged", "fx", dtype), "low-rank{rank=4,targets=[qkv]}", example)
    narrow, ledger = _run(before, "flash-svd{head_rank=2}", example)
    (entry,) = ledger
    assert entry.after == "rank space of the factors, heads of 2, 1 group"
    layer, errors = dict(seeded(Merged(), dtype).named_parameters()), []
    u, s, vh = torch.linalg.svd(layer["qkv.weight"].data)
    weight = (u[:, :4] * s[:4] @ vh[:4]).reshape(3, HEADS, HEAD, WIDTH)
    bias = layer["qkv.bias"].data.reshape(3, HEADS, HEAD, 1)
    query = torch.cat([weight[0], bias[0]], -1)
    out = layer["out.weight"].data.reshape(WIDTH, HEADS, HEAD).permute(1, 2, 0)
    for left, right in ((query, weight[1]), (out, weight[2])):
        values = torch.linalg.svdvals(left.transpose(1, 2) @ right)
        errors.append(float(values[:, 2:].square().sum() / values.square().sum()) ** 0.5)
    assert entry.announced_error == pytest.approx(max(errors), rel=1e-9)
    assert _shared(narrow) == ["qkv"]


def test_the_shared_first_factor_is_computed_once_and_nothing_of_full_width_is_live() -> None:
    example = _example("merged", 4, 32)
    fx = capture(seeded(Merged()), example, None)
    before, _ = _run(fx, "low-rank{keep=0.8,heads=true}", example)
    after, ledger = _run(before, f"flash-svd{{blocks={HEADS}}}", example)
    assert [entry.status for entry in ledger] == ["rewritten"]
    old, new = (cost(graph.snapshot()).at() for graph in (before, after))
    assert new.macs == old.macs
    assert new.peak_activation_bytes < 0.7 * old.peak_activation_bytes
    assert new.largest_buffer_bytes < 4 * 4 * 32 * FULL


def test_a_pair_without_a_shared_factor_is_refused_with_the_numbers() -> None:
    example = _example("query and key")
    before, _ = _run(_graph("query and key"), "low-rank{keep=0.5,heads=true}", example)
    _, ledger = _run(before, "flash-svd", example)
    (entry,) = ledger
    assert entry.status == "kept"
    ranks, widths = {"qk": 5, "value": 4, "out": 4}, {"qk": 2 * FULL, "value": FULL, "out": FULL}
    present = sum(rank * (WIDTH + widths[name]) for name, rank in ranks.items())
    assert f" and factors kept, heads of 5 would take {present + 5 * WIDTH:,} and " in entry.reason
    assert entry.reason.endswith(f" multiply-adds a token, its projections take {present:,}")
