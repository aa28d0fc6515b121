"""Attention with its projections in factors, by groups of heads, so that no full-size query, key or value exists.

    q_h = P_q · query_hᵀ + query_bias_h    P_q = x · query_downᵀ, or x         query_h: [head, rank]
    k_g = P_k · key_gᵀ                     P_k = context · key_downᵀ, or context
    v_g = P_v · value_gᵀ                   P_v = context · value_downᵀ, or context
    s   = Σ_h softmax(scale · q_h · k_gᵀ + bias, masked) · v_g · out_hᵀ        out: [r, heads · value]
    y   = s · out_upᵀ + out_bias + value_bias (for queries that see a key) + residual

shared="qkv": query_down serves keys and values, too (P_k = P_v = P_q, without context); shared="kv": key_down serves
values, too. So a layer of query, key and value at once keeps its one first factor.

x: [batch, queries, in], context: [batch, keys, in] (x when absent), mask and bias as in `multi_head_attention`. Query
head h reads key and value head g = h // (heads / kv_heads). The heads are walked in `blocks` groups.

Keys need no bias: it adds the same to every score of a query. The bias of the values, times the weights behind, is
`value_bias`: weights of attention sum to 1, or to 0 for a query that sees nothing. Where no mask tells that for all
heads at once (each head has its own, or there are several), it stays with the values: with bias_inside=1 it is as long
as all value heads, and v_g = P_v · value_gᵀ + value_bias_g.

A layer whose head size is the rank (the product of query and key weights in two factors, that of value and output
weights in two others) is an ordinary one with smaller heads, and `scale` still that of the original head size.

Multiply-adds: those of the products and of attention with these head sizes. Buffers: a group's queries, keys, values
and scores, at most 1 / blocks of all heads', and s.

Source: FlashSVD (Shao et al. 2025, arXiv:2508.01506) for attention that never holds a full-size projection.
"""

from typing import Final

from regraft.graph.cost_types import OpCost
from regraft.graph.types import TensorType
from regraft.ops._builder import Builder, V
from regraft.ops._op import AttributeValue, Example, Ints, Op
from regraft.ops._streamed_heads import AttentionTypes, Source, seen, source


def infer(
    x: TensorType,
    query: TensorType,
    key: TensorType,
    value: TensorType,
    out: TensorType,
    *,
    heads: int,
    kv_heads: int,
    scale: float,
    causal: int,
    blocks: int,
    shared: str = "none",
    bias_inside: int = 0,
    **optional: TensorType | None,
) -> TensorType:
    """Return the type of y: x's leading dims, then the width behind the last product."""
    del scale
    types = AttentionTypes(op.name, x, query, key, value, out, **optional, shared=shared, bias_inside=bias_inside)
    types.check_hiding(causal=bool(causal))
    return types.result(heads, kv_heads, blocks)


def decompose(  # noqa: PLR0917 - the operands of the op
    b: Builder[V],
    x: V,
    query: V,
    key: V,
    value: V,
    out: V,
    context: V | None = None,
    query_down: V | None = None,
    key_down: V | None = None,
    value_down: V | None = None,
    out_up: V | None = None,
    query_bias: V | None = None,
    value_bias: V | None = None,
    out_bias: V | None = None,
    mask: V | None = None,
    bias: V | None = None,
    residual: V | None = None,
    *,
    heads: int,
    kv_heads: int,
    scale: float,
    causal: int,
    blocks: int,
    shared: str = "none",
    bias_inside: int = 0,
) -> V:
    """Sum over groups of heads; then the last factor."""
    other = x if context is None else context
    q = source(b, x, query_down, query, query_bias, blocks)
    k = q.alike(b, key, blocks) if shared == "qkv" else source(b, other, key_down, key, None, blocks)
    inner, outer = (value_bias, None) if bias_inside else (None, value_bias)
    v = k.alike(b, value, blocks, inner) if shared != "none" else source(b, other, value_down, value, inner, blocks)
    total: V | None = None
    for place, weight in enumerate(b.split(out, 1, blocks)):
        attended = _group(
            b,
            (q, k, v),
            place,
            total,
            (mask, bias),
            heads=heads // blocks,
            kv_heads=kv_heads // blocks,
            scale=scale,
            causal=bool(causal),
            alike=context is None,
        )
        total = b.linear(attended, weight) if total is None else b.accumulate(total, attended, weight)
        del attended
    assert total is not None, "there is a group"
    del q, k, v
    y = b.like_rows_of(total, x)
    y = y if out_up is None else b.linear(y, out_up)
    y = y if out_bias is None else b.add_to(y, out_bias)
    if outer is not None:
        told = seen(b, y, mask, bias)
        y = b.add_to(y, outer if told is None else b.mul(told, outer))
    return y if residual is None else b.add_to(y, residual)


def _group(
    b: Builder[V],
    sources: tuple[Source[V], Source[V], Source[V]],
    place: int,
    earlier: V | None,
    offsets: tuple[V | None, V | None],
    *,
    heads: int,
    kv_heads: int,
    scale: float,
    causal: bool,
    alike: bool,
) -> V:
    """Attention of one group of heads, as rows. Keys and values wait for the sum only where they have its rows."""
    q, k, v = sources
    waited = earlier if alike else None
    y = b.attention(
        q.group(b, place, earlier),
        k.group(b, place, waited),
        v.group(b, place, waited),
        *offsets,
        heads=heads,
        kv_heads=kv_heads,
        split=True,
        scale=scale,
        causal=causal,
    )
    return b.as_rows(y)


def cost(
    x: TensorType,
    query: TensorType,
    key: TensorType,
    value: TensorType,
    out: TensorType,
    *,
    heads: int,
    kv_heads: int,
    scale: float,
    causal: int,
    blocks: int,
    shared: str = "none",
    bias_inside: int = 0,
    **optional: TensorType | None,
) -> OpCost:
    """Multiply-adds of all products, and the largest buffer between them."""
    del scale, causal
    return AttentionTypes(op.name, x, query, key, value, out, **optional, shared=shared, bias_inside=bias_inside).cost(
        heads, kv_heads, blocks
    )


def _example(
    name: str,
    x: tuple[int, int, int],
    counts: tuple[int, int, int],
    widths: tuple[int, int],
    ranks: tuple[int, int, int, int],
    *,
    context: tuple[int, int, int] | None = None,
    more: dict[str, tuple[int, ...] | Ints] | None = None,
    causal: int = 0,
    shared: str = "none",
    bias_inside: int = 0,
    dynamic: tuple[int, ...] = (0,),
) -> Example:
    """An example of (heads, kv_heads, blocks), head and value width, and ranks of the four factors (0: dense)."""
    (heads, kv_heads, blocks), (head, wide), (rank_q, rank_k, rank_v, rank_o) = counts, widths, ranks
    width, inner = x[-1], (context or x)[-1]
    shapes: dict[str, tuple[int, ...] | Ints] = {
        "x": x,
        "query": (heads * head, rank_q or width),
        "key": (kv_heads * head, rank_k or inner),
        "value": (kv_heads * wide, rank_v or inner),
        "out": (rank_o or 6, heads * wide),
    }
    shapes |= {"context": context} if context else {}
    own = {"none": 3, "kv": 2, "qkv": 1}[shared]
    for label, rank, extent in (("query", rank_q, width), ("key", rank_k, inner), ("value", rank_v, inner))[:own]:
        shapes |= {f"{label}_down": (rank, extent)} if rank else {}
    shapes |= {"out_up": (6, rank_o)} if rank_o else {}
    counts_of = {"heads": heads, "kv_heads": kv_heads, "blocks": blocks}
    attributes: dict[str, AttributeValue] = {**counts_of, "scale": 0.4, "causal": causal, "shared": shared}
    attributes["bias_inside"] = bias_inside
    return Example(name, shapes | (more or {}), attributes, dynamic)


def _mask(*shape: int) -> Ints:
    return Ints(shape, 0, 1, "bool")


op: Final = Op(
    name="lowrank_attention",
    doc="Attention with its projections in factors, computed by groups of heads",
    infer=infer,
    decompose=decompose,
    cost=cost,
    linear_weights=("query", "key", "value", "out", "query_down", "key_down", "value_down", "out_up"),
    examples=(
        _example("dense", (2, 5, 7), (4, 4, 2), (3, 2), (0, 0, 0, 0), dynamic=(0, 1)),
        _example(
            "all factors and biases",
            (2, 5, 7),
            (4, 4, 4),
            (3, 2),
            (5, 4, 3, 2),
            more={"query_bias": (12,), "value_bias": (6,), "out_bias": (6,), "mask": _mask(2, 1, 5, 5)},
            dynamic=(),
        ),
        _example(
            "grouped heads, causal",
            (2, 5, 7),
            (6, 2, 2),
            (3, 4),
            (0, 0, 0, 3),
            more={"value_bias": (6,), "residual": (2, 5, 6)},
            causal=1,
            dynamic=(),
        ),
        _example(
            "context and a bias of each head",
            (2, 3, 7),
            (2, 2, 1),
            (3, 2),
            (0, 2, 0, 0),
            context=(2, 4, 5),
            more={"bias": (1, 2, 3, 4), "out_bias": (6,)},
            dynamic=(),
        ),
        _example(
            "context in groups",
            (2, 3, 7),
            (3, 3, 3),
            (2, 3),
            (3, 0, 2, 0),
            context=(2, 4, 5),
            more={"bias": (2, 1, 1, 4), "value_bias": (6,)},
            dynamic=(),
        ),
        _example(
            "one first factor for all",
            (2, 5, 7),
            (4, 2, 2),
            (3, 2),
            (4, 4, 4, 3),
            shared="qkv",
            more={"query_bias": (12,), "out_bias": (6,), "mask": _mask(2, 1, 1, 5)},
            dynamic=(),
        ),
        _example(
            "one first factor for keys and values",
            (2, 3, 7),
            (2, 2, 2),
            (3, 2),
            (0, 4, 4, 0),
            context=(2, 4, 5),
            shared="kv",
            dynamic=(),
        ),
        _example(
            "a mask of each head and a bias of values",
            (2, 3, 7),
            (4, 2, 1),
            (3, 2),
            (0, 0, 4, 0),
            more={"value_bias": (4,), "mask": _mask(2, 4, 3, 3)},
            causal=1,
            bias_inside=1,
            dynamic=(),
        ),
        _example("one of everything", (1, 1, 1), (1, 1, 1), (1, 1), (0, 0, 0, 1), dynamic=()),
    ),
)
