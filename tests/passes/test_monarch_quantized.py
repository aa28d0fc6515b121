"""llm-int8 and shift-add after monarch: the blocks of a layer are quantized, on both kinds of graph."""

import re
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor, nn

import regraft
from regraft.frontends.onnx import load
from regraft.frontends.torch import capture
from regraft.graph import Graph
from regraft.numerics.moments import Moments
from regraft.numerics.monarch import hidden_moments, project
from regraft.numerics.partition import Partition
from regraft.ops.monarch_linear import layer_attributes
from regraft.passes import Monarch, Settings, resolve_passes, run_passes
from regraft.passes._monarch_site import find_monarch_sites

WIDTH, INNER, LOUD = 96, 150, (7, 64)
MONARCH = Monarch(blocks=4, keep=0.6, slower=True)
LATER = ("llm-int8{small=true}", "shift-add{small=true}")


class Net(nn.Module):
    """A layer that is called twice, one with counts of features that 4 blocks do not divide, and one without bias."""

    def __init__(self) -> None:
        super().__init__()
        self.twice, self.up, self.down = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, INNER), nn.Linear(INNER, 97, False)

    def forward(self, x: Tensor) -> Tensor:
        x = x + torch.tanh(self.twice(torch.tanh(self.twice(x))))
        return torch.tanh(self.down(torch.tanh(self.up(x))))


def batch(seed: int, rows: int = 300, *, loud: float = 1.0) -> Tensor:
    x = torch.randn(rows, WIDTH, generator=torch.Generator().manual_seed(seed))
    x[:, list(LOUD)] *= loud
    return x


@lru_cache(maxsize=4)
def graph_of(kind: str) -> Graph:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = Net().eval()
    if kind == "fx":
        return capture(module, (batch(0, 6),))
    with TemporaryDirectory() as folder:
        return load(onnx.load(regraft.load(module, example_inputs=batch(0, 6)).export(Path(folder) / "dense.onnx")))


def rewritten(kind: str, *passes: Any, loud: float = 1.0, calibrated: bool = True, **settings: Any) -> tuple[Any, Any]:
    batches = [(batch(1, loud=loud),)] if calibrated else None
    return run_passes(graph_of(kind), resolve_passes(list(passes)), Settings(calibration=batches, **settings))


def later(ledger: Any) -> list[Any]:
    return [entry for entry in ledger if entry.pass_name != "monarch"]


def output(graph: Graph, *, loud: float = 1.0) -> Tensor:
    return graph.run((batch(9, 50, loud=loud),))[0][0]


def relative(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


@pytest.fixture(params=["fx", "onnx"])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.mark.parametrize("calibrated", [True, False])
@pytest.mark.parametrize(
    ("second", "op", "most"),
    [
        ("llm-int8{small=true}", "int8_monarch_linear", 0.03),
        ("llm-int8{activations=tensor,small=true}", "int8_monarch_linear", 0.03),
        ("shift-add{small=true}", "shift_monarch_linear", 0.08),
        ("shift-add{activations=none}", "shift_monarch_linear", 0.08),
    ],
)
def test_blocks_are_quantized_within_what_was_announced(
    kind: str, second: str, op: str, most: float, calibrated: bool
) -> None:
    blocks, _ = rewritten(kind, MONARCH, calibrated=calibrated)
    both, ledger = rewritten(kind, MONARCH, second, calibrated=calibrated)
    assert [(entry.site, entry.status, entry.op) for entry in later(ledger)] == [
        (name, "rewritten", op) for name in ("twice", "up", "down")
    ]
    assert [node.op for node in both.nodes()].count(op) == 4
    assert relative(output(both), output(blocks)) < most
    for entry in later(ledger):
        assert 0 < entry.measured_error <= 1.5 * entry.announced_error + 1e-4


def test_the_ledger_says_what_the_blocks_were_and_what_they_are_now(kind: str) -> None:
    _, ledger = rewritten(kind, MONARCH, "llm-int8{small=true,outliers=none}")
    lines = [line for line in str(ledger).splitlines() if line.startswith("llm-int8  ")]
    twice = "llm-int8  twice  96x96 in 4x4 blocks of rank 7, called 2 times -> int8 a row"
    assert lines[0].startswith(twice)
    assert lines[1].startswith("llm-int8  up     150x96 in 4x4 blocks of rank 8 -> int8 a row")


@pytest.mark.parametrize("second", LATER)
def test_the_order_in_which_they_are_asked_for_does_not_matter(second: str) -> None:
    ledgers = [rewritten("fx", *passes)[1] for passes in ((MONARCH, second), (second, MONARCH))]
    assert [(entry.pass_name, entry.site, entry.after) for entry in ledgers[0]] == [
        (entry.pass_name, entry.site, entry.after) for entry in ledgers[1]
    ]


@pytest.mark.parametrize("second", LATER)
def test_both_kinds_of_graph_compute_the_same(second: str) -> None:
    fx, file = (rewritten(kind, MONARCH, second)[0] for kind in ("fx", "onnx"))
    assert relative(output(file), output(fx)) < 0.01  # a value on the edge of two codes may fall to either side


def test_all_calls_of_a_layer_read_one_set_of_blocks(kind: str) -> None:
    both, _ = rewritten(kind, MONARCH, "llm-int8{small=true,outliers=none}")
    first, second, *_ = [node for node in both.nodes() if node.op == "int8_monarch_linear"]
    read = [[value.key for value in node.inputs if value and value.role == "constant"] for node in (first, second)]
    assert read[0] == read[1]
    assert len(read[0]) == 5


@pytest.mark.parametrize(
    ("second", "share"), [(LATER[0], 0.27), (LATER[1], 0.27), ("shift-add{small=true,terms=1}", 0.15)]
)
def test_blocks_take_a_quarter_of_their_bytes_or_less_and_the_file_holds_what_the_ledger_counts(
    second: str, share: float
) -> None:
    net = nn.Sequential(nn.Linear(512, 512, bias=False), nn.Tanh())
    passes = [Monarch(keep=0.5), second.replace("small=true", "outliers=none,small=true")]
    result = regraft.optimize(net, passes, example_inputs=torch.randn(4, 512), progress=False)
    (entry,) = later(result.ledger.rewritten)
    stored = [result.graph.constant(value) for value in result.graph.constants()]
    assert entry.bytes_after == sum(tensor.numel() * tensor.element_size() for tensor in stored if tensor is not None)
    assert entry.bytes_after <= share * entry.bytes_before


def test_loud_columns_of_the_input_are_multiplied_apart(kind: str) -> None:
    blocks, _ = rewritten(kind, MONARCH, loud=40)
    found = {}
    for outliers in ("calibrated", "none"):
        both, ledger = rewritten(kind, MONARCH, f"llm-int8{{small=true,cap=0.03,outliers={outliers}}}", loud=40)
        site = later(ledger)[1]
        found[outliers] = site.measured_error
        if outliers == "calibrated":
            assert (site.site, site.after) == ("up", "int8 a row, 2 columns kept")
            assert relative(output(both, loud=40), output(blocks, loud=40)) < 0.03
    assert found["none"] > 4 * found["calibrated"]


def test_shift_add_keeps_loud_columns_where_they_are_worth_it() -> None:
    _, ledger = rewritten("fx", MONARCH, "shift-add{small=true,cap=0.03}", loud=40)
    assert later(ledger)[1].after == "2 powers of two, int8 a row, 2 columns kept"


def test_error_feedback_on_calibration_inputs_makes_blocks_closer() -> None:
    errors = []
    for feedback in ("true", "false"):
        blocks, _ = rewritten("fx", MONARCH)
        both, _ = rewritten("fx", MONARCH, f"shift-add{{terms=1,activations=none,feedback={feedback}}}")
        errors.append(relative(output(both), output(blocks)))
    assert errors[0] < errors[1]


@pytest.mark.parametrize(
    ("second", "calibrated", "reason"),
    [
        ("llm-int8", True, "a 96x96 in 4x4 blocks of rank 7 layer is too small to get faster in 8 bits"),
        ("shift-add", True, "a 96x96 in 4x4 blocks of rank 7 layer is too small to get faster in 8 bits"),
        ("llm-int8{outliers=dynamic}", True, "outliers=dynamic is for whole weights; this one is held in blocks"),
        ("llm-int8{outliers=calibrated}", False, "outliers=calibrated needs calibration inputs"),
        ("shift-add{outliers=calibrated,small=true}", False, "outliers=calibrated needs calibration inputs"),
    ],
)
def test_a_layer_is_kept_in_blocks_and_the_ledger_says_why(
    kind: str, second: str, calibrated: bool, reason: str
) -> None:
    both, ledger = rewritten(kind, MONARCH, second, calibrated=calibrated, strict=False)
    assert later(ledger)[0].status == "kept"
    assert later(ledger)[0].reason.startswith(reason)
    assert [node.op for node in both.nodes()].count("monarch_linear") == 4


def test_only_wide_blocks_get_faster_and_one_step_for_all_sooner() -> None:
    statuses = {}
    for width in (192, 320, 512):
        net = nn.Sequential(nn.Linear(width, width), nn.Tanh())
        for activations in ("row", "tensor"):
            passes = [Monarch(slower=True), f"llm-int8{{activations={activations}}}"]
            example = torch.randn(4, width)
            result = regraft.optimize(net, passes, example_inputs=example, progress=False, strict=False)
            statuses[width, activations] = later(result.ledger)[0].status
    kept = {place for place, status in statuses.items() if status == "kept"}
    assert kept == {(192, "row"), (192, "tensor"), (320, "row")}


def test_a_second_run_finds_nothing_to_do(kind: str) -> None:
    once, _ = rewritten(kind, MONARCH, LATER[0])
    twice, ledger = run_passes(once, resolve_passes(LATER[0]), Settings(strict=False))
    assert not ledger.rewritten
    assert twice.snapshot() == once.snapshot()


def test_a_file_of_an_earlier_run_is_quantized_too(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(96, 160), nn.Tanh())
    blocks = regraft.optimize(net, [MONARCH], example_inputs=batch(0, 4), progress=False)
    both = regraft.optimize(blocks.export(tmp_path / "blocks.onnx"), [LATER[0]], progress=False)
    (entry,) = both.ledger.rewritten
    assert (entry.site, entry.op) == ("0", "int8_monarch_linear")
    loaded = regraft.load(both.export(tmp_path / "both.onnx"))
    (found,) = loaded(batch(3, 20))
    assert relative(found, blocks(batch(3, 20)).detach()) < 0.03


@pytest.mark.parametrize("second", LATER)
def test_training_goes_through_the_rounding_and_finds_detuned_scales_again(second: str) -> None:
    net = nn.Sequential(nn.Linear(96, 160), nn.Tanh())
    x = batch(0, 64)
    model = regraft.optimize(net, [MONARCH, second], example_inputs=x, progress=False).model
    wanted, scales = model(x).detach(), [value for name, value in model.named_parameters() if name.endswith("_scale")]
    assert len(scales) == 2
    with torch.no_grad():
        for scale in scales:
            scale.mul_(1.2)
    optimizer, losses = torch.optim.Adam(scales, lr=3e-4), []
    for _ in range(60):
        loss = (model(x) - wanted).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.1 * losses[0]


def test_the_diff_tells_one_story_of_both_passes() -> None:
    net = nn.Sequential(nn.Linear(96, 160), nn.Tanh())
    result = regraft.optimize(net, [MONARCH, LATER[0]], example_inputs=batch(0, 4), progress=False)
    text = str(result.diff)
    assert "monarch + llm-int8: 1 site" in text
    assert "linear 160x96 -> int8_monarch_linear int8 a row" in text


class Computed(nn.Module):
    """A layer whose first blocks are made when it is called."""

    def __init__(self) -> None:
        super().__init__()
        factors = project(torch.randn(6, 6), Partition(6, 6, 2, 2), 1)
        self.right, self.left = nn.Parameter(factors.right), nn.Parameter(factors.left)

    def forward(self, x: Tensor) -> Tensor:
        values = layer_attributes(Partition(6, 6, 2, 2), 1)
        return torch.ops.regraft.monarch_linear(x, self.right * 2, self.left, **values)


def test_blocks_that_are_computed_are_no_sites_and_the_reason_is_known() -> None:
    sites, (miss,) = find_monarch_sites(capture(Computed(), (torch.randn(4, 6),)))
    assert sites == []
    assert re.fullmatch(r"its operand mul\w* is computed, a constant is needed", miss.reason)


def test_layers_in_blocks_are_found_with_all_their_calls(kind: str) -> None:
    assert find_monarch_sites(graph_of(kind)) == ([], [])
    found, _ = find_monarch_sites(rewritten(kind, MONARCH)[0])
    assert [(site.name, len(site.calls), site.in_features) for site in found] == [
        ("twice", 2, WIDTH),
        ("up", 1, WIDTH),
        ("down", 1, INNER),
    ]


@pytest.mark.parametrize("strided", [False, True])
def test_hidden_moments_are_those_of_what_the_second_blocks_read(strided: bool) -> None:
    cut = Partition(11, 13, 4, 3, strided, strided)
    generator = torch.Generator().manual_seed(0)
    factors = project(torch.randn(13, 11, generator=generator, dtype=torch.float64), cut, 2)
    x = torch.randn(40, 11, generator=generator, dtype=torch.float64)
    moments = Moments(11)
    moments.update(x)
    runs = torch.stack([cut.runs(row) for row in x])
    h = torch.einsum("rkp,kpn->rkn", runs, factors.right).reshape(40, 4, 3, 2)
    wanted = torch.stack([group.t() @ group / 40 for group in h.permute(2, 0, 1, 3).reshape(3, 40, 8)])
    torch.testing.assert_close(hidden_moments(cut.cut_inputs(moments.gram), factors), wanted)


@pytest.mark.parametrize("strided", [False, True])
def test_runs_of_features_are_those_that_a_weight_is_cut_into(strided: bool) -> None:
    cut = Partition(11, 13, 4, 3, strided)
    weight = torch.arange(11.0).expand(13, 11)
    assert torch.equal(cut.runs(weight[0]), cut.cut(weight)[:, 0, 0])


def test_a_site_in_blocks_is_a_layer_of_the_dense_matrix() -> None:
    graph, _ = rewritten("fx", MONARCH)
    site = find_monarch_sites(graph)[0][1]
    x = batch(4, 5)
    (found,) = graph.evaluate([site.output], {site.input: x})
    torch.testing.assert_close(found.double(), site.reference(x), rtol=1e-4, atol=1e-4)
