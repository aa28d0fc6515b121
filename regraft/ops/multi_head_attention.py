"""Attention with all that surrounds its two products: heads split off, scores scaled, masked, normalized, heads merged.

    y = softmax(scale · q · kᵀ + bias, where mask and not causally later) · v

with split=1: q: [batch, queries, heads · head], k: [batch, keys, kv_heads · head], v: [batch, keys, kv_heads · value],
y: [batch, queries, heads · value], or with rows=1 [batch · queries, heads · value];
with split=0 the heads are the second dim: q: [batch, heads, queries, head], ...
mask: booleans (true: look there) and bias: numbers, both of four dims that broadcast to [batch, heads, queries, keys].

Query head h reads key and value head h // (heads / kv_heads). `causal=1`: query i sees the keys up to i. A query that
sees nothing (all false, or -inf) gives 0, as torch's scaled_dot_product_attention does.

Multiply-adds: batch · heads · queries · keys · (head + value). Where a runtime has an operator for all of it, no
[queries, keys] buffer exists.

Source: Vaswani et al. 2017, arXiv:1706.03762; grouped heads: Ainslie et al. 2023, arXiv:2305.13245.
"""

import sympy

from regraft.graph.cost_types import OpCost
from regraft.graph.symbols import dim_expr, numel
from regraft.graph.types import Dim, TensorType
from regraft.ops._builder import Builder, V
from regraft.ops._op import Example, Ints, Op, require


def infer(
    q: TensorType,
    k: TensorType,
    v: TensorType,
    mask: TensorType | None = None,
    bias: TensorType | None = None,
    *,
    heads: int,
    kv_heads: int,
    split: int,
    scale: float,
    causal: int,
    rows: int = 0,
) -> TensorType:
    """Return the type of y: that of q, as wide as the value heads."""
    del scale, causal
    rank = 3 if split else 4
    for name, type_ in (("q", q), ("k", k), ("v", v)):
        require(type_.rank in (None, rank), f"{op.name}: {name} must have {rank} dims; got {type_}")
    for name, type_ in (("mask", mask), ("bias", bias)):
        require(type_ is None or type_.rank in (None, 4), f"{op.name}: {name} must have 4 dims; got {type_}")
    require(mask is None or mask.dtype in (None, "bool"), f"{op.name}: mask must be of booleans; got {mask}")
    grouped = heads >= 1 and kv_heads >= 1 and heads % kv_heads == 0
    require(grouped, f"{op.name}: heads must be a multiple of kv_heads; got {heads} and {kv_heads}")
    require(bool(split) or not rows, f"{op.name}: rows=1 needs split=1, merged heads")
    if q.shape is None or v.shape is None:
        return TensorType(q.dtype)
    if not split:
        return TensorType(q.dtype, (*q.shape[:-1], v.shape[-1]))
    for name, type_, count in (("q", q, heads), ("k", k, kv_heads), ("v", v, kv_heads)):
        width = type_.shape[-1] if type_.shape else None
        fits = not isinstance(width, int) or width % count == 0
        require(fits, f"{op.name}: {name} must be a multiple of {count} heads wide; got {type_}")
    width = _merged(v.shape[-1], heads // kv_heads)
    return TensorType(q.dtype, (_product(q.shape[:-1]), width) if rows else (*q.shape[:-1], width))


def _merged(width: Dim, times: int) -> Dim:
    return width * times if isinstance(width, int) else (width if times == 1 else f"{times}*({width})")


def _product(dims: tuple[Dim, ...]) -> Dim:
    count = numel(dims)
    return int(count) if count.is_Integer else str(count)


def decompose(
    b: Builder[V],
    q: V,
    k: V,
    v: V,
    mask: V | None = None,
    bias: V | None = None,
    *,
    heads: int,
    kv_heads: int,
    split: int,
    scale: float,
    causal: int,
    rows: int = 0,
) -> V:
    """One operation of the builder: runtimes have operators of their own for it."""
    y = b.attention(
        q, k, v, mask, bias, heads=heads, kv_heads=kv_heads, split=bool(split), scale=scale, causal=bool(causal)
    )
    return b.as_rows(y) if rows else y


def cost(
    q: TensorType,
    k: TensorType,
    v: TensorType,
    mask: TensorType | None = None,
    bias: TensorType | None = None,
    *,
    heads: int,
    kv_heads: int,
    split: int,
    scale: float,
    causal: int,
    rows: int = 0,
) -> OpCost:
    """Return the multiply-adds of both products; causal ones count in full, as runtimes do them."""
    del mask, bias, scale, causal, rows
    require(None not in (q.shape, k.shape, v.shape), f"{op.name}: q, k and v must have known shapes")
    assert q.shape is not None and k.shape is not None and v.shape is not None
    groups = sympy.Rational(heads, kv_heads) if split else sympy.Integer(1)
    width = dim_expr(q.shape[-1]) + dim_expr(v.shape[-1]) * groups
    return OpCost(numel(q.shape[:-1]) * dim_expr(k.shape[-2]) * width)


def _attributes(
    heads: int, kv_heads: int, split: int, scale: float, causal: int = 0, rows: int = 0
) -> dict[str, int | float]:
    return {"heads": heads, "kv_heads": kv_heads, "split": split, "scale": scale, "causal": causal, "rows": rows}


def _mask(*shape: int) -> Ints:
    return Ints(shape, 0, 1, "bool")


op = Op(
    name="multi_head_attention",
    doc="Attention of split heads: softmax(scale q kᵀ + bias) v, masked",
    infer=infer,
    decompose=decompose,
    cost=cost,
    examples=(
        Example(
            "key padding",
            {"q": (2, 5, 12), "k": (2, 7, 12), "v": (2, 7, 15), "mask": _mask(2, 1, 1, 7)},
            _attributes(3, 3, 1, 0.5),
            dynamic=(1,),
        ),
        Example("plain", {"q": (2, 4, 6), "k": (2, 3, 6), "v": (2, 3, 6)}, _attributes(2, 2, 1, 0.7), dynamic=(1,)),
        Example(
            "grouped heads and causal",
            {"q": (2, 5, 12), "k": (2, 5, 6), "v": (2, 5, 10)},
            _attributes(4, 2, 1, 0.3, 1),
            dynamic=(),
        ),
        Example(
            "heads split off outside",
            {"q": (2, 4, 5, 3), "k": (2, 2, 6, 3), "v": (2, 2, 6, 7), "bias": (1, 4, 5, 6)},
            _attributes(4, 2, 0, 1.0),
            dynamic=(),
        ),
        Example(
            "mask, bias and causal",
            {"q": (1, 4, 8), "k": (1, 4, 8), "v": (1, 4, 8), "mask": _mask(1, 2, 4, 4), "bias": (1, 2, 1, 4)},
            _attributes(2, 2, 1, 0.25, 1),
            dynamic=(),
        ),
        Example(
            "merged to rows",
            {"q": (2, 3, 8), "k": (2, 5, 8), "v": (2, 5, 12), "bias": (2, 1, 1, 5)},
            _attributes(2, 2, 1, 0.5, rows=1),
            dynamic=(1,),
        ),
        Example(
            "more queries than keys, causal",
            {"q": (1, 5, 6), "k": (1, 3, 6), "v": (1, 3, 6)},
            _attributes(2, 2, 1, 0.5, 1),
            dynamic=(),
        ),
        Example(
            "more keys than queries, causal",
            {"q": (1, 3, 6), "k": (1, 5, 6), "v": (1, 5, 6)},
            _attributes(2, 2, 1, 0.5, 1),
            dynamic=(),
        ),
        Example(
            "one of everything",
            {"q": (1, 1, 1), "k": (1, 1, 1), "v": (1, 1, 1)},
            _attributes(1, 1, 1, 1.0),
            dynamic=(),
        ),
    ),
)
