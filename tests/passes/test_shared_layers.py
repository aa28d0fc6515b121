"""Layers that are called several times, and layers of one weight: rewritten once, everywhere or nowhere."""

from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import onnx
import onnx_ir as ir
import pytest
import torch
from faulty_passes import Faulty
from torch import Tensor, nn

import regraft
from regraft.backends.onnxruntime import export_graph
from regraft.diff import diff
from regraft.errors import VerificationError
from regraft.frontends.onnx import load
from regraft.frontends.torch import capture
from regraft.graph import Graph, LinearSite, find_linear_sites
from regraft.ledger import Ledger
from regraft.passes import LowRank, Monarch, Settings, ShiftAdd, resolve_passes, run_passes
from regraft.passes._explain import explain_graph
from regraft.passes._statistics import collect
from regraft.passes.low_rank import LowRankPlan

WIDTH, CALLS = 24, 3
PASSES = (LowRank(rank=5), Monarch(blocks=4, slower=True), ShiftAdd(small=True), "llm-int8{small=true}")


class Recurrent(nn.Module):
    """One layer called three times, as ALBERT does, and one layer behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(CALLS):
            x = x + torch.tanh(self.layer(x))
        return torch.tanh(self.out(x))


class Tied(nn.Module):
    """Two layers of one weight and bias, and a third one of the same weight without the bias where asked for."""

    def __init__(self, *, third: bool = False) -> None:
        super().__init__()
        self.first, self.second, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.second.weight, self.second.bias = self.first.weight, self.first.bias
        self.third = nn.Linear(WIDTH, WIDTH, bias=False)
        if third:
            self.third.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.second(torch.tanh(self.first(x))))
        return torch.tanh(self.out(torch.tanh(self.third(x))))


def seeded(cls: type[nn.Module], **options: Any) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return cls(**options).eval()


def batch(seed: int, rows: int = 40) -> Tensor:
    return torch.randn(rows, WIDTH, generator=torch.Generator().manual_seed(seed))


@lru_cache(maxsize=8)
def graph_of(kind: str, cls: type[nn.Module] = Recurrent, *, third: bool = False) -> Graph:
    """A captured model, or its ONNX export; tests must not rewrite it, passes work on copies."""
    module = seeded(cls, third=True) if third else seeded(cls)
    if kind == "fx":
        return capture(module, (batch(0),))
    with TemporaryDirectory() as folder:
        path = regraft.load(module, example_inputs=batch(0)).export(Path(folder) / "dense.onnx")
        return load(onnx.load(path))


@dataclass(frozen=True)
class Result:
    graph: Graph
    ledger: Ledger


def rewritten(graph: Graph, *passes: Any, calibrated: bool = True, **settings: Any) -> Result:
    batches = [(batch(1),), (batch(2),)] if calibrated else None
    return Result(*run_passes(graph, resolve_passes(list(passes)), Settings(calibration=batches, **settings)))


def floats(graph: Graph) -> int:
    return sum(graph.constant(value).numel() for value in graph.constants())  # type: ignore[union-attr]


@pytest.fixture(params=["fx", "onnx"])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.mark.parametrize("item", PASSES, ids=["low-rank", "monarch", "shift-add", "llm-int8"])
def test_all_calls_read_one_set_of_new_weights(kind: str, item: Any) -> None:
    result = rewritten(graph_of(kind), item)
    assert [(entry.site, entry.status) for entry in result.ledger] == [("layer", "rewritten"), ("out", "rewritten")]
    written = [node for node in result.graph.nodes() if node.metadata.get("regraft.site") == "layer"]
    assert len(written) == CALLS
    weights = [[value.key for value in node.inputs if value and value.role == "constant"] for node in written]
    assert weights[0] == weights[1] == weights[2]
    assert len(weights[0]) >= 3


def test_module_and_file_hold_the_factors_once_and_the_ledger_counts_their_bytes_once(tmp_path: Path) -> None:
    result = rewritten(graph_of("fx"), LowRank(rank=5, centred=False))
    shapes = {
        name: tuple(tensor.shape) for name, tensor in result.graph.module.named_parameters(remove_duplicate=False)
    }
    factors = {"down": (5, WIDTH), "up": (WIDTH, 5)}
    wanted = {f"{layer}.{name}": shape for layer in ("layer", "out") for name, shape in factors.items()}
    assert shapes == {**wanted, "layer.bias": (WIDTH,)}
    exported = onnx.load(export_graph(result.graph, tmp_path / "small.onnx", opset=None, functions="keep", metadata={}))
    stored = [tuple(tensor.dims) for tensor in exported.graph.initializer if len(tensor.dims) == 2]
    assert sorted(stored) == [(5, WIDTH)] * 2 + [(WIDTH, 5)] * 2
    layer, _ = result.ledger
    assert (layer.bytes_before, layer.bytes_after) == (4 * (WIDTH * WIDTH + WIDTH), 4 * (10 * WIDTH + WIDTH))


def test_the_ledger_says_how_often_a_layer_is_called_in_one_line(kind: str) -> None:
    result = rewritten(graph_of(kind), LowRank(rank=5))
    line, _, total = str(result.ledger).splitlines()[-3:]
    assert f"layer  {WIDTH}x{WIDTH}, called 3 times -> rank 5" in line
    assert total.startswith("low-rank{rank=5}: 2 rewritten")
    assert Ledger.from_dict(result.ledger.to_dict()) == result.ledger


def test_both_kinds_of_graph_give_the_same_factors_and_outputs() -> None:
    fx, file = (rewritten(graph_of(kind), LowRank(rank=5)) for kind in ("fx", "onnx"))
    for one, other in zip(fx.ledger, file.ledger, strict=True):
        assert (one.site, one.before, one.after, one.bytes_after) == (
            other.site,
            other.before,
            other.after,
            other.bytes_after,
        )
        assert one.measured_error == pytest.approx(other.measured_error, rel=1e-3)
    torch.testing.assert_close(fx.graph.run((batch(9),))[0], file.graph.run((batch(9),))[0], rtol=1e-4, atol=1e-5)


def test_moments_are_those_of_the_inputs_of_all_calls(kind: str) -> None:
    graph = graph_of(kind)
    site = find_linear_sites(graph)[0][0]
    assert len(set(site.inputs)) == CALLS
    found = collect(graph, [site], [(batch(1),), (batch(2),)], seed=0)[site.inputs]
    rows = torch.cat([graph.run((batch(seed),), list(site.inputs))[1][key] for seed in (1, 2) for key in site.inputs])
    torch.testing.assert_close(found.moments.second, rows.double().t() @ rows.double())
    assert torch.equal(found.sample, rows)


def test_calls_with_full_calibration_are_fitted_to_all_of_their_inputs() -> None:
    """The factors of a layer that is called thrice are not those that its first input alone would give."""
    together = rewritten(graph_of("fx"), LowRank(rank=5)).graph.module.get_parameter("layer.down")

    class Once(Recurrent):
        def forward(self, x: Tensor) -> Tensor:
            return torch.tanh(self.out(x + torch.tanh(self.layer(x))))

    alone = rewritten(graph_of("fx", Once), LowRank(rank=5)).graph.module.get_parameter("layer.down")
    assert not torch.allclose(together.detach().abs(), alone.detach().abs(), atol=1e-3)


def test_gradients_of_the_shared_factors_are_summed_over_the_calls() -> None:
    result = rewritten(graph_of("fx"), LowRank(rank=5))
    model, x = result.graph.module, batch(3)
    model(x).square().sum().backward()
    found = model.get_parameter("layer.up").grad
    weights = {name: tensor.detach() for name, tensor in model.named_parameters()}
    up = [weights["layer.up"].clone().requires_grad_() for _ in range(CALLS)]
    for call in range(CALLS):
        x = x + torch.tanh(x @ weights["layer.down"].t() @ up[call].t() + weights["layer.bias"])
    torch.tanh(x @ weights["out.down"].t() @ weights["out.up"].t() + weights["out.bias"]).square().sum().backward()
    torch.testing.assert_close(found, sum(copy.grad for copy in up), rtol=1e-4, atol=1e-4)


def test_a_second_run_of_the_same_pass_finds_nothing_new(kind: str) -> None:
    once = rewritten(graph_of(kind), LowRank(rank=5))
    twice = rewritten(graph_of(kind), LowRank(rank=5), LowRank(rank=5), strict=False)
    assert str(twice.graph.snapshot()) == str(once.graph.snapshot())


def test_shared_factors_are_quantized_once_by_a_later_pass(kind: str) -> None:
    both = rewritten(graph_of(kind), LowRank(rank=5), ShiftAdd(small=True, activations="none"))
    later = [(entry.site, entry.before) for entry in both.ledger if entry.pass_name == "shift-add"]
    assert later[:2] == [
        ("layer.down", f"5x{WIDTH}, called 3 times"),
        ("layer.up", f"{WIDTH}x5, called 3 times"),
    ]
    codes = [value for value in both.graph.constants() if "codes" in value.name]
    assert len(codes) == 4


def test_copies_that_an_exporter_made_of_one_weight_are_rewritten_as_one() -> None:
    file = ir.to_proto(graph_of("onnx").model)  # type: ignore[attr-defined]
    calls = [node for node in file.graph.node if node.op_type == "Gemm"][:CALLS]
    (weight,) = [tensor for tensor in file.graph.initializer if tensor.name == calls[0].input[1]]
    for place, call in enumerate(calls[1:]):
        file.graph.initializer.add().CopyFrom(weight)
        file.graph.initializer[-1].name = call.input[1] = f"copy{place}"
    result = rewritten(load(file), LowRank(rank=5))
    assert [entry.before for entry in result.ledger] == [f"{WIDTH}x{WIDTH}, called 3 times", f"{WIDTH}x{WIDTH}"]
    assert floats(result.graph) == 2 * 10 * WIDTH + 2 * WIDTH


def test_a_shared_layer_that_is_kept_is_written_once_whatever_its_size(tmp_path: Path) -> None:
    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(WIDTH, 96), nn.Linear(96, WIDTH)

        def forward(self, x: Tensor) -> Tensor:
            for _ in range(CALLS):
                x = torch.tanh(self.down(torch.tanh(self.up(x))))
            return x

    file = onnx.load(
        regraft.load(seeded(Wide), example_inputs=batch(0).reshape(2, 20, WIDTH)).export(tmp_path / "dense.onnx")
    )
    assert sorted(tuple(tensor.dims) for tensor in file.graph.initializer if len(tensor.dims) == 2) == [
        (WIDTH, 96),
        (96, WIDTH),
    ]


def test_explain_finds_a_layer_by_the_name_of_one_that_shares_its_weight() -> None:
    (finding,) = explain_graph(graph_of("fx", Tied), LowRank(rank=5), "second").findings
    assert (finding.site, finding.verdict) == ("first", "would rewrite")
    assert "shared by 2 layers" in finding.detail


# Several layers of one weight


def test_layers_of_one_weight_and_bias_are_rewritten_together(kind: str) -> None:
    result = rewritten(graph_of(kind, Tied), LowRank(rank=5))
    entries = {entry.site: entry for entry in result.ledger}
    assert set(entries) == {"first", "third", "out"}
    assert entries["first"].before == f"{WIDTH}x{WIDTH}, shared by 2 layers"
    assert {entry.status for entry in result.ledger} == {"rewritten"}
    assert floats(result.graph) == 3 * 10 * WIDTH + 3 * WIDTH  # with calibration, each layer has a bias
    sites = [node.metadata["regraft.site"] for node in result.graph.nodes() if "regraft.site" in node.metadata]
    assert sites == ["first", "second", "third", "out"]


def test_a_tied_pair_keeps_the_names_of_the_first_layer() -> None:
    result = rewritten(graph_of("fx", Tied), LowRank(rank=5, centred=False))
    names = [name for name, _ in result.graph.module.named_parameters()]
    assert [name for name in names if name.startswith("first")] == ["first.bias", "first.down", "first.up"]
    assert not [name for name in names if name.startswith("second") and "bias" not in name]


def test_a_weight_that_another_layer_reads_without_the_bias_stays(kind: str) -> None:
    result = rewritten(graph_of(kind, Tied, third=True), LowRank(rank=5))
    assert [(entry.site, entry.reason) for entry in result.ledger.kept] == [
        ("first", "its weight is also read by third, so the dense one would stay"),
        ("third", "its weight is also read by first, so the dense one would stay"),
    ]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"exclude": ("second",)}, "it shares its weight with second, which is excluded"),
        ({"exclude": ("first",)}, "excluded; second shares its weight and is kept with it"),
        ({"exclude": ("first", "second")}, "excluded"),
        ({"targets": ("first", "out")}, "it shares its weight with second, which is not among the targets"),
        ({"targets": ("second", "out")}, "not among the targets; second shares its weight and is kept with it"),
        ({"targets": ("out",)}, "not among the targets"),
    ],
)
def test_a_layer_is_kept_with_one_that_shares_its_weight(options: Any, reason: str, kind: str) -> None:
    result = rewritten(graph_of(kind, Tied), LowRank(rank=5, **options))
    assert {entry.site: entry.reason for entry in result.ledger.kept}["first"] == reason
    assert sum(node.op == "lowrank_linear" for node in result.graph.nodes()) == len(result.ledger.rewritten)


def test_a_layer_whose_last_call_is_a_head_is_kept_as_a_head(kind: str) -> None:
    class Returned(Recurrent):
        def forward(self, x: Tensor) -> Tensor:
            return self.layer(torch.tanh(self.out(torch.tanh(self.layer(x)))))

    result = rewritten(graph_of(kind, Returned), LowRank(rank=5))
    assert [(entry.site, entry.reason) for entry in result.ledger.kept] == [
        ("layer", "it is a head (the model returns its output); heads=true rewrites it")
    ]


# What does not hold is taken back in all calls


class Spoiling(LowRank):
    """Writes other factors into the last call of a layer only."""

    def build(self, graph: Graph, site: LinearSite, plan: LowRankPlan) -> None:
        *sound, last = site.calls
        for call in sound:
            super().build(graph, replace(call, others=()), plan)
        factors = replace(plan.factors, down=-4 * plan.factors.down)
        super().build(graph, replace(last, others=()), replace(plan, factors=factors))


def test_a_fault_in_one_call_takes_all_calls_back_and_says_which(kind: str) -> None:
    graph = graph_of(kind)
    after, ledger = run_passes(graph, [Spoiling(rank=5, targets=("layer",))], Settings())
    (entry,) = [entry for entry in ledger if entry.site == "layer"]
    assert entry.status == "rolled back"
    assert entry.reason.startswith("in call 3 of 3, which share one weight: measured error")
    assert not any(node.op == "lowrank_linear" for node in after.nodes())
    with pytest.raises(VerificationError, match=r"^low-rank: layer: in call 3 of 3, which share one weight: "):
        run_passes(graph, [Spoiling(rank=5, targets=("layer",))], Settings(on_violation="raise"))


@pytest.mark.parametrize("fault", ["writes wrong factors", "raises in build", "raises halfway through build"])
def test_a_wrong_rewrite_of_a_shared_layer_leaves_nothing_behind(kind: str, fault: Any) -> None:
    graph = graph_of(kind)
    after, ledger = run_passes(graph, [Faulty(fault=fault, at="layer")], Settings())
    assert [(entry.site, entry.status) for entry in ledger] == [("layer", "rolled back"), ("out", "rewritten")]
    assert sum(node.op == "lowrank_linear" for node in after.nodes()) == 1
    assert [site.describe() for site in find_linear_sites(after)[0]] == [f"{WIDTH}x{WIDTH}, called 3 times"]


def test_a_rewrite_that_misses_a_call_is_no_rewrite(kind: str) -> None:
    class Forgetful(LowRank):
        def build(self, graph: Graph, site: LinearSite, plan: LowRankPlan) -> None:
            super().build(graph, replace(site, others=()), plan)

    _, ledger = run_passes(graph_of(kind), [Forgetful(rank=5, targets=("layer",))], Settings())
    assert [entry.reason for entry in ledger if entry.site == "layer"] == ["build changed nothing"]


def test_a_diff_shows_every_call_and_the_bytes_with_the_first(kind: str) -> None:
    result = rewritten(graph_of(kind), LowRank(rank=5))
    found = diff(graph_of(kind).snapshot(), result.graph.snapshot(), result.ledger)
    changes = [change for change in found.changes if change.site == "layer"]
    assert len(changes) == CALLS
    assert all(change.kind == "replaced" and len(change.after) == 1 for change in changes)
    assert [change.causes[0].bytes_after is not None for change in changes] == [True, False, False]
