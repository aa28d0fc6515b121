"""The pass manager: what breaks its promise is caught, named and taken back, and nothing else is."""

import math
import warnings
from typing import Any

import pytest
import torch
from faulty_passes import Exact, Fault, Faulty
from tiny_models import WIDTH, Chain, Shared, Straight, Weightless, batch, chain, graph_of, site_of

from regraft.errors import GraphError, InputError, NoMatchError, RegraftWarning, VerificationError
from regraft.frontends.torch import FxGraph, capture
from regraft.graph import Graph, LinearSite, find_linear_sites
from regraft.ledger import Ledger
from regraft.passes import AnyPass, LowRank, Settings, run_passes
from regraft.passes.low_rank import LowRankPlan

CALIBRATION = [(batch(seed, 16),) for seed in range(10, 13)]

FAULTS: dict[Fault, str] = {
    "writes wrong factors": "measured error ",
    "announces too little": "measured error ",
    "announces nan": "measured error ",
    "writes nan": "measured error inf on ",
    "loses the bias": "",  # another reason on random rows than on calibration rows
    "writes another shape": "its result is [",
    "raises in build": "build raised ZeroDivisionError: this is a bug of the pass",
    "raises halfway through build": "build raised ZeroDivisionError: this is a bug of the pass",
    "changes nothing": "build changed nothing",
}


def _run(graph: FxGraph, *passes: AnyPass, **settings: Any) -> tuple[FxGraph, Ledger]:
    rewritten, ledger = run_passes(graph, passes, Settings(**settings))
    assert isinstance(rewritten, FxGraph)
    return rewritten, ledger


def _ops(graph: FxGraph) -> list[str]:
    return [node.op for node in graph.nodes()]


def _statuses(ledger: Ledger) -> dict[str, str]:
    return {entry.site: entry.status for entry in ledger}


# Broken promises


@pytest.mark.parametrize("calibration", [None, CALIBRATION], ids=["random", "calibration"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_wrong_rewrite_is_taken_back_alone_and_named_with_its_reason(fault: Fault, calibration: Any) -> None:
    graph = chain(3)
    rewritten, ledger = _run(graph, Faulty(fault=fault), calibration=calibration)
    assert _statuses(ledger) == {"layers.0": "rewritten", "layers.1": "rolled back", "layers.2": "rewritten"}
    (lost,) = ledger.rolled_back
    assert lost.reason.startswith(FAULTS[fault])
    assert lost.pass_name == "faulty"
    assert _ops(rewritten) == ["lowrank_linear", "tanh", "linear", "tanh", "lowrank_linear", "tanh"]
    assert "faulty" not in {node.metadata.get("regraft.pass") for node in rewritten.nodes() if node.op == "linear"}
    good, _ = _run(graph, LowRank(rank=3, exclude=("layers.1",)), calibration=calibration)
    torch.testing.assert_close(rewritten.run((batch(1),))[0], good.run((batch(1),))[0])


def test_the_reason_gives_the_measured_error_the_inputs_and_what_was_announced() -> None:
    _, ledger = _run(chain(3), Faulty(fault="writes wrong factors"))
    (lost,) = ledger.rolled_back
    assert lost.measured_error is not None
    assert lost.announced_error is not None
    allowed = lost.announced_error * 1.5 + 1e-4
    assert lost.measured_error > allowed
    reason = f"measured error {lost.measured_error:.3g} on random inputs, at most {allowed:.3g} was announced"
    assert lost.reason == reason
    assert f"layers.1  rolled back: {reason}" in str(ledger)


def test_a_lost_bias_does_not_hide_below_a_large_announced_error() -> None:
    _, ledger = _run(chain(3), Faulty(fault="loses the bias"))
    (lost,) = ledger.rolled_back
    assert lost.measured_error is not None
    assert lost.announced_error is not None
    assert lost.measured_error < lost.announced_error * 1.5
    assert lost.reason.startswith("its results are off by 0.")
    assert lost.reason.endswith(" can be chance")


def test_a_result_of_another_shape_is_named_with_the_shape_that_is_needed() -> None:
    _, ledger = _run(chain(3), Faulty(fault="writes another shape"))
    assert ledger.rolled_back[0].reason == "its result is [256, 24], not [256, 12]"


def test_a_faultless_pass_loses_nothing() -> None:
    for calibration in (None, CALIBRATION):
        _, ledger = _run(chain(3), Faulty(fault="none"), calibration=calibration)
        assert not ledger.rolled_back
        kind = "random" if calibration is None else "calibration"
        assert {entry.checked_on for entry in ledger} == {kind}


def test_every_wrong_site_is_found_and_with_all_of_them_gone_the_graph_is_the_one_before() -> None:
    for fault in FAULTS:
        graph = chain(3)
        rewritten, ledger = _run(graph, Faulty(fault=fault, at="*"))
        assert len(ledger.rolled_back) == 3, fault
        assert rewritten is graph


@pytest.mark.parametrize("fault", FAULTS)
def test_with_raise_a_wrong_rewrite_is_an_error_that_names_pass_and_layer(fault: Fault) -> None:
    graph = chain(3)
    before = graph.snapshot()
    with pytest.raises(VerificationError) as caught:
        _run(graph, Faulty(fault=fault), on_violation="raise")
    assert str(caught.value).startswith(f"faulty: layers.1: {FAULTS[fault]}")
    assert "\n" not in str(caught.value)
    assert graph.snapshot() == before
    if fault == "raises in build":
        assert isinstance(caught.value.__cause__, ZeroDivisionError)


@pytest.mark.parametrize("fault", ["writes wrong factors", "announces too little"])
def test_with_warn_a_wrong_rewrite_stays_with_a_warning_and_a_note(fault: Fault) -> None:
    with pytest.warns(
        RegraftWarning, match=r"^faulty: layers\.1: measured error .*; kept, as on_violation='warn' asks$"
    ):
        rewritten, ledger = _run(chain(3), Faulty(fault=fault), on_violation="warn")
    assert not ledger.rolled_back
    assert _ops(rewritten).count("lowrank_linear") == 3
    (note,) = ledger.passes[0].notes
    assert note.startswith("layers.1: measured error ")


@pytest.mark.parametrize("fault", ["raises in build", "raises halfway through build"])
def test_many_failing_builds_cost_no_more_copies_of_the_graph_than_a_few(
    fault: Fault, monkeypatch: pytest.MonkeyPatch
) -> None:
    copies: list[FxGraph] = []
    copy = FxGraph.copy
    monkeypatch.setattr(FxGraph, "copy", lambda graph: copies.append(graph) or copy(graph))
    _, ledger = run_passes(chain(8), [Faulty(fault=fault, at="layers.[0-6]")], Settings())
    assert [entry.site for entry in ledger.rolled_back] == [f"layers.{place}" for place in range(7)]
    assert [entry.site for entry in ledger.rewritten] == ["layers.7"]
    assert len(copies) == 3


def test_a_build_that_fails_only_because_of_another_that_failed_before_is_kept() -> None:
    """The first leaves its layer behind half rewritten, and the second cannot bear such a graph."""

    class Touchy(Faulty):
        def build(self, graph: Graph, site: LinearSite, plan: LowRankPlan) -> None:
            if site.name == "layers.2" and any(
                node.scope == "layers.1" and node.op != "linear" for node in graph.nodes()
            ):
                raise ZeroDivisionError("what is this?")
            super().build(graph, site, plan)

    _, ledger = run_passes(chain(4), [Touchy(fault="raises halfway through build")], Settings())
    assert [entry.site for entry in ledger.rolled_back] == ["layers.1"]
    assert [entry.site for entry in ledger.rewritten] == ["layers.0", "layers.2", "layers.3"]


@pytest.mark.parametrize("fault", ["raises in build", "raises halfway through build", "changes nothing"])
def test_with_warn_what_was_not_built_is_taken_back_all_the_same(fault: Fault) -> None:
    with pytest.warns(RegraftWarning, match=r"^faulty: layers\.1: .*; taken back, for it cannot be kept$"):
        rewritten, ledger = _run(chain(3), Faulty(fault=fault), on_violation="warn")
    assert _statuses(ledger) == {"layers.0": "rewritten", "layers.1": "rolled back", "layers.2": "rewritten"}
    assert _ops(rewritten).count("lowrank_linear") == 2


def test_a_graph_that_is_not_valid_afterwards_takes_all_rewrites_of_the_pass_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    graph = chain(2)

    def _validate(self: FxGraph) -> None:
        if "lowrank_linear" in _ops(self):
            raise GraphError("node 'linear' reads what comes after it")

    monkeypatch.setattr(FxGraph, "validate", _validate)
    what = "the rewritten graph is not valid: node 'linear' reads what comes after it"
    rewritten, ledger = _run(graph, LowRank())
    assert rewritten is graph
    assert [entry.reason for entry in ledger.rolled_back] == [what, what]
    with pytest.raises(VerificationError, match=r"^low-rank: the rewritten graph is not valid: "):
        _run(graph, LowRank(), on_violation="raise")
    with pytest.warns(RegraftWarning, match="taken back, for it cannot be kept"):
        rewritten, _ = _run(graph, LowRank(), on_violation="warn")
    assert rewritten is graph


# Promises that are kept


def test_layers_that_read_each_other_directly_are_each_checked_on_their_own() -> None:
    graph = graph_of(Straight)
    rewritten, ledger = _run(graph, Exact())
    assert _statuses(ledger) == dict.fromkeys(("first", "second", "third"), "rewritten")
    assert max(entry.measured_error or 0.0 for entry in ledger) < 1e-6
    _, ledger = _run(graph, Faulty(fault="writes wrong factors", at="second"))
    assert _statuses(ledger) == {"first": "rewritten", "second": "rolled back", "third": "rewritten"}
    assert _ops(rewritten)[:3] == ["lowrank_linear"] * 3


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [1.0, 1e3])
def test_an_exact_rewrite_holds_in_every_type_also_beside_a_huge_bias(dtype: torch.dtype, size: float) -> None:
    model = Chain(WIDTH, WIDTH).to(dtype)
    with torch.no_grad():
        model.layers[0].bias.copy_(torch.linspace(-size, size, WIDTH))
    _, ledger = _run(capture(model, (batch(0).to(dtype),)), Exact())
    assert _statuses(ledger) == {"layers.0": "rewritten"}


def test_an_exact_promise_is_held_to_rounding() -> None:
    class Nearly(Exact):
        """Promises exactness and is off by a thousandth."""

        def plan(self, site: Any, statistics: Any) -> Any:
            plan = super().plan(site, statistics)
            assert not isinstance(plan, Exception)
            plan.factors.down.mul_(1.001)
            return plan

    _, ledger = _run(chain(2), Nearly())
    assert len(ledger.rolled_back) == 2


def test_a_faithful_rewrite_survives_rows_that_are_rare_and_huge() -> None:
    """The huge rows decide what is announced, and hardly any of them is in the sample that is checked."""
    rows = batch(3, 4000)
    rows[::1000] = 3000 * batch(4, 1)
    _, ledger = _run(chain(1), LowRank(rank=2, centred=False), calibration=[(rows,)])
    assert _statuses(ledger) == {"layers.0": "rewritten"}


def test_zero_weights_and_zero_inputs_are_no_violation() -> None:
    model = Chain(WIDTH, WIDTH)
    torch.nn.init.zeros_(model.layers[0].weight)
    _, ledger = _run(capture(model, (batch(0),)), LowRank())
    assert not ledger.rolled_back
    _, ledger = _run(chain(2), LowRank(), calibration=[(torch.zeros(4, WIDTH),)])
    assert not ledger.rolled_back


# What is left alone


def test_the_graph_that_was_handed_in_is_not_changed() -> None:
    graph = chain(3)
    text, y = str(graph.snapshot()), graph.run((batch(1),))[0]
    kept = {value.key: graph.constant(value) for value in graph.constants()}
    rewritten, _ = _run(graph, LowRank(), calibration=CALIBRATION)
    assert str(graph.snapshot()) == text
    assert str(rewritten.snapshot()) != text
    torch.testing.assert_close(graph.run((batch(1),))[0], y, rtol=0, atol=0)
    for value in graph.constants():
        now, then = graph.constant(value), kept[value.key]
        assert now is not None
        assert then is not None
        assert now.data_ptr() == then.data_ptr()


def test_a_pass_run_twice_changes_nothing_the_second_time() -> None:
    once, _ = _run(graph_of(Shared), LowRank())
    again, ledger = _run(once, LowRank(), strict=False)
    assert again is once
    assert not ledger.rewritten
    twice, ledger = _run(graph_of(Shared), LowRank(), LowRank(), strict=False)
    assert str(twice.snapshot()) == str(once.snapshot())
    assert [entry.pass_place for entry in ledger] == [0, 0, 0, 1]
    totals = [line for line in str(ledger).splitlines() if line.startswith("low-rank: ")]
    assert totals[0].startswith("low-rank: 2 rewritten, 1 kept in ")
    assert totals[1].startswith("low-rank: 1 kept in ")
    assert totals[2].startswith("low-rank: none of 1 layers in Shared can be rewritten: it is a head (classifier)")


# Nothing to do


def test_a_pass_that_finds_nothing_is_an_error_with_the_nearest_misses() -> None:
    graph = graph_of(Weightless)
    reason = "neither operand is a constant (the right one is transpose) (1x)"
    with pytest.raises(NoMatchError) as caught:
        _run(graph, LowRank())
    assert str(caught.value) == f"low-rank: no site in Weightless; nearest: {reason}"
    assert caught.value.hint == "`regraft explain MODEL low-rank` lists every reason"


def test_a_pass_that_refuses_everything_is_an_error_with_the_reasons() -> None:
    with pytest.raises(NoMatchError) as caught:
        _run(graph_of(Shared), LowRank(targets=("query",), rank=12))
    assert str(caught.value) == (
        "low-rank: none of 3 layers in Shared can be rewritten: not among the targets (2x); "
        "rank must be below 6 for a 12x12 layer to get smaller; got 12 (1x)"
    )


def test_reasons_beyond_four_are_counted() -> None:
    graph = graph_of(Chain, 12, 13, 14, 15, 16, 17, 18)
    with pytest.raises(NoMatchError, match=r"\(1x\); and 2 more reasons$"):
        _run(graph, LowRank(keep=0.01))


def test_without_strict_nothing_to_do_is_a_note_and_later_passes_run() -> None:
    graph = graph_of(Shared)
    rewritten, ledger = _run(graph, LowRank(keep=0.01), LowRank(), strict=False)
    assert ledger.passes[0].notes == (
        "none of 3 layers in Shared can be rewritten: keep=0.01 leaves rank 0 for the 12x12 layer (2x); "
        "it is a head (classifier); heads=true rewrites it (1x)",
    )
    assert len(ledger.rewritten) == 2
    assert rewritten is not graph
    same, ledger = _run(graph_of(Weightless), LowRank(), strict=False)
    assert same is graph_of(Weightless)
    assert len(ledger) == 0
    assert "low-rank: no site in Weightless; nearest: " in str(ledger)


def test_the_ledger_lists_sites_in_graph_order_whatever_became_of_them() -> None:
    item = Faulty(fault="writes nan", at="layers.0", exclude=("layers.1",))
    _, ledger = _run(chain(4), item)
    assert [(entry.site, entry.status) for entry in ledger] == [
        ("layers.0", "rolled back"),
        ("layers.1", "kept"),
        ("layers.2", "rewritten"),
        ("layers.3", "rewritten"),
    ]


# Calibration


def test_batches_come_from_a_list_a_generator_or_anything_that_can_be_iterated() -> None:
    class Loader:
        def __iter__(self) -> Any:
            return iter(CALIBRATION)

    def _signature(calibration: Any) -> list[tuple[str, float | None]]:
        _, ledger = _run(graph_of(Shared), LowRank(), LowRank(heads=True), calibration=calibration)
        return [(entry.site, entry.measured_error) for entry in ledger]

    wanted = _signature(CALIBRATION)
    assert len(wanted) == 4
    for calibration in (tuple(CALIBRATION), Loader(), (item for item in CALIBRATION)):
        assert _signature(calibration) == wanted


@pytest.mark.parametrize("calibration", [[], (), iter(())])
def test_calibration_without_a_batch_is_refused(calibration: Any) -> None:
    with pytest.raises(InputError) as caught:
        _run(chain(2), LowRank(), calibration=calibration)
    assert str(caught.value) == "calibration has no batch; at least one is needed"


def test_a_pass_that_needs_calibration_says_so() -> None:
    class Needy(LowRank):
        """Cannot do without."""

        name = "needy"
        needs = "calibration"

    with pytest.raises(InputError) as caught:
        _run(chain(2), Needy())
    assert str(caught.value) == "needy needs calibration inputs; pass calibration=batches"
    _, ledger = _run(chain(2), Needy(), calibration=CALIBRATION)
    assert len(ledger.rewritten) == 2


def test_a_pass_that_makes_no_use_of_calibration_does_not_run_the_model_on_it() -> None:
    class Unused:
        def __iter__(self) -> Any:
            raise AssertionError("nothing to calibrate")

    _run(chain(2), Exact(), calibration=Unused())
    with pytest.raises(NoMatchError):
        _run(chain(2), LowRank(targets=("none",)), calibration=Unused())


# Errors of the whole model


def test_the_error_of_the_model_is_recorded_after_every_pass() -> None:
    graph = graph_of(Shared)
    probes = [(batch(20),), (batch(21),)]
    rewritten, ledger = _run(graph, LowRank(rank=3), LowRank(rank=2, heads=True), probes=probes)
    first, second = (record.model_error for record in ledger.passes)
    assert first is not None
    assert second is not None
    assert 0 < first < second
    assert ledger.model_error == second
    pairs = [(graph.run(probe)[0][0].double(), rewritten.run(probe)[0][0].double()) for probe in probes]
    difference = sum(float((y - z).square().sum()) for y, z in pairs)
    assert second == pytest.approx(math.sqrt(difference / sum(float(y.square().sum()) for y, _ in pairs)))


def test_without_probes_the_error_of_the_model_is_not_known() -> None:
    _, ledger = _run(chain(2), LowRank())
    assert ledger.model_error is None
    assert "model output error" not in str(ledger)


# Reproducible


def test_equal_seeds_give_equal_ledgers_and_weights() -> None:
    def _outcome(seed: int) -> tuple[list[Any], list[torch.Tensor]]:
        rewritten, ledger = _run(chain(3), LowRank(), calibration=[(batch(5, 2000),)], seed=seed)
        weights = [tensor for tensor in map(rewritten.constant, rewritten.constants()) if tensor is not None]
        return [list(ledger), [record.notes for record in ledger.passes]], weights

    (first, weights), (second, same), (other, _) = _outcome(0), _outcome(0), _outcome(1)
    assert first == second
    assert all(torch.equal(a, b) for a, b in zip(weights, same, strict=True))
    assert first != other  # another sample of the rows gives another measured error


def test_the_check_on_random_rows_depends_on_the_seed_alone() -> None:
    errors = [[entry.measured_error for entry in _run(chain(2), LowRank(), seed=seed)[1]] for seed in (0, 0, 1)]
    assert errors[0] == errors[1] != errors[2]


def test_nothing_is_warned_of_and_the_global_random_state_is_left_alone() -> None:
    before = torch.random.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _run(chain(3), Faulty(fault="writes nan"), calibration=CALIBRATION)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_the_origin_of_every_new_node_is_written_on_it() -> None:
    rewritten, ledger = _run(graph_of(Shared), LowRank())
    marked = {
        node.metadata["regraft.site"]: node.metadata["regraft.pass"]
        for node in rewritten.nodes()
        if "regraft.site" in node.metadata
    }
    assert marked == {entry.site: "low-rank" for entry in ledger.rewritten}
    assert not find_linear_sites(rewritten)[0][0].name.startswith("query")
    assert site_of(rewritten, "classifier").name == "classifier"
