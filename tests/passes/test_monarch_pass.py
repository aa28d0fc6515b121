"""The pass monarch: its options, what it refuses and why, what it finds out, and what it announces."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx.parser
import onnxruntime as ort
import pytest
import torch
from tiny_models import Chain, Shared, batch, graph_of, site_of
from torch import Tensor, nn

import regraft
from regraft.errors import NoMatchError, OptionError
from regraft.frontends.onnx import load
from regraft.frontends.torch import capture
from regraft.graph import LinearSite
from regraft.numerics.moments import Moments
from regraft.numerics.monarch import singular_values
from regraft.numerics.partition import Partition
from regraft.passes import Monarch, Reject, Settings, SiteStatistics, resolve_passes, run_passes, spelling
from regraft.passes.monarch import MonarchPlan


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"blocks": 0}, "block counts must be at least 1; got 0"),
        ({"out_blocks": -2}, "block counts must be at least 1; got -2"),
        ({"blocks": 1}, "one block is a low-rank layer; at least 2 are needed"),
        ({"blocks": 1, "out_blocks": 1}, "one block is a low-rank layer; at least 2 are needed"),
        ({"keep": 0.0}, "keep must be above 0 and below 1; got 0.0"),
        ({"keep": 1.0}, "keep must be above 0 and below 1; got 1.0"),
        ({"keep": float("nan")}, "keep must be above 0 and below 1; got nan"),
        ({"block_rank": 0}, "block_rank must be at least 1; got 0"),
        (
            {"order": "diagonal"},
            "order must be one of auto, contiguous, strided-results, strided-inputs, strided; got 'diagonal'",
        ),
        ({"ridge": -0.1}, "ridge must be at least 0; got -0.1"),
        ({"ridge": float("nan")}, "ridge must be at least 0; got nan"),
        ({"ridge": float("inf")}, "ridge must be at least 0; got inf"),
        ({"exclude": ("re:*",)}, "'re:*' is not a regular expression: nothing to repeat at position 0"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], text: str) -> None:
    with pytest.raises(OptionError) as caught:
        Monarch(**options)
    assert str(caught.value) == f"monarch: {text}"


def test_it_is_spelled_like_any_pass() -> None:
    text = "monarch{blocks=8,out_blocks=6,block_rank=2,order=strided,refit=false,targets=[*.query]}"
    (item,) = resolve_passes(text)
    assert item == Monarch(blocks=8, out_blocks=6, block_rank=2, order="strided", refit=False, targets=("*.query",))
    assert spelling(item) == text
    assert spelling(Monarch()) == "monarch"


# What is refused


def _site(out_features: int, in_features: int, *, bias: bool = True) -> LinearSite:
    return site_of(graph_of(Chain, in_features, out_features, bias=bias), "layers.0")


def _plan(site: LinearSite, statistics: SiteStatistics | None = None, **options: Any) -> MonarchPlan | Reject:
    return Monarch(**{"slower": True, **options}).plan(site, statistics)  # these layers are tiny


def _statistics(rows: Tensor) -> SiteStatistics:
    statistics = SiteStatistics(Moments(rows.shape[-1]), torch.Generator().manual_seed(0))
    statistics.update(rows)
    return statistics


def test_heads_are_refused_unless_asked_for() -> None:
    sites, _ = Monarch().find(graph_of(Shared))
    refused = {site.name: Monarch().refuse(site) for site in sites}
    head = Reject("it is a head (classifier); heads=true rewrites it")
    assert refused == {"query": None, "key": None, "classifier": head}
    assert all(Monarch(heads=True).refuse(site) is None for site in sites)


def test_more_blocks_than_features_are_refused() -> None:
    reason = "a 12x6 layer cannot be cut into 8x8 blocks"
    assert _plan(_site(12, 6), blocks=8) == Reject(reason)
    assert _plan(_site(6, 12), blocks=2, out_blocks=7) == Reject("a 6x12 layer cannot be cut into 7x2 blocks")
    assert isinstance(_plan(_site(12, 6), blocks=6, out_blocks=12, keep=0.99), Reject)


def test_a_rank_that_would_not_make_the_layer_smaller_is_refused_and_says_so() -> None:
    site = _site(32, 24)
    cut = Partition(24, 32, 2, 2)
    assert cut.break_even_rank == 7
    for rank in (7, 12, 99):
        reason = f"block_rank must be below 7 for a 32x24 layer to get smaller; got {rank}"
        assert _plan(site, blocks=2, block_rank=rank) == Reject(reason)
    plan = _plan(site, blocks=2, block_rank=6)
    assert isinstance(plan, MonarchPlan)
    assert plan.bytes_after < site.bytes


def test_a_share_that_leaves_no_rank_is_refused() -> None:
    assert _plan(_site(12, 12), keep=0.1) == Reject("keep=0.1 leaves block rank 0 for the 12x12 layer")


def test_a_layer_that_would_get_smaller_but_not_faster_is_refused_and_says_so() -> None:
    reason = "a 30x42 layer in 4x4 blocks of rank 2 would not get faster; slower=true rewrites it"
    assert _plan(_site(30, 42), slower=False) == Reject(reason)
    assert isinstance(_plan(_site(30, 42)), MonarchPlan)


@pytest.mark.parametrize(("blocks", "faster"), [(4, True), (8, True), (16, False)])
def test_many_blocks_move_more_values_than_they_save_products(blocks: int, faster: bool) -> None:
    """Measured on 384x384 at half of the parameters: 0.6, 0.9 and 1.2 of the dense layer's time."""
    outcome = Monarch(blocks=blocks).plan(_site(384, 384), None)
    assert isinstance(outcome, MonarchPlan) == faster


def test_a_new_bias_that_eats_up_the_saving_is_refused() -> None:
    site = _site(16, 4, bias=False)  # 64 numbers; rank 1 in 2x2 blocks holds 40, a bias 16 more: 56
    narrow = _site(16, 3, bias=False)  # 48 numbers; rank 1 holds 40 with padding, a bias 16 more: 56
    outcomes = [
        _plan(layer, _statistics(batch(3, 20, layer.in_features)), blocks=2, block_rank=1) for layer in (site, narrow)
    ]
    assert isinstance(outcomes[0], MonarchPlan)
    assert outcomes[1] == Reject("blocks of rank 1 with its new bias would not be smaller than the dense 16x3 layer")
    assert isinstance(_plan(narrow, blocks=2, block_rank=1), MonarchPlan)


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_refused(number: float) -> None:
    model = Chain(12, 12)
    with torch.no_grad():
        model.layers[0].weight[1, 2] = number
    site = site_of(capture(model, (batch(0),)), "layers.0")
    assert _plan(site, blocks=2) == Reject("its weight holds numbers that are not finite")
    rows = batch(3, 20)
    rows[4, 5] = number
    assert _plan(_site(12, 12), _statistics(rows), blocks=2) == Reject(
        "its calibration inputs hold numbers that are not finite"
    )


# What is planned


@pytest.mark.parametrize("options", [{}, {"blocks": 3, "keep": 0.7}, {"blocks": 5, "out_blocks": 3, "block_rank": 2}])
def test_a_plan_says_what_it_will_be_and_announces_the_tails(options: dict[str, Any]) -> None:
    site = _site(30, 42)
    plan = _plan(site, **options)
    assert isinstance(plan, MonarchPlan)
    factors = plan.factors
    k, l = options.get("blocks", 4), options.get("out_blocks", options.get("blocks", 4))  # noqa: E741
    cut = Partition(42, 30, k, l)
    energies = singular_values(site.weight, cut).square()
    tail = float(energies[..., factors.rank :].sum() / energies.sum()) ** 0.5
    assert factors.partition == cut
    assert factors.rank == options.get("block_rank", cut.rank_for(options.get("keep", 0.5)))
    assert (plan.op, plan.after) == ("monarch_linear", f"{l}x{k} blocks of rank {factors.rank}")
    assert plan.announced_on == "isotropic"
    assert plan.announced_error == pytest.approx(tail)
    assert plan.bytes_after == 4 * (cut.parameters(factors.rank) + 30)


def _layer(weight: Tensor) -> LinearSite:
    model = Chain(weight.shape[1], weight.shape[0])
    with torch.no_grad():
        model.layers[0].weight.copy_(weight)
    return site_of(capture(model, (batch(0, width=weight.shape[1]),)), "layers.0")


def _fourier(n: int) -> Tensor:
    """Real and imaginary part of the discrete Fourier transform of n points, [2 n, n]."""
    turns = torch.outer(torch.arange(n), torch.arange(n)).double() / n * 2 * math.pi
    return torch.cat([torch.cos(turns), -torch.sin(turns)])


def test_a_fourier_transform_is_found_out_and_stays_exact_at_a_fraction_of_its_size() -> None:
    site = _layer(_fourier(64))
    plan = _plan(site, _statistics(batch(3, 80, 64)), blocks=8)
    assert isinstance(plan, MonarchPlan)
    assert plan.after == "8x8 blocks of rank 2, inputs and results strided"
    assert plan.announced_error < 1e-6
    assert plan.announced_on == "isotropic"
    assert plan.factors.bias is site.bias
    assert plan.bytes_after == 4 * (3072 + 128)  # of 4 · (8192 + 128)


def test_a_trained_monarch_layer_is_found_out_and_stays_exact() -> None:
    """As published: four blocks, strided results, an inner width of the shorter side; merged into one weight."""
    seeds = torch.Generator().manual_seed(3)
    up, down = torch.randn(4, 4, 16, 4, generator=seeds), torch.randn(4, 4, 4, 8, generator=seeds)
    weight = Partition(32, 64, 4, 4, False, True).join(up @ down)
    plan = _plan(_layer(weight), keep=0.9)
    assert isinstance(plan, MonarchPlan)
    assert plan.after == "4x4 blocks of rank 4, results strided"
    assert plan.announced_error < 1e-6


def test_an_order_that_is_asked_for_is_taken() -> None:
    plan = _plan(_layer(_fourier(64)), blocks=8, order="contiguous")
    assert isinstance(plan, MonarchPlan)
    assert plan.after == "8x8 blocks of rank 2"
    assert plan.announced_error > 0.1
    for order, shown in (
        ("strided-inputs", "inputs"),
        ("strided-results", "results"),
        ("strided", "inputs and results"),
    ):
        plan = _plan(_site(30, 42), order=order)
        assert isinstance(plan, MonarchPlan)
        assert plan.after == f"4x4 blocks of rank {plan.factors.rank}, {shown} strided"


def test_with_calibration_it_announces_the_error_on_the_rows() -> None:
    site = _site(30, 42)
    rows = batch(3, 80, 42) * torch.linspace(0.1, 3, 42)
    plan = _plan(site, _statistics(rows))
    assert isinstance(plan, MonarchPlan)
    assert plan.factors.bias is not None
    assert site.bias is not None
    y = site.reference(rows)
    z = rows.double() @ plan.factors.dense().t() + plan.factors.bias.double()
    assert plan.announced_on == "calibration"
    assert plan.announced_error == pytest.approx(float((y - z).norm() / (y - site.bias.double()).norm()), rel=1e-4)
    weights = _plan(site, _statistics(rows), refit=False)
    assert isinstance(weights, MonarchPlan)
    assert weights.announced_on == "isotropic"
    assert weights.factors.bias is site.bias


# What is written, on both graph kinds


def _onnx_chain(model: Chain) -> Any:
    """The same chain as an ONNX graph: MatMul and Add, then Gemm."""
    first, second = model.layers
    text = f"""
        <ir_version: 8, opset_import: ["": 18]>
        chain (float[batch, {first.in_features}] x) => (float[batch, {second.out_features}] y) {{
            a = MatMul(x, first)
            b = Add(a, first_bias)
            c = Tanh(b)
            d = Gemm <transB = 1> (c, second, second_bias)
            y = Tanh(d)
        }}
    """
    proto = onnx.parser.parse_model(text)
    contents = {
        "first": first.weight.t(),
        "first_bias": first.bias,
        "second": second.weight,
        "second_bias": second.bias,
    }
    for name, tensor in contents.items():
        proto.graph.initializer.append(
            onnx.numpy_helper.from_array(np.ascontiguousarray(tensor.detach().numpy()), name)
        )
    return load(proto)


def _chain() -> Chain:
    torch.manual_seed(0)
    return Chain(42, 30, 24)


@pytest.mark.parametrize(
    "options",
    [{}, {"blocks": 5, "out_blocks": 3}, {"order": "strided"}, {"block_rank": 1, "refit": False}],
    ids=["default", "counts", "strided", "rank"],
)
@pytest.mark.parametrize("rows", [None, batch(5, 64, 42)], ids=["weights", "calibration"])
def test_both_graph_kinds_are_rewritten_alike(options: dict[str, Any], rows: Tensor | None) -> None:
    model, item = _chain(), Monarch(slower=True, **options)
    graphs = [capture(model, (batch(0, width=42),)), _onnx_chain(model)]
    calibration = None if rows is None else [(rows,)]
    results = [run_passes(graph, [item], Settings(calibration=calibration)) for graph in graphs]
    for rewritten, ledger in results:
        assert [entry.status for entry in ledger] == ["rewritten"] * 2
        assert [node.op for node in rewritten.nodes()] == ["monarch_linear", "tanh"] * 2
        rewritten.validate()
        for entry in ledger:
            assert entry.measured_error == pytest.approx(entry.announced_error, rel=0.2)
    assert [entry.after for entry in results[0][1]] == [entry.after for entry in results[1][1]]
    x = batch(9, 5, 42)
    ours, theirs = (torch.as_tensor(rewritten.run((x,))[0][0]) for rewritten, _ in results)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_an_exact_rewrite_computes_what_the_model_computed(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(64, 128), nn.Tanh())
    with torch.no_grad():
        model[0].weight.copy_(_fourier(64))
    x = batch(2, 7, 64)
    optimized = regraft.optimize(model, [Monarch(blocks=8, slower=True)], example_inputs=x, progress=False)
    with torch.no_grad():
        torch.testing.assert_close(optimized(x), model(x), rtol=1e-4, atol=1e-4)
    path = optimized.export(tmp_path / "fourier.onnx")
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: batch(3, 3, 64).numpy()})
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(found), model(batch(3, 3, 64)), rtol=1e-4, atol=1e-4)
    assert optimized.ledger.rewritten[0].measured_error < 1e-6


def test_an_unchanged_bias_stays_the_same_constant() -> None:
    graph = graph_of(Chain, 42, 30)
    rewritten, _ = run_passes(graph, [Monarch(slower=True)], Settings())
    before, after = (
        next(value for value in item.constants() if value.name == "layers.0.bias") for item in (graph, rewritten)
    )
    assert after.key == before.key


def test_a_model_whose_layers_are_all_too_small_is_refused_with_the_reason() -> None:
    with pytest.raises(NoMatchError, match=r"keep=0.1 leaves block rank 0 for the 12x12 layer \(1x\)"):
        run_passes(graph_of(Chain, 12, 12), [Monarch(keep=0.1)], Settings())


def test_the_rewritten_model_trains_towards_the_original() -> None:
    """A Monarch layer is a start for fine-tuning: gradients reach both factors, and a few steps help."""
    model, x = _chain(), batch(5, 64, 42)
    optimized = regraft.optimize(model, [Monarch(refit=False, slower=True)], example_inputs=x[:4], progress=False)
    student, losses = optimized.model.train(), []
    steps = torch.optim.Adam(student.parameters(), lr=1e-2)
    for _ in range(30):
        steps.zero_grad()
        loss = (student(x) - model(x).detach()).square().mean()
        loss.backward()
        steps.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]
    names = {name.rpartition(".")[2] for name, value in student.named_parameters() if value.grad is not None}
    assert {"left", "right", "bias"} <= names
