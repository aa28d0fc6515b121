"""Finding attention: as one node, spelled out, with its heads around it; and every reason why something is none."""

import math
from dataclasses import dataclass

import pytest
import torch
from fake_graph import FakeGraph

from regraft.graph import AttentionSite, Attribute, Dim, Value, find_attention_sites

HEADS, HEAD, WIDTH = 4, 3, 12
QUERIES, KEYS = ("batch", "queries"), ("batch", "keys")
SCORES = ("batch", HEADS, "queries", "keys")
SPLIT = (0, 2, 1, 3)


def find(g: FakeGraph) -> tuple[list[AttentionSite], list[str]]:
    sites, misses = find_attention_sites(g)  # type: ignore[arg-type]
    return sites, [miss.reason for miss in misses]


def one(g: FakeGraph) -> AttentionSite:
    sites, misses = find(g)
    assert not misses, misses
    (site,) = sites
    return site


def miss(g: FakeGraph) -> str:
    sites, misses = find(g)
    assert not sites, sites
    (reason,) = misses
    return reason


def native(value: Value, name: str) -> Value:
    assert value.producer is not None
    value.producer.native = name
    return value


def wide(g: FakeGraph, heads: int = HEADS) -> tuple[Value, Value, Value]:
    """q, k and v with their heads side by side."""
    q = g.input("q", *QUERIES, WIDTH)
    return q, g.input("k", *KEYS, heads * HEAD), g.input("v", *KEYS, heads * HEAD)


def apart(g: FakeGraph, heads: int = HEADS) -> tuple[Value, Value, Value]:
    """q, k and v with heads as their second dim."""
    b, s, t = "batch", "queries", "keys"
    return g.input("q", b, HEADS, s, HEAD), g.input("k", b, heads, t, HEAD), g.input("v", b, heads, t, HEAD)


def like(g: FakeGraph, op: str, x: Value, *others: Value | None, **attributes: Attribute) -> Value:
    return g.node(op, x, *others, shape=x.type.shape, **attributes)


def split(g: FakeGraph, x: Value, heads: int = HEADS) -> Value:
    b, rows = (x.type.shape or ())[:2]
    four = g.node("reshape", x, shape=(b, rows, heads, HEAD))
    return g.node("transpose", four, shape=(b, heads, rows, HEAD), perm=SPLIT)


def merge(g: FakeGraph, y: Value, *shape: Dim) -> Value:
    b, heads, rows, head = y.type.shape or ()
    turned = g.node("transpose", y, shape=(b, rows, heads, head), perm=SPLIT)
    return g.node("reshape", turned, shape=shape or (*QUERIES, WIDTH), key="merged")


def numbered(g: FakeGraph, condition: Value, x: Value, number: float) -> Value:
    """torch's where(condition, number, x)."""
    y = g.node("where", condition, x, shape=x.type.shape)
    assert y.producer is not None
    y.producer.attributes = {"self": number}
    return y


def turned(g: FakeGraph, k: Value) -> Value:
    b, heads, rows, head = k.type.shape or ()
    return g.node("transpose", k, shape=(b, heads, head, rows), perm=(0, 1, 3, 2))


def scalar(g: FakeGraph, value: float) -> Value:
    return g.holding(f"number_{value}_{len(g.constants())}", torch.tensor(value))


def product(g: FakeGraph, q: Value, k: Value) -> Value:
    return g.node("matmul", q, turned(g, k), shape=SCORES, key="scores")


def attend(g: FakeGraph, weights: Value, v: Value) -> Value:
    return g.node("matmul", weights, v, shape=("batch", HEADS, "queries", HEAD), key="y", scope="block.attn")


def softmax(g: FakeGraph, scores: Value, **attributes: Attribute) -> Value:
    return g.node("softmax", scores, shape=SCORES, scope="block.attn", **(attributes or {"axis": -1}))


def mask(g: FakeGraph, dtype: str = "bool", *shape: Dim) -> Value:
    return g.input("mask", *(shape or ("batch", 1, "queries", "keys")), dtype=dtype)


# Spelled out


@pytest.mark.parametrize("axis", [{"axis": -1}, {"dim": -1}, {"axis": 3}])
def test_two_products_with_a_softmax_between_them_are_attention(axis: dict[str, Attribute]) -> None:
    g = FakeGraph()
    q, k, v = apart(g)
    attend(g, softmax(g, product(g, q, k), **axis), v)
    site = one(g)
    assert (site.name, site.output, site.split, site.rows) == ("block.attn", "y", False, False)
    assert dict(site.operands) == {"q": "q", "k": "k", "v": "v"}
    assert (site.heads, site.kv_heads, site.head_size, site.scale) == (HEADS, HEADS, HEAD, 1.0)
    assert site.describe() == "4 heads of 3, 4 nodes"
    assert set(site.nodes) == {node.key for node in g.nodes()}


def test_splitting_and_merging_of_heads_belongs_to_it_where_all_of_it_is_there() -> None:
    g = FakeGraph()
    q, k, v = (split(g, x) for x in wide(g))
    merge(g, attend(g, softmax(g, product(g, q, k)), v))
    site = one(g)
    assert (site.split, site.rows, site.output) == (True, False, "merged")
    assert dict(site.operands) == {"q": "q", "k": "k", "v": "v"}
    assert len(site.nodes) == len(g.nodes())


def test_heads_merged_straight_to_rows_are_merged() -> None:
    g = FakeGraph()
    q, k, v = (split(g, x) for x in wide(g))
    merge(g, attend(g, softmax(g, product(g, q, k)), v), "batch*queries", WIDTH)
    site = one(g)
    assert (site.split, site.rows, site.output) == (True, True, "merged")
    assert site.attributes["rows"] == 1


@pytest.mark.parametrize("lost", ["q", "k", "v", "output"])
def test_without_one_of_the_splits_heads_stay_outside(lost: str) -> None:
    g = FakeGraph()
    whole, inner = FakeGraph(), {}
    for name, x in zip("qkv", wide(g), strict=True):
        four = whole.input(f"{name}4", "batch", HEADS, (x.type.shape or ())[1], HEAD)
        inner[name] = four if name == lost else split(g, x)
    y = attend(g, softmax(g, product(g, inner["q"], inner["k"])), inner["v"])
    if lost != "output":
        merge(g, y)
    site = one(g)
    assert (site.split, site.output) == (False, "y")
    assert site.operands["q"] == inner["q"].key


def test_a_merge_that_something_else_reads_too_stays_outside() -> None:
    g = FakeGraph()
    q, k, v = (split(g, x) for x in wide(g))
    y = attend(g, softmax(g, product(g, q, k)), v)
    merge(g, y)
    like(g, "relu", y)
    assert not one(g).split


@pytest.mark.parametrize("side", ["scores", "q", "k", "both", "before the split"])
@pytest.mark.parametrize("op", ["mul", "div"])
def test_a_scale_is_read_wherever_it_is_multiplied(side: str, op: str) -> None:
    g = FakeGraph()
    q, k, v = wide(g)
    number = scalar(g, 0.5)
    q = like(g, op, q, number) if side == "before the split" else q
    q, k, v = (split(g, x) for x in (q, k, v))
    if side in ("q", "both"):
        q = like(g, op, q, number)
    if side in ("k", "both"):
        k = like(g, op, k, number)
    scores = product(g, q, k)
    scores = like(g, op, scores, number) if side == "scores" else scores
    merge(g, attend(g, softmax(g, scores), v))
    site, times = one(g), 2 if side == "both" else 1
    assert site.scale == pytest.approx((0.5 if op == "mul" else 2.0) ** times)
    assert dict(site.operands) == {"q": "q", "k": "k", "v": "v"}


def test_a_number_divided_by_the_scores_is_no_scale() -> None:
    g = FakeGraph()
    q, k, v = apart(g)
    scores = product(g, q, k)
    attend(g, softmax(g, g.node("div", scalar(g, 0.5), scores, shape=SCORES, key="inverse")), v)
    assert miss(g) == "its scores inverse are no product of queries and keys"


def test_an_added_mask_is_a_bias_and_a_choice_of_infinity_a_mask() -> None:
    for chosen in (False, True):
        g = FakeGraph()
        q, k, v = apart(g)
        scores = product(g, q, k)
        if chosen:
            scores = g.node("where", mask(g), scores, scalar(g, -math.inf), shape=SCORES)
        else:
            scores = like(g, "add", scores, mask(g, "float32"))
        attend(g, softmax(g, scores), v)
        assert dict(one(g).operands) == {"q": "q", "k": "k", "v": "v", "mask" if chosen else "bias": "mask"}


def test_the_booleans_behind_an_added_choice_of_zero_and_infinity_are_the_mask() -> None:
    g = FakeGraph()
    q, k, v = apart(g)
    allowed = mask(g)
    offset = g.node("where", allowed, scalar(g, 0.0), scalar(g, -math.inf), shape=allowed.type.shape)
    attend(g, softmax(g, like(g, "add", product(g, q, k), offset)), v)
    assert one(g).operands["mask"] == "mask"


def test_an_added_choice_of_other_numbers_stays_a_bias() -> None:
    g = FakeGraph()
    q, k, v = apart(g)
    allowed = mask(g)
    offset = g.node("where", allowed, scalar(g, 0.0), scalar(g, -1e4), shape=allowed.type.shape, key="offset")
    attend(g, softmax(g, like(g, "add", product(g, q, k), offset)), v)
    assert one(g).operands["bias"] == "offset"


@pytest.mark.parametrize("torch_s", [False, True])
def test_a_guard_against_rows_of_nan_and_dropouts_are_looked_through(torch_s: bool) -> None:
    g = FakeGraph()
    q, k, v = apart(g)
    weights = softmax(g, product(g, q, k))
    test = g.node("aten.isnan" if torch_s else "is_na_n", weights, shape=SCORES)
    if torch_s:
        weights = numbered(g, test, weights, 0.0)
    else:
        weights = g.node("where", test, scalar(g, 0.0), weights, shape=SCORES)
    attend(g, like(g, "dropout", weights), v)
    assert len(one(g).nodes) == len(g.nodes())


def test_keys_and_values_repeated_for_the_queries_are_read_before_that() -> None:
    g = FakeGraph()
    q, k, v = apart(g, heads=2)

    def repeated(x: Value) -> Value:
        b, heads, rows, head = x.type.shape or ()
        single = g.node("unsqueeze", x, shape=(b, heads, 1, rows, head))
        many = g.node("expand", single, shape=(b, heads, 2, rows, head))
        return g.node("reshape", many, shape=(b, HEADS, rows, head))

    attend(g, softmax(g, product(g, q, repeated(k))), repeated(v))
    site = one(g)
    assert (site.heads, site.kv_heads) == (HEADS, 2)
    assert site.describe() == "4 on 2 heads of 3, 10 nodes"
    assert dict(site.operands) == {"q": "q", "k": "k", "v": "v"}


def test_heads_in_another_order_are_not_taken_for_repeated() -> None:
    g = FakeGraph()
    q, k, v = apart(g, heads=2)

    def tiled(x: Value) -> Value:  # head 0, 1, 0, 1 in place of 0, 0, 1, 1
        b, heads, rows, head = x.type.shape or ()
        single = g.node("reshape", x, shape=(b, 1, heads, rows, head))
        many = g.node("expand", single, shape=(b, 2, heads, rows, head))
        return g.node("reshape", many, shape=(b, HEADS, rows, head))

    keys, values = tiled(k), tiled(v)
    attend(g, softmax(g, product(g, q, keys)), values)
    site = one(g)
    assert (site.kv_heads, site.operands["k"]) == (HEADS, keys.key)


def test_several_in_one_module_are_told_apart() -> None:
    g = FakeGraph()
    q, k, v = apart(g)
    for _ in range(3):
        attend(g, softmax(g, product(g, q, k)), v).producer.key += f"_{len(g.nodes())}"  # type: ignore[union-attr]
    assert [site.name for site in find(g)[0]] == ["block.attn", "block.attn#2", "block.attn#3"]


# Spelled out, and none


@dataclass
class Spelled:
    """The parts of an attention that is spelled out, to be bent."""

    g: FakeGraph
    q: Value
    k: Value
    v: Value

    @classmethod
    def new(cls) -> "Spelled":
        g = FakeGraph()
        return cls(g, *apart(g))


def test_scores_read_elsewhere_are_refused() -> None:
    s = Spelled.new()
    scores = product(s.g, s.q, s.k)
    s.g.output(scores)
    attend(s.g, softmax(s.g, scores), s.v)
    assert miss(s.g) == "its scores scores are read elsewhere too"


def test_scaled_scores_whose_product_is_read_elsewhere_are_refused() -> None:
    s = Spelled.new()
    scores = product(s.g, s.q, s.k)
    s.g.output(scores)
    attend(s.g, softmax(s.g, like(s.g, "mul", scores, scalar(s.g, 0.5))), s.v)
    assert miss(s.g) == "its scores scores are read elsewhere too"


def test_a_softmax_that_is_returned_or_read_twice_is_refused() -> None:
    for returned in (True, False):
        s = Spelled.new()
        weights = softmax(s.g, product(s.g, s.q, s.k))
        attend(s.g, weights, s.v)
        if returned:
            s.g.output(weights)
        else:
            like(s.g, "relu", weights)
        assert miss(s.g) == "what its softmax gives is not the left operand of one product"


def test_a_softmax_on_the_right_of_a_product_is_refused() -> None:
    s = Spelled.new()
    s.g.node("matmul", s.v, softmax(s.g, product(s.g, s.q, s.k)), shape=("batch", HEADS, HEAD, "keys"))
    assert miss(s.g) == "what its softmax gives is not the left operand of one product"


def test_a_softmax_over_another_dim_is_refused() -> None:
    s = Spelled.new()
    attend(s.g, softmax(s.g, product(s.g, s.q, s.k), axis=1), s.v)
    assert miss(s.g) == "its softmax is over dim 1, not the last"


def test_scores_that_are_given_are_refused() -> None:
    s = Spelled.new()
    attend(s.g, softmax(s.g, s.g.input("given", *SCORES)), s.v)
    assert miss(s.g) == "its scores are not computed"


def test_scores_that_are_no_product_are_refused() -> None:
    s = Spelled.new()
    attend(s.g, softmax(s.g, s.g.node("tanh", product(s.g, s.q, s.k), shape=SCORES, key="capped")), s.v)
    assert miss(s.g) == "its scores capped are no product of queries and keys"


def test_keys_that_are_not_turned_are_refused() -> None:
    s = Spelled.new()
    k = s.g.input("kt", "batch", HEADS, HEAD, "keys")
    attend(s.g, softmax(s.g, s.g.node("matmul", s.q, k, shape=SCORES)), s.v)
    assert miss(s.g) == "its right operand kt is not turned from [batch, heads, keys, head]"


def test_keys_turned_while_they_are_split_need_queries_split_beside_them() -> None:
    for q_is_split in (True, False):
        g = FakeGraph()
        q, k, v = wide(g)
        four = g.node("reshape", k, shape=(*KEYS, HEADS, HEAD))
        right = g.node("transpose", four, shape=("batch", HEADS, HEAD, "keys"), perm=(0, 2, 3, 1))
        left = split(g, q) if q_is_split else g.input("q4", "batch", HEADS, "queries", HEAD)
        merge(g, attend(g, softmax(g, g.node("matmul", left, right, shape=SCORES)), split(g, v)))
        if q_is_split:
            assert dict(one(g).operands) == {"q": "q", "k": "k", "v": "v"}
        else:
            assert miss(g) == (
                "its keys are split into heads and turned at once, its queries q4 are not split beside them"
            )


def test_several_masks_hold_together_in_the_order_in_which_they_come() -> None:
    for steps in (("add", "add"), ("add", "where"), ("where", "add"), ("where", "where"), ("add", "where", "add")):
        s = Spelled.new()
        scores, expected = product(s.g, s.q, s.k), {"q": "q", "k": "k", "v": "v"}
        for place, step in enumerate(steps):
            kind = "bias" if step == "add" else "mask"
            count = 1 + steps[:place].count(step)
            expected[kind if count == 1 else f"{kind}#{count}"] = f"{kind}_{place}"
            if step == "add":
                scores = like(s.g, "add", scores, s.g.input(f"bias_{place}", *SCORES))
            else:
                allowed = s.g.input(f"mask_{place}", *SCORES, dtype="bool")
                scores = s.g.node("where", allowed, scores, scalar(s.g, -math.inf), shape=SCORES)
        attend(s.g, softmax(s.g, scores), s.v)
        assert dict(one(s.g).operands) == expected


def test_hiding_with_a_finite_number_is_refused_for_what_it_does_to_rows_that_are_all_hidden() -> None:
    s = Spelled.new()
    scores = s.g.node("where", mask(s.g), product(s.g, s.q, s.k), scalar(s.g, -1e9), shape=SCORES)
    attend(s.g, softmax(s.g, scores), s.v)
    assert miss(s.g) == (
        "what it must not look at is filled with -1e+09, not with -inf; a row that is hidden throughout differs"
    )


@pytest.mark.parametrize("form", ["masked_fill", "number as attribute", "chosen the other way"])
def test_a_mask_of_what_is_hidden_is_read_through_its_opposite(form: str) -> None:
    for opposite in ("not", "aten.bitwise_not", "aten.logical_not", "identity"):
        s = Spelled.new()
        allowed = mask(s.g)
        hidden = s.g.node(opposite, allowed, shape=allowed.type.shape)
        scores, low = product(s.g, s.q, s.k), -math.inf
        if form == "masked_fill":
            scores = s.g.node("masked_fill", scores, hidden, shape=SCORES, value=low)
        elif form == "number as attribute":
            scores = numbered(s.g, hidden, scores, low)
        else:
            scores = s.g.node("where", hidden, scalar(s.g, low), scores, shape=SCORES)
        attend(s.g, softmax(s.g, scores), s.v)
        if opposite == "identity":
            assert miss(s.g) == "what it must not look at is marked, not what it may look at"
        else:
            assert one(s.g).operands["mask"] == "mask"


def test_a_mask_with_its_number_as_an_attribute_is_a_mask() -> None:
    s = Spelled.new()
    scores = s.g.node("where", mask(s.g), product(s.g, s.q, s.k), shape=SCORES, other=-math.inf)
    attend(s.g, softmax(s.g, scores), s.v)
    assert one(s.g).operands["mask"] == "mask"


def test_scores_chosen_between_tensors_are_refused() -> None:
    s = Spelled.new()
    other = s.g.input("other", *SCORES)
    attend(s.g, softmax(s.g, s.g.node("where", mask(s.g), product(s.g, s.q, s.k), other, shape=SCORES)), s.v)
    assert miss(s.g) == "its scores are chosen between two tensors"


@pytest.mark.parametrize("shape", [("keys",), ("queries", "keys"), (HEADS, "queries", "keys"), (1, 1, "keys")])
def test_a_mask_of_fewer_dims_is_one(shape: tuple[Dim, ...]) -> None:
    s = Spelled.new()
    bias = mask(s.g, "float32", *shape)
    attend(s.g, softmax(s.g, like(s.g, "add", product(s.g, s.q, s.k), bias)), s.v)
    site = one(s.g)
    assert site.operands["bias"] == "mask"
    assert site.mask_heads == (HEADS if shape[0] == HEADS else 1)


def test_a_mask_of_five_dims_is_refused() -> None:
    s = Spelled.new()
    bias = mask(s.g, "float32", 1, "batch", HEADS, "queries", "keys")
    attend(s.g, softmax(s.g, like(s.g, "add", product(s.g, s.q, s.k), bias)), s.v)
    text = f"its mask mask is float32[1, batch, {HEADS}, queries, keys], 4 dims are needed or fewer"
    assert miss(s.g) == text


def test_a_mask_that_widens_the_scores_is_refused() -> None:
    g = FakeGraph()
    q, k, v = (g.input(name, 1, HEADS, rows, HEAD) for name, rows in (("q", "queries"), ("k", "keys"), ("v", "keys")))
    bias = mask(g, "float32", 3, 1, 1, "keys")
    attend(g, softmax(g, like(g, "add", product(g, q, k), bias)), v)
    scores = f"[1, {HEADS}, queries, keys]"
    assert miss(g) == f"its mask mask (float32[3, 1, 1, keys]) has more than its scores {scores}, which it would widen"


def test_values_with_other_heads_than_the_keys_are_refused() -> None:
    s = Spelled.new()
    v = s.g.input("v1", "batch", 1, "keys", HEAD)
    attend(s.g, softmax(s.g, product(s.g, s.q, s.k)), v)
    assert miss(s.g) == "4 query heads do not share 4 key and 1 value heads evenly"


def test_heads_of_unknown_number_or_width_are_refused() -> None:
    for shape, reason in (
        (("batch", "heads", "queries", HEAD), "the heads of qu are not known (float32[batch, heads, queries, 3])"),
        (("batch", "queries", HEAD), "the heads of qu are not known (float32[batch, queries, 3])"),
        (
            ("batch", HEADS, "queries", "head"),
            "the width of a head of qu is not known (float32[batch, 4, queries, head])",
        ),
    ):
        s = Spelled.new()
        attend(s.g, softmax(s.g, product(s.g, s.g.input("qu", *shape), s.k)), s.v)
        assert miss(s.g) == reason


# As one node


def fused(g: FakeGraph, name: str, *operands: Value | None, results: int = 1, **attributes: Attribute) -> Value:
    shape = operands[0].type.shape if operands[0] is not None else None
    y = g.node("attention", *operands, shape=shape, key="y", scope="block.attn", results=results, **attributes)
    return native(y, name)


TORCH, ONNX, CONTRIB = (
    "aten.scaled_dot_product_attention.default",
    "Attention",
    "com.microsoft::MultiHeadAttention",
)


def test_torch_s_operator_is_attention_with_its_own_scale() -> None:
    g = FakeGraph()
    fused(g, TORCH, *apart(g), is_causal=True)
    site = one(g)
    assert (site.scale, site.causal, site.native) == (1 / math.sqrt(HEAD), True, TORCH)
    g = FakeGraph()
    q, k, v = apart(g, heads=2)
    fused(g, TORCH, q, k, v, mask(g), scale=0.25)
    site = one(g)
    assert (site.scale, site.causal, site.heads, site.kv_heads) == (0.25, False, HEADS, 2)
    assert site.operands["mask"] == "mask"


def test_attention_that_drops_out_is_refused() -> None:
    g = FakeGraph()
    fused(g, TORCH, *apart(g), dropout_p=0.1)
    assert miss(g) == "it drops out 0.1 of its weights, as in training; call model.eval() first"


def test_the_standard_operator_is_read_in_three_and_in_four_dims() -> None:
    g = FakeGraph()
    fused(g, ONNX, *wide(g, heads=2), q_num_heads=HEADS, kv_num_heads=2, is_causal=1, scale=0.5)
    site = one(g)
    assert (site.split, site.heads, site.kv_heads, site.head_size) == (True, HEADS, 2, HEAD)
    assert (site.causal, site.scale) == (True, 0.5)
    g = FakeGraph()
    fused(g, ONNX, *apart(g))
    assert (one(g).split, one(g).scale) == (False, 1 / math.sqrt(HEAD))


def test_the_standard_operator_with_a_cache_or_a_cap_is_refused() -> None:
    cache = "it reads or returns a cache of keys and values"
    g = FakeGraph()
    past = g.input("past", "batch", HEADS, "past", HEAD)
    fused(g, ONNX, *apart(g), None, past, past)
    assert miss(g) == cache
    g = FakeGraph()
    present = fused(g, ONNX, *apart(g), results=3)
    assert present.producer is not None
    g.output(present.producer.outputs[1])
    assert miss(g) == cache
    g = FakeGraph()
    fused(g, ONNX, *apart(g), softcap=20.0)
    assert miss(g) == "it caps its scores (softcap=20.0)"


def test_onnx_runtime_s_operator_is_attention() -> None:
    for scale, wanted in ((0.0, 1 / math.sqrt(HEAD)), (0.5, 0.5)):
        g = FakeGraph()
        q, k, v = wide(g)
        fused(g, CONTRIB, q, k, v, None, None, mask(g, "float32"), num_heads=HEADS, scale=scale)
        site = one(g)
        assert (site.split, site.heads, site.kv_heads, site.scale) == (True, HEADS, HEADS, wanted)
        assert site.operands["bias"] == "mask"


def test_forms_of_onnx_runtime_s_operator_that_do_more_are_refused() -> None:
    def refused(*operands: Value | None, name: str = CONTRIB, **attributes: Attribute) -> str:
        fused(g, name, *operands, **{"num_heads": HEADS, **attributes})
        return miss(g)

    g = FakeGraph()
    assert refused(wide(g)[0]) == "its queries, keys and values are packed into one tensor"
    g = FakeGraph()
    more = "it adds biases to its projections, or has a mask of lengths"
    assert refused(*wide(g), g.weight("bias", 3 * WIDTH)) == more
    g = FakeGraph()
    assert refused(*wide(g), None, g.input("lengths", "batch", dtype="int32")) == more
    g = FakeGraph()
    past = g.input("past", "batch", HEADS, "past", HEAD)
    assert refused(*wide(g), None, None, None, past, past) == "it reads or returns a cache of keys and values"
    g = FakeGraph()
    other = "its keys are split into heads already, or it is causal"
    assert refused(*wide(g), unidirectional=1) == other
    g = FakeGraph()
    assert refused(wide(g)[0], *apart(g)[1:]) == other
    for name in ("com.microsoft::Attention", "com.microsoft::GroupQueryAttention"):
        g = FakeGraph()
        assert refused(*wide(g), name=name) == f"{name} projects queries, keys and values itself"


@pytest.mark.parametrize("both", [False, True])
def test_our_own_node_is_read_as_it_was_written(both: bool) -> None:
    g = FakeGraph()
    q, k, v = wide(g, heads=2)
    operands = (q, k, v, mask(g), g.input("bias", *SCORES) if both else None)
    written = {"heads": HEADS, "kv_heads": 2, "split": 1, "scale": 0.3, "causal": 1, "rows": 0}
    g.node("multi_head_attention", *operands, shape=(*QUERIES, WIDTH), key="y", scope="block.attn", **written)
    site = one(g)
    assert dict(site.attributes) == written
    assert set(site.operands) == {"q", "k", "v", "mask", *(["bias"] if both else [])}


def test_a_width_that_is_not_known_is_refused() -> None:
    g = FakeGraph()
    q = g.input("q", *QUERIES, "width")
    fused(g, CONTRIB, q, *wide(FakeGraph())[1:], num_heads=HEADS)
    assert miss(g) == "the width of its queries is not known (float32[batch, queries, width])"
