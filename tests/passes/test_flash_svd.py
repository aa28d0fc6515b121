"""The pass flash-svd: the same function without a full-size activation, what it says of it, and what it refuses."""

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, ClassVar

import pytest
import torch
from tiny_transformers import (
    HEAD,
    HEADS,
    HIDDEN,
    WIDTH,
    Attention,
    Block,
    Example,
    Kind,
    block_example,
    block_graph,
    library_example,
    library_graph,
    mask_of,
    rows,
    seeded,
)
from torch import Tensor, nn

from regraft.backends.onnxruntime._from_torch import to_onnx
from regraft.errors import NoMatchError, OptionError
from regraft.frontends.torch import FxGraph, capture
from regraft.graph import Graph
from regraft.ledger import Ledger
from regraft.passes import FlashSVD, LowRank, Settings, resolve_passes, run_passes, spelling
from regraft.passes._flash_plan import FlashPlan
from regraft.passes.flash_svd import FlashSite

FACTORS = "low-rank{keep=0.7,heads=true}"
RANK = 5
"""Of both layers of the feed-forward part, 36x14, at half of their parameters."""


def _run(graph: Graph, passes: str, example: Example, *, strict: bool = True) -> tuple[Graph, Ledger]:
    return run_passes(graph, resolve_passes(passes), Settings(probes=[example], strict=strict))


@lru_cache(maxsize=16)
def factored(kind: Kind = "fx", form: str = "mask", dtype: torch.dtype = torch.float32) -> Graph:
    """A block whose layers are all in factors."""
    graph, ledger = _run(block_graph(kind, form, dtype), FACTORS, block_example(form, dtype=dtype))
    assert len(ledger.rewritten) == 6
    return graph


@lru_cache(maxsize=16)
def fused(kind: Kind = "fx", form: str = "mask", blocks: int = 2) -> tuple[Graph, Ledger]:
    return _run(factored(kind, form), f"flash-svd{{blocks={blocks}}}", block_example(form))


def _ops(graph: Graph) -> list[str]:
    return [node.op for node in graph.nodes() if node.op.startswith("lowrank")]


def _output(graph: Graph, example: Example) -> Tensor:
    return graph.run(example)[0][0]


def _close(graph: Graph, other: Graph, example: Example, tolerance: float) -> None:
    wanted = _output(other, example)
    assert wanted.isfinite().all()
    torch.testing.assert_close(_output(graph, example), wanted, rtol=tolerance, atol=tolerance)


def _sizes(form: str, dtype: torch.dtype) -> list[Example]:
    """Inputs of several sizes: odd ones, a single row, and rows that see nothing."""
    examples = [block_example(form, *size, dtype=dtype, seed=3) for size in ((2, 7), (3, 13), (1, 1), (1, 9), (5, 2))]
    if form in ("mask", "unbiased"):
        examples.append((rows(3, 5, WIDTH, dtype=dtype), mask_of(5, 0, 2, keys=5)))
    return examples


# The same function


@pytest.mark.parametrize("form", ["mask", "causal", "grouped", "cross", "unbiased"])
@pytest.mark.parametrize("blocks", [1, 2])
def test_in_double_precision_the_function_of_the_factors_stays(form: str, blocks: int) -> None:
    before = factored("fx", form, torch.float64)
    after, ledger = _run(before, f"flash-svd{{blocks={blocks}}}", block_example(form, dtype=torch.float64))
    assert [entry.status for entry in ledger] == ["rewritten"] * 2
    assert _ops(after) == ["lowrank_attention", "lowrank_mlp"]
    for example in _sizes(form, torch.float64):
        _close(after, before, example, 1e-12)


@pytest.mark.parametrize(("kind", "form"), [("fx", "mask"), ("onnx", "mask"), ("onnx", "grouped"), ("onnx", "cross")])
def test_in_single_precision_it_stays_in_both_graph_kinds(kind: Kind, form: str) -> None:
    after, ledger = fused(kind, form)
    assert [entry.status for entry in ledger] == ["rewritten"] * 2
    for example in _sizes(form, torch.float32):
        _close(after, factored(kind, form), example, 1e-5)


@pytest.mark.parametrize("form", ["mask", "causal", "grouped", "cross", "unbiased"])
def test_at_full_rank_rank_space_is_the_dense_model(form: str) -> None:
    dense = block_graph("fx", form, torch.float64)
    example = block_example(form, dtype=torch.float64)
    after, ledger = _run(dense, f"flash-svd{{head_rank={HEAD},mlp=false,blocks=2}}", example)
    (entry,) = ledger
    assert (entry.status, entry.after) == ("rewritten", f"rank space, heads of {HEAD}, 2 groups")
    assert entry.announced_error == 0
    for example in _sizes(form, torch.float64):
        _close(after, dense, example, 1e-12)


@pytest.mark.parametrize(
    ("name", "kind"), [*((name, "fx") for name in ("bert", "gpt2", "vit", "t5")), ("gpt2", "onnx"), ("t5", "onnx")]
)
def test_models_of_the_library_keep_their_function(name: str, kind: Kind) -> None:
    """Padding, causal masks, no mask, and position biases of each head, which is walked at once."""
    dense, example = library_graph(name, kind), library_example(name)
    head = 5 if name == "t5" else 6
    after, ledger = _run(dense, f"flash-svd{{head_rank={head},mlp=false}}", example)
    assert [entry.status for entry in ledger] == ["rewritten"]
    before, _ = _run(after, "low-rank{keep=0.6,heads=true}", example)
    again, ledger = _run(before, "flash-svd{attention=false}", example)
    assert [entry.status for entry in ledger] == ["rewritten"]
    for given in (example, library_example(name, 3, 10, seed=1), library_example(name, 1, 1, seed=2)):
        _close(after, dense, given, 2e-5)
        _close(again, before, given, 2e-5)


def test_a_llama_keeps_its_attention_for_its_positions_and_its_gated_layer_is_walked() -> None:
    dense, example = library_graph("llama"), library_example("llama")
    before, _ = _run(dense, "low-rank{keep=0.6}", example)
    after, ledger = _run(before, "flash-svd{blocks=3}", example)
    assert _ops(after).count("lowrank_mlp") == 1
    layer, attention = ledger
    assert (layer.site, layer.before, layer.status) == ("layers.0.mlp", "24->56->24 gated silu", "rewritten")
    assert (attention.site, attention.status, attention.before) == ("layers.0.self_attn", "kept", "")
    assert attention.reason.endswith("such as rotary positions or norms, before the product")
    _close(after, before, library_example("llama", 3, 10, seed=1), 2e-5)


def test_heads_whose_products_are_of_low_rank_are_narrowed_without_any_option() -> None:
    model = seeded(Block(), torch.float64)
    for name in ("query", "value"):
        weight = model.get_parameter(f"attention.{name}.weight")
        heads = weight.data.reshape(HEADS, HEAD, WIDTH)
        weight.data = (heads[:, :, :2] @ rows(HEADS, 2, WIDTH, dtype=torch.float64)).reshape(HEADS * HEAD, WIDTH)
    model.get_parameter("attention.query.bias").data.zero_()
    example = block_example("mask", dtype=torch.float64)
    dense = capture(model, example)
    after, ledger = _run(dense, "flash-svd{mlp=false}", example)
    (entry,) = ledger
    assert (entry.status, entry.after) == ("rewritten", "rank space, heads of 2, 1 group")
    _close(after, dense, example, 1e-12)


def test_an_output_of_a_rank_below_the_head_size_bounds_the_heads_of_values() -> None:
    dense, example = block_graph("fx", "mask", torch.float64), block_example("mask", dtype=torch.float64)
    before, _ = _run(dense, "low-rank{rank=3,targets=[attention.out]}", example)
    after, ledger = _run(before, f"flash-svd{{head_rank={HEAD},mlp=false}}", example)
    assert ledger.entries[0].after == "rank space, heads of 5 and 3, 1 group"
    _close(after, before, example, 1e-12)


def test_dense_layers_are_cut_to_the_best_of_their_rank() -> None:
    dense, example = block_graph("fx", "mask", torch.float64), block_example("mask", dtype=torch.float64)
    cut, ledger = _run(dense, f"flash-svd{{rank={RANK},attention=false}}", example)
    alone, _ = _run(dense, f"low-rank{{rank={RANK},targets=[mlp.*],heads=true}}", example)
    _close(cut, alone, example, 1e-12)
    tails = []
    for name in ("mlp.fc1.weight", "mlp.fc2.weight"):
        values = torch.linalg.svdvals(seeded(Block(), torch.float64).get_parameter(name).data)
        tails.append(float(values[RANK:].square().sum() / values.square().sum()) ** 0.5)
    assert ledger.entries[0].announced_error == pytest.approx(max(tails))
    assert ledger.entries[0].after == f"ranks {RANK}/{RANK}, 1 block"


# What it says


def test_the_ledger_has_both_layers_in_graph_order_with_their_numbers() -> None:
    _, ledger = fused()
    attention, layer = ledger
    assert (attention.site, attention.before) == ("attention", f"{WIDTH}->{HEADS} heads of {HEAD}->{WIDTH}")
    assert (attention.after, attention.op) == (f"factors kept, heads of {HEAD}, 2 groups", "lowrank_attention")
    assert (layer.site, layer.before) == ("mlp", f"{WIDTH}->{HIDDEN}->{WIDTH} gelu")
    assert (layer.after, layer.op) == ("ranks 7/7, 2 blocks", "lowrank_mlp")
    for entry in ledger:
        assert (entry.announced_error, entry.checked_on) == (0.0, "random")
        assert entry.measured_error is not None
        assert entry.measured_error < 1e-6
    assert attention.bytes_before is not None
    # The bias of the keys goes; that of the values, 20 numbers, becomes 14 behind the last layer.
    assert attention.bytes_after == attention.bytes_before - 4 * (HEADS * HEAD + HEADS * HEAD - WIDTH)
    assert layer.bytes_after == layer.bytes_before == 4 * (2 * 7 * (WIDTH + HIDDEN) + HIDDEN + WIDTH)


def test_a_second_run_changes_nothing() -> None:
    for kind in ("fx", "onnx"):
        graph, _ = fused(kind)
        again, ledger = _run(graph, "flash-svd", block_example("mask"), strict=False)
        assert again is graph
        assert not ledger.entries


def test_sums_behind_the_layers_are_taken_along() -> None:
    graph, _ = fused()
    assert "add" not in [node.op for node in graph.nodes()]
    for node in graph.nodes():
        if node.op.startswith("lowrank"):
            assert [value.key for value in node.inputs if value is not None].count(node.inputs[0].key) == 2  # type: ignore[union-attr]


# What it refuses


def _reasons(graph: Graph, passes: str, example: Example) -> dict[str, str]:
    after, ledger = _run(graph, passes, example, strict=False)
    assert after is graph
    assert {entry.status for entry in ledger} == {"kept"}
    return {entry.site: entry.reason for entry in ledger}


@pytest.mark.parametrize(
    ("passes", "attention", "mlp"),
    [
        (
            "flash-svd",
            "its projections are dense; run low-rank before, or give keep= or head_rank=",
            "its layers are dense; run low-rank before, or give keep= or rank=",
        ),
        (
            "flash-svd{rank=11}",
            "rank 11 would not be smaller than attention.out (14x20)",
            "rank 11 would not be smaller than mlp.fc1 (36x14)",
        ),
        (
            "flash-svd{keep=0.01}",
            "keep=0.01 leaves rank 0 for attention.out (14x20)",
            "keep=0.01 leaves rank 0 for mlp.fc1 (36x14)",
        ),
        (
            "flash-svd{head_rank=6}",
            "head_rank=6 is above the size of its heads, 5",
            "its layers are dense; run low-rank before, or give keep= or rank=",
        ),
        (
            "flash-svd{rank=4,blocks=25}",
            "blocks=25 does not divide its 4 key and value heads",
            "its hidden width of 36 has no 25 blocks of 2",
        ),
        ("flash-svd{rank=4,exclude=[*]}", "excluded", "excluded"),
    ],
)
def test_what_would_be_no_gain_is_kept_with_the_reason(passes: str, attention: str, mlp: str) -> None:
    found = _reasons(block_graph(), passes, block_example("mask"))
    assert found == {"attention": attention, "mlp": mlp}


def test_heads_that_would_take_more_on_x_than_the_factors_stay_behind_the_factors() -> None:
    dense = 3 * HEADS * HEAD * WIDTH + 5 * (HEADS * HEAD + WIDTH)
    assert dense > 4 * 5 * (HEADS * HEAD + WIDTH)
    after, ledger = _run(factored(), f"flash-svd{{head_rank={HEAD},mlp=false}}", block_example("mask"))
    assert [entry.after for entry in ledger] == [f"rank space of the factors, heads of {HEAD}, 1 group"]
    _close(after, factored(), block_example("mask", 3, 9), 1e-5)


def test_only_targets_are_rewritten() -> None:
    after, ledger = _run(factored(), "flash-svd{targets=[attention]}", block_example("mask"))
    assert [(entry.site, entry.status, entry.reason) for entry in ledger] == [
        ("attention", "rewritten", ""),
        ("mlp", "kept", "not among the targets"),
    ]
    assert "lowrank_mlp" not in _ops(after)


class Twice(nn.Module):
    """One block, called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.block = Block()

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.block(self.block(x, mask), mask)


def test_weights_that_are_read_elsewhere_stay() -> None:
    graph = capture(seeded(Twice()), block_example("mask"))
    found = _reasons(graph, "flash-svd{keep=0.5}", block_example("mask"))
    assert set(found) == {"block.attention", "block.mlp", "block.attention#2", "block.mlp#2"}
    assert set(found.values()) == {"one of its weights is read elsewhere, too"}


def test_weights_that_are_not_finite_are_refused() -> None:
    model = seeded(Block())
    model.get_parameter("attention.key.weight").data[0, 0] = torch.inf
    model.get_parameter("mlp.fc2.weight").data[0, 0] = torch.nan
    graph = capture(model, block_example("mask"))
    _, ledger = run_passes(graph, [FlashSVD(keep=0.5)], Settings(strict=False))
    assert [entry.reason for entry in ledger] == ["a weight holds numbers that are not finite"] * 2


def test_a_mask_of_each_head_is_walked_at_once_also_beside_a_bias_of_values() -> None:
    own = torch.ones(2, HEADS, 7, 7).bool().tril()
    own[:, 1] = True
    example = (rows(2, 7, WIDTH), own)
    own[0, 2, 3] = False  # one head of one query sees nothing: its bias of values must go, that of the others stay
    for dense in (Block(bias=False), Block()):
        graph = capture(seeded(dense), example, None)
        after, _ = _run(graph, f"flash-svd{{head_rank={HEAD},mlp=false}}", example)
        _close(after, graph, example, 1e-5)
    found = _reasons(graph, f"flash-svd{{head_rank={HEAD},mlp=false,blocks=2}}", example)
    assert found == {"attention": "its heads have masks of their own and are walked at once, not in blocks=2"}


def test_a_model_with_nothing_of_the_kind_is_an_error() -> None:
    graph = capture(nn.Sequential(nn.Linear(4, 4), nn.Tanh()), (rows(3, 4),))
    with pytest.raises(NoMatchError, match="^flash-svd: no site in "):
        run_passes(graph, [FlashSVD(keep=0.5)], Settings())


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"keep": 0.0}, "keep must be above 0 and below 1; got 0.0"),
        ({"keep": 1.0}, "keep must be above 0 and below 1; got 1.0"),
        ({"rank": 0}, "rank must be at least 1; got 0"),
        ({"head_rank": -2}, "head_rank must be at least 1; got -2"),
        ({"keep": 0.5, "rank": 3}, "keep=0.5 and ranks exclude each other; give one"),
        ({"keep": 0.5, "head_rank": 3}, "keep=0.5 and ranks exclude each other; give one"),
        ({"blocks": -1}, "blocks must be at least 1, or 0 to choose; got -1"),
        ({"attention": False, "mlp": False}, "attention=false and mlp=false leave nothing to rewrite"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], text: str) -> None:
    with pytest.raises(OptionError) as refused:
        FlashSVD(**options)
    assert str(refused.value) == f"flash-svd: {text}"


def test_its_spelling_is_read_back() -> None:
    item = FlashSVD(rank=8, head_rank=4, mlp=False, blocks=2, targets=("layer.*",), exclude=("re:.*9",))
    assert resolve_passes(spelling(item)) == [item]
    assert spelling(FlashSVD()) == "flash-svd"


def test_it_runs_behind_low_rank_in_whatever_order_they_are_given() -> None:
    _, ledger = run_passes(block_graph(), [FlashSVD(), LowRank(keep=0.5)], Settings(probes=[block_example("mask")]))
    assert [record.name for record in ledger.passes] == ["low-rank", "flash-svd"]


# What it writes wrong is found


@dataclass(frozen=True)
class Faulty(FlashSVD):
    """Writes something else than it planned, or plans something else than what stands there."""

    name: ClassVar[str] = "faulty"

    plans: bool = False
    spoiled: str = "out_bias"

    def plan(self, site: FlashSite, statistics: Any) -> Any:
        plan = super().plan(site, statistics)
        return _spoiled(plan, self.spoiled) if self.plans and isinstance(plan, FlashPlan) else plan

    def build(self, graph: Graph, site: FlashSite, plan: FlashPlan) -> None:
        super().build(graph, site, plan if self.plans else _spoiled(plan, self.spoiled))


def _spoiled(plan: FlashPlan, name: str) -> FlashPlan:
    tensors = {key: -tensor if key == name else tensor for key, tensor in plan.tensors.items()}
    return replace(plan, tensors=tensors)


@pytest.mark.parametrize("spoiled", ["query", "query_bias", "value_bias", "out_bias", "out"])
@pytest.mark.parametrize("head_rank", [3, HEAD])
def test_a_wrong_build_is_taken_back_however_large_the_error_that_was_announced(spoiled: str, head_rank: int) -> None:
    graph = block_graph()
    item = Faulty(head_rank=head_rank, mlp=False, spoiled=spoiled)
    after, ledger = run_passes(graph, [item], Settings(probes=[block_example("mask")], strict=False))
    (entry,) = ledger
    assert entry.status == "rolled back"
    assert entry.reason.startswith("it differs by ")
    assert entry.reason.endswith(" from what lowrank_attention means")
    assert after is graph


def test_a_plan_that_says_it_changes_nothing_and_does_is_taken_back() -> None:
    item = Faulty(plans=True, spoiled="value_bias", mlp=False)
    after, ledger = run_passes(factored(), [item], Settings(probes=[block_example("mask")], strict=False))
    (entry,) = ledger
    assert entry.status == "rolled back"
    assert "was announced" in entry.reason
    assert after is factored()


# What runs afterwards


def test_the_module_trains_and_runs_at_other_sizes() -> None:
    graph, _ = fused()
    copy = graph.copy()
    assert isinstance(copy, FxGraph)
    module = copy.module
    x, mask = block_example("mask", 3, 11)
    module(x, mask).square().sum().backward()
    parameters = dict(module.named_parameters())
    assert len(parameters) == 4 + 11 + 6  # norms, attention, feed-forward
    for name, parameter in parameters.items():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("kind", ["fx", "onnx"])
def test_keep_does_not_cut_factors_again(kind: Kind) -> None:
    _, ledger = _run(factored(kind), "flash-svd{keep=0.3}", block_example("mask"))
    assert len(ledger.rewritten) == 2
    assert [entry.announced_error == pytest.approx(0, abs=1e-6) for entry in ledger.rewritten] == [True, True]
    assert [entry.measured_error == pytest.approx(0, abs=1e-5) for entry in ledger.rewritten] == [True, True]


class Hidden(nn.Module):
    """Attention with biases whose keys are hidden by a mask, by numbers and causally, one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = Attention()

    def forward(self, x: Tensor, mask: Tensor, bias: Tensor) -> Tensor:
        q, k, v = (
            self.attention.heads(layer, x, HEADS)
            for layer in (self.attention.query, self.attention.key, self.attention.value)
        )
        scores = (q @ k.transpose(-1, -2) * 0.4 + bias).masked_fill(~mask, -torch.inf)
        weights = scores.softmax(-1)
        y = torch.where(weights.isnan(), 0.0, weights) @ v
        return self.attention.out(y.transpose(1, 2).reshape(*x.shape[:2], HEADS * HEAD))


@pytest.mark.parametrize("kind", ["fx", "onnx"])
def test_keys_hidden_by_a_mask_and_by_numbers_leave_the_bias_of_values_to_the_rest(kind: Kind) -> None:
    bias = rows(1, 1, 7, 7).masked_fill(torch.ones(7, 7).tril(-3).bool(), -torch.inf)
    example = (rows(2, 7, WIDTH), mask_of(7, 3, keys=7), bias)
    fx = capture(seeded(Hidden()), example, None)
    graph: Graph = fx if kind == "fx" else to_onnx(fx, 18)
    factors, _ = _run(graph, "low-rank{keep=0.8,heads=true}", example)
    for before, options in ((graph, f"head_rank={HEAD},blocks=2"), (factors, "blocks=4")):
        after, ledger = _run(before, f"flash-svd{{{options}}}", example)
        assert [entry.status for entry in ledger] == ["rewritten"]
        _close(after, before, example, 1e-5)
