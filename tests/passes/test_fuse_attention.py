"""The pass `fuse-attention`: the same function at every size, one node a block, and nothing that was not checked."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import onnx
import onnx.parser
import pytest
import torch
from attention_models import (
    HEADS,
    NAMES,
    WIDTH,
    Calls,
    apart,
    captured,
    case,
    exported,
    inputs,
    merged,
    operands,
)
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from regraft.diff import diff
from regraft.errors import NoMatchError, VerificationError
from regraft.frontends.onnx import load
from regraft.graph import AttentionSite, Graph
from regraft.ops.multi_head_attention import op as multi_head_attention
from regraft.passes import FuseAttention, Settings, run_passes

SIZES = ((3, 5), (1, 1))
FX = [*((name, "sdpa") for name in NAMES), ("gpt2", "eager"), ("vit", "eager")]
ONNX = [
    ("bert", 18, "sdpa"),
    ("bert", 23, "sdpa"),
    ("gpt2", 18, "eager"),
    ("llama", 18, "sdpa"),
    ("t5", 18, "sdpa"),
    ("bart", 21, "sdpa"),
]


def fused(graph: Graph, item: FuseAttention | None = None, **settings: Any) -> tuple[Graph, Any]:
    return run_passes(graph, [item or FuseAttention()], Settings(**settings))


def assert_equal(before: Graph, after: Graph, given: Any, allowed: float = 1e-5) -> None:
    for wanted, got in zip(before.run(given)[0], after.run(given)[0], strict=True):
        assert got.shape == wanted.shape
        assert not got.isnan().any()
        assert float((got.double() - wanted.double()).norm()) <= allowed * float(wanted.double().norm())


# Models of transformers


@pytest.mark.parametrize(("name", "attention"), FX)
def test_a_captured_model_keeps_its_function_at_every_size(name: str, attention: str) -> None:
    model = case(name, attention)
    after, ledger = fused(model.graph)
    assert [(entry.site, entry.status) for entry in ledger] == [(site, "rewritten") for site in model.sites]
    for batch, length in SIZES:
        assert_equal(model.graph, after, inputs(name, batch, length))
    ops = [node.op for node in after.nodes()]
    assert ops.count("multi_head_attention") == len(model.sites)
    assert not {"attention", "softmax"} & set(ops)
    after.validate()


@pytest.mark.parametrize(("name", "opset", "attention"), ONNX)
def test_an_exported_model_keeps_its_function_at_every_size(name: str, opset: int, attention: str) -> None:
    model, before = case(name, attention), exported(name, opset, attention)
    after, ledger = fused(before)
    assert [(entry.site, entry.status) for entry in ledger] == [(site, "rewritten") for site in model.sites]
    for batch, length in SIZES:
        assert_equal(before, after, inputs(name, batch, length))
    ops = [node.op for node in after.nodes()]
    assert ops.count("multi_head_attention") == len(model.sites)
    assert not {"attention", "softmax", "is_na_n"} & set(ops)
    after.validate()


@pytest.mark.parametrize("name", ["bert", "t5"])
def test_in_double_precision_the_function_is_equal_to_the_last_digits(name: str) -> None:
    before = case(name, dtype=torch.float64).graph
    assert_equal(before, fused(before)[0], inputs(name, 3, 5), 1e-12)


@pytest.mark.parametrize("where", ["fx", "onnx"])
def test_ledger_and_diff_have_one_entry_a_block(where: str) -> None:
    before: Graph = case("bert").graph if where == "fx" else exported("bert", 18)
    after, ledger = fused(before)
    found = diff(before.snapshot(), after.snapshot(), ledger)
    rewritten = [change for change in found.changes if change.cause is not None]
    assert [change.site for change in rewritten] == list(case("bert").sites)
    assert len({entry.after for entry in ledger}) == 1
    assert {entry.measured_error < 1e-5 for entry in ledger} == {True}


@pytest.mark.parametrize("where", ["fx", "onnx"])
def test_a_second_run_finds_nothing_to_do(where: str) -> None:
    before: Graph = case("bert").graph if where == "fx" else exported("bert", 18)
    once, _ = fused(before)
    twice, ledger = fused(once, strict=False)
    assert twice is once
    assert {(entry.status, entry.reason.startswith("it is one ")) for entry in ledger} == {("kept", True)}
    with pytest.raises(NoMatchError, match="fuse-attention"):
        fused(once)


def test_only_what_is_asked_for_is_rewritten() -> None:
    graph, (first, second) = case("bert").graph, case("bert").sites
    _, ledger = fused(graph, FuseAttention(targets=("encoder.layer.1.*",)))
    assert [(entry.site, entry.reason) for entry in ledger if entry.status == "kept"] == [
        (first, "not among the targets")
    ]
    _, ledger = fused(graph, FuseAttention(exclude=(second,)))
    assert [(entry.site, entry.reason) for entry in ledger if entry.status == "kept"] == [(second, "excluded")]


# What is checked


@dataclass(frozen=True)
class Wrong(FuseAttention):
    """Fuses, and gets one thing wrong in the second block."""

    name: ClassVar[str] = "wrong"

    fault: str = "scale"

    def build(self, graph: Graph, site: AttentionSite, plan: Any) -> None:
        if "layer.1" in site.name:
            attributes = {"scale": {"scale": site.scale * 1.1}, "causal": {"causal": True}, "mask": {}}[self.fault]
            site = replace(site, **attributes)
            if self.fault == "mask":
                site = replace(site, operands={name: site.operands[name] for name in "qkv"})
        super().build(graph, site, plan)


@pytest.mark.parametrize("fault", ["scale", "causal", "mask"])
@pytest.mark.parametrize(("where", "given"), [("fx", True), ("fx", False), ("onnx", False)])
def test_a_wrong_build_is_caught_and_taken_back_alone(where: str, fault: str, given: bool) -> None:
    before: Graph = case("bert").graph if where == "fx" else exported("bert", 18)
    probes = [inputs("bert", 3, 6)] if given else []
    after, ledger = fused(before, Wrong(fault=fault), probes=probes)
    assert [entry.status for entry in ledger] == ["rewritten", "rolled back"]
    assert [node.op for node in after.nodes()].count("multi_head_attention") == 1
    assert_equal(before, after, inputs("bert", 2, 6))
    with pytest.raises(VerificationError, match=r"wrong: encoder\.layer\.1\.attention\.self: .*error"):
        fused(before, Wrong(fault=fault), probes=probes, on_violation="raise")


# Written by hand: torch


def causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return merged(scaled_dot_product_attention(apart(q), apart(k), apart(v), is_causal=True))


def grouped(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = q.unflatten(-1, (HEADS, -1)), k[..., : WIDTH // 2], v[..., : WIDTH // 2]
    k, v = (x.unflatten(-1, (HEADS // 2, -1)).transpose(1, 2) for x in (k, v))
    return scaled_dot_product_attention(q.transpose(1, 2), k, v, scale=0.7, enable_gqa=True)


def hidden(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Spelled out, without keys for the first query: its row is NaN until the guard."""
    scores = apart(q) @ apart(k).transpose(-1, -2) / 2.0
    allowed = torch.ones(q.shape[1], k.shape[1], dtype=torch.bool).tril(-1)[None, None]
    weights = torch.softmax(scores.masked_fill(~allowed, float("-inf")), -1)
    return merged(torch.where(torch.isnan(weights), 0.0, weights) @ apart(v))


def unseen(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """torch's operator, where the first query sees nothing."""
    allowed = torch.ones_like(q[:1, :, :1] @ k[:1, :, :1].transpose(-1, -2), dtype=torch.bool).tril(-1)[None]
    return merged(scaled_dot_product_attention(apart(q), apart(k), apart(v), attn_mask=allowed))


def positions(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """An added bias, the scale on the queries before their split, turned keys."""
    bias = torch.sin(q[:, None, :, :1] * 3 - k[:, None, :, 0][:, :, None])
    scores = apart(q * 0.3) @ apart(k).transpose(-1, -2) + bias
    return merged(torch.softmax(scores, -1) @ apart(v))


@pytest.mark.parametrize("function", [causal, grouped, hidden, unseen, positions])
def test_every_way_to_write_it_in_torch_is_one_node_afterwards(function: Callable[..., Tensor]) -> None:
    before = captured(Calls(function).double(), *operands(2, 5, 7, torch.float64))
    after, ledger = fused(before)
    assert [entry.status for entry in ledger] == ["rewritten"]
    for batch, queries, keys in ((2, 5, 7), (3, 7, 4), (1, 3, 3)):
        assert_equal(before, after, operands(batch, queries, keys, torch.float64), 1e-12)


def test_a_query_that_sees_no_key_gives_nothing() -> None:
    after, _ = fused(captured(Calls(unseen), *operands(2, 5, 7)))
    (y,), _ = after.run(operands(3, 4, 6))
    assert torch.equal(y[:, 0], torch.zeros(3, WIDTH))
    assert (y[:, 1:] != 0).all()


# Written by hand: ONNX


def onnx_model(body: str, operands: str, opset: int = 23) -> Graph:
    text = f"""<ir_version: 10, opset_import: ["": {opset}, "com.microsoft": 1]>
    net ({operands}) => (float[b, s, n] y) {{ {body} }}"""
    return load(onnx.parser.parse_model(text))


WIDE = f"float[b, s, {WIDTH}] q, float[b, t, {WIDTH}] k, float[b, t, {WIDTH}] v"
SPLIT = "".join(f"{x}r = Reshape({x}, heads) {x}h = Transpose<perm = [0, 2, 1, 3]>({x}r) " for x in ("q", "k", "v"))
HEADS_OF = f"heads = Constant <value_ints = [0, 0, {HEADS}, -1]> () "
MERGE = "flat = Constant <value_ints = [0, 0, -1]> () o = Transpose<perm = [0, 2, 1, 3]>(h) y = Reshape(o, flat)"


def spelled(masking: str) -> str:
    return f"""{HEADS_OF}{SPLIT}
        c = Constant <value_float = 0.4> () kt = Transpose<perm = [0, 1, 3, 2]>(kh)
        p = MatMul(qh, kt) s0 = Mul(p, c) {masking} a = Softmax<axis = -1>(s1)
        nan = IsNaN(a) zero = Constant <value_float = 0.0> () w = Where(nan, zero, a) h = MatMul(w, vh) {MERGE}"""


MASKS = {
    "key mask": (
        "low = Constant <value_float = -inf> () none = Constant <value_float = 0.0> () "
        "off = Where(m, none, low) s1 = Add(s0, off)",
        "bool[b, 1, 1, t] m",
    ),
    "mask for every pair": (
        "low = Constant <value_float = -inf> () s1 = Where(m, s0, low)",
        "bool[b, 1, s, t] m",
    ),
    "bias a head": ("s1 = Add(s0, m)", f"float[1, {HEADS}, s, t] m"),
    "finite key bias": ("s1 = Add(s0, m)", "float[b, 1, 1, t] m"),
}


def mask_of(kind: str, batch: int, queries: int, keys: int) -> Tensor:
    generator = torch.Generator().manual_seed(keys)
    shape = {
        "key mask": (batch, 1, 1, keys),
        "mask for every pair": (batch, 1, queries, keys),
        "bias a head": (1, HEADS, queries, keys),
        "finite key bias": (batch, 1, 1, keys),
    }[kind]
    if "bias" in kind:
        return torch.randn(shape, generator=generator)
    mask = torch.rand(shape, generator=generator) > 0.4
    mask[-1] = False  # a row that is hidden throughout
    return mask


@pytest.mark.parametrize("opset", [18, 23])
@pytest.mark.parametrize("kind", MASKS)
def test_masks_of_every_kind_keep_their_meaning_in_onnx(kind: str, opset: int) -> None:
    masking, operand = MASKS[kind]
    before = onnx_model(spelled(masking), f"{WIDE}, {operand}", opset)
    after, ledger = fused(before)
    assert [entry.status for entry in ledger] == ["rewritten"]
    for batch, queries, keys in ((2, 5, 7), (1, 1, 1), (3, 2, 4)):
        assert_equal(before, after, (*operands(batch, queries, keys), mask_of(kind, batch, queries, keys)))


def test_operators_that_are_attention_already_stay_as_they_are() -> None:
    for body, native in (
        (f"y = Attention <q_num_heads = {HEADS}, kv_num_heads = {HEADS}> (q, k, v)", "Attention"),
        (f"y = com.microsoft.MultiHeadAttention <num_heads = {HEADS}> (q, k, v)", "com.microsoft::MultiHeadAttention"),
    ):
        graph = onnx_model(body, WIDE)
        with pytest.raises(NoMatchError, match="fuse-attention"):
            fused(graph)
        after, ledger = fused(graph, strict=False)
        assert after is graph
        assert [entry.reason for entry in ledger] == [f"it is one {native} node already"]


@pytest.mark.parametrize("is_causal", [0, 1])
def test_the_standard_operator_with_its_heads_split_outside_is_one_node_with_them(is_causal: int) -> None:
    body = f"{HEADS_OF}{SPLIT} h = Attention <is_causal = {is_causal}, scale = 0.3> (qh, kh, vh) {MERGE}"
    before = onnx_model(body, WIDE)
    _, ledger = fused(before, strict=False)
    assert [entry.reason for entry in ledger] == ["it is one Attention node already"]
    # What the node means as an op is what it computes.
    after = before.copy()
    (site,), _ = FuseAttention().find(before)
    after.replace(site, multi_head_attention, {}, site.attributes)
    for sizes in ((2, 5, 5), (1, 6, 3), (1, 3, 6)):
        assert_equal(before, after, operands(*sizes))
