"""The pass low-rank: its options, what it refuses and why, and what it announces."""

from typing import Any

import pytest
import torch
from tiny_models import WIDTH, Chain, Shared, batch, chain, graph_of, site_of
from torch import nn

from regraft.errors import OptionError
from regraft.frontends.torch import capture
from regraft.graph import LinearSite, find_linear_sites
from regraft.ledger import Ledger
from regraft.numerics.moments import Moments
from regraft.passes import LowRank, Reject, Settings, SiteStatistics, run_passes
from regraft.passes.low_rank import LowRankPlan


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"keep": 0.0}, "keep must be above 0 and below 1; got 0.0"),
        ({"keep": 1.0}, "keep must be above 0 and below 1; got 1.0"),
        ({"keep": float("nan")}, "keep must be above 0 and below 1; got nan"),
        ({"rank": 0}, "rank must be at least 1; got 0"),
        ({"rank": -3}, "rank must be at least 1; got -3"),
        ({"energy": 0.0}, "energy must be above 0 and below 1; got 0.0"),
        ({"energy": 1.0}, "energy must be above 0 and below 1; got 1.0"),
        ({"rank": 4, "energy": 0.9}, "rank=4 and energy=0.9 exclude each other; give one"),
        ({"ridge": -0.1}, "ridge must be at least 0; got -0.1"),
        ({"ridge": float("nan")}, "ridge must be at least 0; got nan"),
        ({"ridge": float("inf")}, "ridge must be at least 0; got inf"),
        (
            {"targets": ("re:(",)},
            "'re:(' is not a regular expression: missing ), unterminated subpattern at position 0",
        ),
        ({"exclude": ("ok", "re:*")}, "'re:*' is not a regular expression: nothing to repeat at position 0"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], text: str) -> None:
    with pytest.raises(OptionError) as caught:
        LowRank(**options)
    assert str(caught.value) == f"low-rank: {text}"


def test_a_repetition_that_is_too_large_is_no_regular_expression() -> None:
    with pytest.raises(OptionError, match="is not a regular expression: the repetition number is too large"):
        LowRank(targets=("re:a{99999999999}",))


# What is refused


def _reasons(item: LowRank) -> dict[str, str]:
    sites, _ = item.find(graph_of(Shared))
    refused = {site.name: item.refuse(site) for site in sites}
    return {name: "" if reason is None else reason.reason for name, reason in refused.items()}


def test_heads_are_refused_unless_asked_for() -> None:
    head = "it is a head (classifier); heads=true rewrites it"
    assert _reasons(LowRank()) == {"query": "", "key": "", "classifier": head}
    assert _reasons(LowRank(heads=True)) == {"query": "", "key": "", "classifier": ""}


def test_a_head_that_is_named_as_a_target_is_asked_for() -> None:
    assert _reasons(LowRank(targets=("class*",)))["classifier"] == ""
    assert _reasons(LowRank(targets=("*",)))["classifier"] == ""


def test_layers_that_are_no_targets_or_excluded_are_refused() -> None:
    only_query = {"query": "", "key": "not among the targets", "classifier": "not among the targets"}
    assert _reasons(LowRank(targets=("query",))) == only_query
    reasons = _reasons(LowRank(targets=("query", "key"), exclude=("re:k.*",)))
    assert reasons == {"query": "", "key": "excluded", "classifier": "not among the targets"}


class _Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(7, WIDTH)
        self.up = nn.Linear(WIDTH, 7, bias=False)
        self.up.weight = self.table.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.up(self.table(ids)))


def test_a_layer_whose_weight_is_read_elsewhere_is_refused() -> None:
    graph = capture(_Tied(), (torch.zeros(2, 3, dtype=torch.int64),))
    (site,), _ = find_linear_sites(graph)
    refused = LowRank(targets=("*",)).refuse(site)
    assert refused == Reject("its weight is also read by table, so the dense one would stay")


# What is planned


def _plan(site: LinearSite, **options: Any) -> LowRankPlan | Reject:
    return LowRank(**options).plan(site, None)


def _site(out_features: int, in_features: int, *, bias: bool = True) -> LinearSite:
    return site_of(graph_of(Chain, in_features, out_features, bias=bias), "layers.0")


def test_a_rank_that_would_not_make_the_layer_smaller_is_refused_and_says_so() -> None:
    site = _site(12, 12)
    assert site.break_even_rank == 6
    for rank in (6, 12, 99):
        reason = f"rank must be below 6 for a 12x12 layer to get smaller; got {rank}"
        assert _plan(site, rank=rank) == Reject(reason)
    plan = _plan(site, rank=5)
    assert isinstance(plan, LowRankPlan)
    assert plan.bytes_after < site.bytes


def test_a_share_that_leaves_no_rank_is_refused() -> None:
    assert _plan(_site(12, 12), keep=0.1) == Reject("keep=0.1 leaves rank 0 for the 12x12 layer")
    assert _plan(_site(1, 9), keep=0.9) == Reject("keep=0.9 leaves rank 0 for the 1x9 layer")


def test_an_energy_that_needs_too_high_a_rank_is_refused() -> None:
    outcome = _plan(_site(12, 12), energy=0.999)
    assert isinstance(outcome, Reject)
    assert outcome.reason.endswith("would not be smaller than the dense 12x12 layer")


def test_a_new_bias_that_eats_up_the_saving_is_refused() -> None:
    site = _site(12, 12, bias=False)  # 144 numbers; rank 5 holds 120, a bias 12 more: still smaller
    site_of_few = _site(9, 4, bias=False)  # 36 numbers; rank 2 holds 26, a bias 9 more: 35
    narrow = _site(12, 3, bias=False)  # 36 numbers; rank 2 holds 30, a bias 12 more: 42
    rows = batch(3, 20)
    for layer, smaller in ((site, True), (site_of_few, True), (narrow, False)):
        item = LowRank(rank=layer.break_even_rank - 1)
        outcome = item.plan(layer, _statistics(rows[:, : layer.in_features]))
        assert isinstance(outcome, LowRankPlan) == smaller
    assert outcome == Reject("rank 2 with its new bias would not be smaller than the dense 12x3 layer")


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_refused(number: float) -> None:
    model = Chain(WIDTH, WIDTH)
    with torch.no_grad():
        model.layers[0].weight[1, 2] = number
    site = site_of(capture(model, (batch(0),)), "layers.0")
    for options in ({}, {"energy": 0.5}):
        assert _plan(site, **options) == Reject("its weight holds numbers that are not finite")
    rows = batch(3, 20)
    rows[4, 5] = number
    outcome = LowRank().plan(_site(12, 12), _statistics(rows))
    assert outcome == Reject("its calibration inputs hold numbers that are not finite")


def _statistics(rows: torch.Tensor) -> SiteStatistics:
    statistics = SiteStatistics(Moments(rows.shape[-1]), torch.Generator().manual_seed(0))
    statistics.update(rows)
    return statistics


@pytest.mark.parametrize("options", [{"keep": 0.5}, {"rank": 3}, {"energy": 0.5}])
def test_a_plan_says_what_it_will_be_and_announces_the_tail(options: dict[str, Any]) -> None:
    site = _site(10, 14)
    plan = _plan(site, **options)
    assert isinstance(plan, LowRankPlan)
    rank = plan.factors.rank
    energies = torch.linalg.svdvals(site.weight.double()).square()
    assert plan.op == "lowrank_linear"
    assert plan.after == f"rank {rank}"
    assert plan.announced_on == "isotropic"
    assert plan.announced_error == pytest.approx(float(energies[rank:].sum() / energies.sum()) ** 0.5)
    assert plan.bytes_after == 4 * (rank * (10 + 14) + 10)
    if "energy" in options:
        assert float(energies[:rank].sum()) >= 0.5 * float(energies.sum()) > float(energies[: rank - 1].sum())


def test_with_calibration_it_announces_the_error_on_the_rows() -> None:
    site = _site(10, 14)
    rows = batch(3, 40, 14) * torch.linspace(0.1, 3, 14)
    plan = LowRank(rank=3).plan(site, _statistics(rows))
    assert isinstance(plan, LowRankPlan)
    y = site.reference(rows)
    z = rows.double() @ plan.factors.down.double().t() @ plan.factors.up.double().t()
    assert plan.factors.bias is not None
    assert site.bias is not None
    product = (y - site.bias.double()).norm()
    assert plan.announced_on == "calibration"
    assert plan.announced_error == pytest.approx(float((y - z - plan.factors.bias.double()).norm() / product), rel=1e-4)


# What is written


def _run(graph: Any, item: LowRank, calibration: Any = None) -> tuple[Any, Ledger]:
    return run_passes(graph, [item], Settings(calibration=calibration))


def test_it_writes_one_op_a_layer_and_the_ledger_says_so() -> None:
    rewritten, ledger = _run(chain(3), LowRank(rank=3))
    assert [node.op for node in rewritten.nodes()] == ["lowrank_linear", "tanh"] * 3
    for place, entry in enumerate(ledger):
        assert (entry.pass_name, entry.site, entry.status) == ("low-rank", f"layers.{place}", "rewritten")
        assert (entry.before, entry.after, entry.op) == ("12x12", "rank 3", "lowrank_linear")
        assert (entry.bytes_before, entry.bytes_after) == (4 * 156, 4 * 84)
        assert entry.output in {value.key for node in rewritten.nodes() for value in node.outputs}
    held = sum(tensor.numel() for tensor in map(rewritten.constant, rewritten.constants()) if tensor is not None)
    assert held * 4 == sum(entry.bytes_after or 0 for entry in ledger)


def test_an_unchanged_bias_stays_the_same_constant() -> None:
    graph = chain(1)
    rewritten, _ = _run(graph, LowRank(rank=3))
    (bias,) = (value for value in graph.constants() if value.name == "layers.0.bias")
    (kept,) = (value for value in rewritten.constants() if value.name == "layers.0.bias")
    assert kept.key == bias.key
    before, after = graph.constant(bias), rewritten.constant(kept)
    assert before is not None
    assert after is not None
    assert after.data_ptr() == before.data_ptr()


@pytest.mark.parametrize("bias", [True, False])
def test_a_mended_bias_keeps_the_mean_output_of_the_rewritten_graph(bias: bool) -> None:
    graph = chain(1, bias=bias)
    rows = batch(5, 64) + 2.0
    rewritten, _ = _run(graph, LowRank(rank=2), [(rows,)])
    site = site_of(graph, "layers.0")
    (dense,), (thin,) = (item.evaluate([site.output], {site.input: rows}) for item in (graph, rewritten))
    assert float((dense - thin).norm() / dense.norm()) > 0.05
    torch.testing.assert_close(dense.mean(0), thin.mean(0), rtol=1e-4, atol=1e-4)
