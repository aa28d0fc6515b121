"""The pass llm-int8 on both kinds of graph: outliers, steps, weights of bitsandbytes, and what it keeps and why."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import save_file
from torch import Tensor, nn

from regraft.errors import NoMatchError, OptionError, VerificationError
from regraft.frontends.onnx import OnnxGraph, load
from regraft.frontends.torch import FxGraph, capture
from regraft.graph import Graph, LinearSite, find_linear_sites
from regraft.ledger import Ledger
from regraft.numerics.int8 import quantize_rows
from regraft.passes import LLMInt8, LowRank, Reject, Settings, resolve_passes, run_passes, spelling
from regraft.passes._order import order_passes
from regraft.passes._statistics import collect

WIDTH, INNER = 192, 160
PLANTED = [5, 77]
KINDS = ("fx", "onnx")


class Block(nn.Module):
    """Two layers that read one activation, and one behind them; what is returned is no layer's result."""

    def __init__(self, width: int = WIDTH, inner: int = INNER) -> None:
        super().__init__()
        self.query, self.key = nn.Linear(width, inner), nn.Linear(width, inner, bias=False)
        self.out = nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.out(torch.tanh(self.query(x)) * torch.sigmoid(self.key(x))))


def block(width: int = WIDTH, inner: int = INNER) -> Block:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Block(width, inner)


def rows(seed: int, *lead: int, width: int = WIDTH, planted: bool = True) -> Tensor:
    x = torch.randn(*(lead or (2, 24)), width, generator=torch.Generator().manual_seed(seed))
    if planted:
        x[..., PLANTED] *= 40
    return x


def onnx_model(module: Block) -> onnx.ModelProto:
    """The same model as ONNX, as torch's exporter writes linear layers."""
    width, inner = module.query.in_features, module.query.out_features
    weights = []
    for name in ("query", "key", "out"):
        layer = getattr(module, name)
        weights.append(numpy_helper.from_array(layer.weight.detach().numpy().T.copy(), f"{name}.weight"))
        if layer.bias is not None:
            weights.append(numpy_helper.from_array(layer.bias.detach().numpy(), f"{name}.bias"))
    nodes = [
        helper.make_node("MatMul", ["x", "query.weight"], ["qm"], "query_mm"),
        helper.make_node("Add", ["qm", "query.bias"], ["q"], "query_add"),
        helper.make_node("MatMul", ["x", "key.weight"], ["k"], "key"),
        helper.make_node("Tanh", ["q"], ["tq"]),
        helper.make_node("Sigmoid", ["k"], ["sk"]),
        helper.make_node("Mul", ["tq", "sk"], ["h"]),
        helper.make_node("MatMul", ["h", "out.weight"], ["om"], "out_mm"),
        helper.make_node("Add", ["om", "out.bias"], ["o"], "out_add"),
        helper.make_node("Tanh", ["o"], ["y"]),
    ]
    info = helper.make_tensor_value_info
    inner_types = [info(name, TensorProto.FLOAT, ["batch", "seq", inner]) for name in ("q", "k", "h")]
    graph = helper.make_graph(
        nodes,
        "block",
        [info("x", TensorProto.FLOAT, ["batch", "seq", width])],
        [info("y", TensorProto.FLOAT, ["batch", "seq", width])],
        weights,
        value_info=inner_types,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def graph_of(kind: str, module: Block | None = None) -> Graph:
    module = module or block()
    if kind == "onnx":
        return load(onnx_model(module))
    return capture(module, (rows(0, width=module.query.in_features, planted=False),))


def run(graph: Graph, item: LLMInt8, *, calibrated: bool = True, **settings: Any) -> tuple[Any, Ledger]:
    width = int(graph.inputs()[0].type.shape[-1])
    planted = width == WIDTH
    batches = [(rows(seed, width=width, planted=planted),) for seed in (1, 2)] if calibrated else None
    return run_passes(graph, [item], Settings(calibration=batches, **settings))


def ops_in(graph: Graph) -> list[str]:
    return [node.op for node in graph.nodes() if "int8" in node.op]


def site_named(graph: Graph, name: str) -> LinearSite:
    return next(site for site in find_linear_sites(graph)[0] if site.name == name)


def error_at(graph: Graph, rewritten: Graph, *lead: int) -> float:
    x = rows(9, *lead)
    (wanted,), _ = graph.run((x,))
    (found,), _ = rewritten.run((x,))
    assert found.shape == wanted.shape
    return float((found - wanted).norm() / wanted.norm())


# What is written


@pytest.mark.parametrize("kind", KINDS)
def test_columns_that_stand_out_in_calibration_stay_in_floating_point(kind: str) -> None:
    graph = graph_of(kind)
    rewritten, ledger = run(graph, LLMInt8())
    assert [(entry.site, entry.status, entry.after) for entry in ledger] == [
        ("query", "rewritten", "int8 a row, 2 columns kept"),
        ("key", "rewritten", "int8 a row, 2 columns kept"),
        ("out", "rewritten", "int8 a row, 0 columns kept"),
    ]
    assert ops_in(rewritten) == ["int8_outlier_linear", "int8_outlier_linear", "int8_linear"]
    for entry in ledger:
        assert entry.checked_on == "calibration"
        assert entry.measured_error == pytest.approx(entry.announced_error, rel=1e-3)
        assert entry.measured_error < 0.02
    assert error_at(graph, rewritten) < 0.02


@pytest.mark.parametrize("kind", KINDS)
def test_the_columns_that_stay_have_the_weights_that_they_had(kind: str) -> None:
    graph = graph_of(kind)
    rewritten, _ = run(graph, LLMInt8())
    node = next(node for node in rewritten.nodes() if node.op == "int8_outlier_linear")
    kept, places = (rewritten.constant(node.inputs[place]) for place in (5, 4))
    assert places.tolist() == PLANTED
    kept = kept.t() if kind == "onnx" else kept
    assert torch.equal(kept, site_named(graph, "query").weight[:, PLANTED])


def test_both_kinds_of_graph_are_rewritten_alike_and_compute_the_same() -> None:
    (ours, first), (theirs, second) = (run(graph_of(kind), LLMInt8()) for kind in KINDS)
    assert [(entry.site, entry.after, entry.bytes_after) for entry in first] == [
        (entry.site, entry.after, entry.bytes_after) for entry in second
    ]
    x = rows(9)
    torch.testing.assert_close(ours.run((x,))[0][0], theirs.run((x,))[0][0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_layers_that_read_one_activation_share_its_mask_and_columns(kind: str) -> None:
    rewritten, _ = run(graph_of(kind), LLMInt8())
    types = [value.type.dtype for value in rewritten.constants()]
    assert (types.count("bool"), types.count("int64")) == (1, 1)
    query, key, _ = [node for node in rewritten.nodes() if "int8" in node.op]
    assert [value.key for value in query.inputs[3:5]] == [value.key for value in key.inputs[3:5]]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_shared_stands_before_the_first_reader_in_whatever_order_layers_are_written(kind: str) -> None:
    graph, item = graph_of(kind), LLMInt8()
    wanted, _ = run(graph, item)
    sites, _ = item.find(graph)
    statistics = collect(graph, sites, [(rows(seed),) for seed in (1, 2)], seed=0)
    rewritten = graph.copy()
    for site in reversed(sites):
        item.build(rewritten, site, item.plan(site, statistics[site.inputs]))
    rewritten.validate()
    assert [value.type.dtype for value in rewritten.constants()].count("bool") == 1
    x = rows(9)
    torch.testing.assert_close(rewritten.run((x,))[0][0], wanted.run((x,))[0][0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lead", [(1, 1), (3, 7), (5, 2)])
def test_a_rewritten_model_runs_at_any_batch_and_length(kind: str, lead: tuple[int, ...]) -> None:
    graph = graph_of(kind)
    rewritten, _ = run(graph, LLMInt8())
    assert error_at(graph, rewritten, *lead) < 0.03


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", [{}, {"activations": "tensor"}, {"outliers": "dynamic", "small": True}])
def test_zeros_and_empty_batches_give_what_the_dense_model_gives(kind: str, options: dict[str, Any]) -> None:
    graph = graph_of(kind)
    rewritten, _ = run(graph, LLMInt8(**options))
    for x in (torch.zeros(2, 3, WIDTH), torch.zeros(0, 3, WIDTH)):
        torch.testing.assert_close(rewritten.run((x,))[0][0], graph.run((x,))[0][0], rtol=0, atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_without_outliers_the_large_columns_cost_several_times_the_error(kind: str) -> None:
    graph = graph_of(kind)
    apart, _ = run(graph, LLMInt8())
    together, ledger = run(graph, LLMInt8(outliers="none"))
    assert ops_in(together) == ["int8_linear"] * 3
    assert ledger.entries[0].after == "int8 a row"
    assert error_at(graph, together) > 4 * error_at(graph, apart)


@pytest.mark.parametrize("kind", KINDS)
def test_without_calibration_outliers_are_found_in_every_call(kind: str) -> None:
    graph = graph_of(kind)
    rewritten, ledger = run(graph, LLMInt8(small=True), calibrated=False)
    assert ops_in(rewritten) == ["int8_topk_linear"] * 3
    assert {entry.after for entry in ledger} == {"int8 a row, up to 8 columns kept"}
    assert {entry.checked_on for entry in ledger} == {"random"}
    assert error_at(graph, rewritten) < 0.03


@pytest.mark.parametrize("kind", KINDS)
def test_one_step_for_the_whole_activation_is_an_option(kind: str) -> None:
    graph = graph_of(kind)
    rewritten, ledger = run(graph, LLMInt8(activations="tensor"))
    assert {node.attributes["per_row"] for node in rewritten.nodes() if "int8" in node.op} == {0}
    assert ledger.entries[0].after == "int8, 2 columns kept"
    assert error_at(graph, rewritten) < 0.03


def test_a_layer_takes_little_more_than_a_quarter_of_its_bytes() -> None:
    graph = graph_of("fx", block(512, 512))
    _, ledger = run(graph, LLMInt8())
    for entry in ledger:
        assert entry.bytes_before is not None
        assert entry.bytes_after is not None
        assert 0.25 < entry.bytes_after / entry.bytes_before < 0.27


@pytest.mark.parametrize("kind", KINDS)
def test_the_ledger_counts_the_bytes_that_are_there(kind: str) -> None:
    rewritten, ledger = run(graph_of(kind), LLMInt8(outliers="none"))
    held = [tensor for tensor in map(rewritten.constant, rewritten.constants()) if tensor is not None]
    assert sum(tensor.numel() * tensor.element_size() for tensor in held) == sum(e.bytes_after for e in ledger)


@pytest.mark.parametrize("kind", KINDS)
def test_an_unchanged_bias_stays_the_same_constant(kind: str) -> None:
    graph = graph_of(kind)
    rewritten, _ = run(graph, LLMInt8())
    keys = {value.key for value in graph.constants() if value.name.endswith(".bias")}
    assert keys == {value.key for value in rewritten.constants() if value.name.endswith(".bias")}
    assert len(keys) == 2


@pytest.mark.parametrize("kind", KINDS)
def test_a_second_run_finds_nothing_to_do(kind: str) -> None:
    rewritten, _ = run(graph_of(kind), LLMInt8())
    with pytest.raises(NoMatchError, match="llm-int8: no site in"):
        run(rewritten, LLMInt8())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_models_in_other_types_are_rewritten_too(dtype: torch.dtype) -> None:
    graph = capture(block().to(dtype), (rows(0, planted=False).to(dtype),))
    batches = [(rows(seed).to(dtype),) for seed in (1, 2)]
    rewritten, ledger = run_passes(graph, [LLMInt8()], Settings(calibration=batches))
    assert [entry.status for entry in ledger] == ["rewritten"] * 3
    x = rows(9).to(dtype)
    (wanted,), _ = graph.run((x,))
    (found,), _ = rewritten.run((x,))
    assert found.dtype == dtype
    assert float((found - wanted).float().norm() / wanted.float().norm()) < 0.03


def test_gradients_reach_the_input_the_scales_and_the_columns_that_stay() -> None:
    rewritten, _ = run(graph_of("fx"), LLMInt8())
    assert isinstance(rewritten, FxGraph)
    module, dense, x = rewritten.module, block(), rows(9).requires_grad_()
    module(x).square().sum().backward()
    trained = {name for name, parameter in module.named_parameters() if parameter.grad.abs().sum() > 0}
    assert {"query.scale", "query.outlier_weight", "query.bias", "out.scale", "out.bias"} <= trained
    slope, x.grad = x.grad, None
    dense(x).square().sum().backward()
    assert float((slope - x.grad).norm() / x.grad.norm()) < 0.05


def test_gemm_with_factors_is_quantized_with_them() -> None:
    module = block()
    weights = [
        numpy_helper.from_array(module.query.weight.detach().numpy(), "w"),
        numpy_helper.from_array(module.query.bias.detach().numpy(), "b"),
    ]
    info = helper.make_tensor_value_info
    nodes = [
        helper.make_node("Gemm", ["x", "w", "b"], ["g"], "layer", transB=1, alpha=-0.5, beta=3.0),
        helper.make_node("Tanh", ["g"], ["y"]),
    ]
    types = [info("x", TensorProto.FLOAT, ["rows", WIDTH])], [info("y", TensorProto.FLOAT, ["rows", INNER])]
    proto = helper.make_model(
        helper.make_graph(nodes, "gemm", *types, weights), opset_imports=[helper.make_opsetid("", 20)], ir_version=9
    )
    graph = load(proto)
    rewritten, ledger = run_passes(graph, [LLMInt8()], Settings(calibration=[(rows(1, 48),)]))
    assert [entry.status for entry in ledger] == ["rewritten"]
    assert error_at(graph, rewritten, 48) < 0.03


# What is kept, and why


def plan(item: LLMInt8, site: LinearSite) -> Any:
    return item.plan(site, None)


def test_layers_that_are_too_small_to_get_faster_are_kept_unless_asked_for() -> None:
    graph = graph_of("fx", block(32, 64))
    with pytest.raises(
        NoMatchError, match="a 64x32 layer is too small to get faster in 8 bits; small=true rewrites it"
    ):
        run(graph, LLMInt8())
    _, ledger = run(graph, LLMInt8(small=True))
    assert len(ledger.rewritten) == 3


def test_how_small_is_too_small_depends_on_what_is_done_around_the_product() -> None:
    site = site_named(graph_of("fx"), "query")

    def kept(width: int, **options: Any) -> bool:
        square = replace(site, in_features=width, out_features=width)
        square.__dict__["weight"] = torch.randn(width, width)
        return isinstance(LLMInt8(**options).plan(square, None), Reject)

    smallest = {
        ("tensor", "none"): 80,
        ("row", "none"): 144,
        ("tensor", "dynamic"): 208,
        ("row", "dynamic"): 288,
    }
    for (activations, outliers), width in smallest.items():
        options = {"activations": activations, "outliers": outliers}
        assert not kept(width, **options)
        assert kept(width - 1, **options)


def test_a_layer_that_would_not_get_smaller_is_kept() -> None:
    graph = graph_of("fx")
    with pytest.raises(NoMatchError) as caught:
        run(graph, LLMInt8(threshold=0.01, cap=1.0))
    assert "in 8 bits, with 192 columns kept, the 160x192 layer would not be smaller" in str(caught.value)


def test_outliers_from_calibration_need_calibration() -> None:
    with pytest.raises(NoMatchError, match="outliers=calibrated needs calibration inputs, and there are none for it"):
        run(graph_of("fx"), LLMInt8(outliers="calibrated"), calibrated=False)


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_refused(number: float) -> None:
    module = block()
    with torch.no_grad():
        module.query.weight[1, 2] = number
    site = site_named(graph_of("fx", module), "query")
    assert plan(LLMInt8(outliers="none"), site) == Reject("its weight holds numbers that are not finite")


def test_a_layer_whose_sums_could_overflow_is_refused() -> None:
    site = replace(site_named(graph_of("fx"), "query"), in_features=66312)
    assert LLMInt8().refuse(site) == Reject("sums over 66312 inputs could overflow 32 bits; at most 66311 fit")
    assert LLMInt8().refuse(replace(site, in_features=66311)) is None


def test_targets_exclusions_and_heads_are_those_of_every_pass() -> None:
    graph = graph_of("fx")
    reasons = {
        name: LLMInt8(targets=("q*", "out"), exclude=("out",)).refuse(site_named(graph, name))
        for name in ("query", "key", "out")
    }
    assert reasons == {"query": None, "key": Reject("not among the targets"), "out": Reject("excluded")}
    head = replace(site_named(graph, "out"), feeds_output=True)
    assert LLMInt8().refuse(head) == Reject("it is a head (the model returns its output); heads=true rewrites it")
    assert LLMInt8(heads=True).refuse(head) is None


# Weights of bitsandbytes


@pytest.fixture
def state(tmp_path: Path) -> Callable[..., str]:
    """Write a state dict as bitsandbytes would, for some of the layers; return the file's name."""

    def write(names: tuple[str, ...] = ("query", "key", "out"), factor: float = 1.0, prefix: str = "") -> str:
        tensors: dict[str, Tensor] = {}
        for name in names:
            weight = getattr(block(), name).weight.detach().half().float() * factor
            tensors[f"{prefix}{name}.weight"] = quantize_rows(weight).codes
            tensors[f"{prefix}{name}.SCB"] = weight.abs().amax(dim=1)
        save_file(tensors, tmp_path / "state.safetensors")
        return str(tmp_path / "state.safetensors")

    return write


@pytest.mark.parametrize("kind", KINDS)
def test_weights_that_bitsandbytes_quantized_are_taken_as_they_are(kind: str, state: Callable[..., str]) -> None:
    graph = graph_of(kind)
    rewritten, ledger = run(graph, LLMInt8(state=state(prefix="model.")))
    assert len(ledger.rewritten) == 3
    for node, name in zip(
        [node for node in rewritten.nodes() if "int8" in node.op], ("query", "key", "out"), strict=True
    ):
        codes = rewritten.constant(node.inputs[1])
        wanted = quantize_rows(getattr(block(), name).weight.detach().half().float())
        assert torch.equal(codes.t() if kind == "onnx" else codes, wanted.codes)
        torch.testing.assert_close(rewritten.constant(node.inputs[2]), wanted.scale)
    assert error_at(graph, rewritten) < 0.02


def test_layers_that_the_state_has_not_are_kept_and_it_says_so(state: Callable[..., str]) -> None:
    file = state(("query",))
    _, ledger = run(graph_of("fx"), LLMInt8(state=file))
    assert [entry.status for entry in ledger] == ["rewritten", "kept", "kept"]
    assert ledger.entries[1].reason == f"{file} has no weight in 8 bits for it"


def test_weights_of_another_model_are_refused(state: Callable[..., str]) -> None:
    with pytest.raises(VerificationError) as caught:
        run(graph_of("fx"), LLMInt8(state=state(factor=1.5)))
    assert "query is up to" in str(caught.value)
    assert "steps off the weight of query; at most 1 is due to rounding" in str(caught.value)
    assert "dequantized" in str(caught.value.hint)


def test_weights_of_another_shape_are_refused(state: Callable[..., str]) -> None:
    with pytest.raises(OptionError, match="query is 160x192, the layer query is 160x224$"):
        run(graph_of("fx", block(224, 160)), LLMInt8(state=state()))


def test_a_state_that_is_not_there_is_refused_at_once() -> None:
    with pytest.raises(FileNotFoundError, match=r"^state nowhere\.safetensors does not exist$"):
        LLMInt8(state="nowhere.safetensors")


# Options


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"outliers": "some"}, "outliers must be auto or calibrated or dynamic or none; got 'some'"),
        ({"activations": "column"}, "activations must be row or tensor; got 'column'"),
        ({"threshold": -1.0}, "threshold must be at least 0; got -1.0"),
        ({"threshold": float("nan")}, "threshold must be at least 0; got nan"),
        ({"relative": -1.0}, "relative must be at least 0; got -1.0"),
        ({"cap": 1.5}, "cap must be at least 0 and at most 1; got 1.5"),
        ({"cap": float("nan")}, "cap must be at least 0 and at most 1; got nan"),
        (
            {"targets": ("re:(",)},
            "'re:(' is not a regular expression: missing ), unterminated subpattern at position 0",
        ),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], text: str) -> None:
    with pytest.raises(OptionError) as caught:
        LLMInt8(**options)
    assert str(caught.value) == f"llm-int8: {text}"


def test_it_is_spelled_like_every_pass() -> None:
    text = "llm-int8{outliers=none,cap=0.05,activations=tensor}"
    (item,) = resolve_passes(text)
    assert item == LLMInt8(outliers="none", activations="tensor", cap=0.05)
    assert spelling(item) == text


def test_it_comes_after_low_rank() -> None:
    assert [item.name for item in order_passes([LLMInt8(), LowRank()])] == ["low-rank", "llm-int8"]


def test_an_exported_file_holds_standard_operators_and_one_function_a_form() -> None:
    rewritten, _ = run(graph_of("onnx"), LLMInt8())
    assert isinstance(rewritten, OnnxGraph)
    functions = {function.name: function for function in rewritten.model.functions.values()}
    assert set(functions) == {"Int8OutlierLinear_per_row1", "Int8OutlierLinearNoBias_per_row1", "Int8Linear_per_row1"}
    assert {node.domain for function in functions.values() for node in function} == {""}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*script_method.*:DeprecationWarning")  # torch warns of itself
@pytest.mark.parametrize("activations", ["row", "tensor"])
def test_inductor_compiles_it_with_its_gradients(activations: Any) -> None:
    rewritten, _ = run(graph_of("fx"), LLMInt8(activations=activations))
    assert isinstance(rewritten, FxGraph)
    compiled = torch.compile(rewritten.module, dynamic=True)
    for lead in ((2, 24), (3, 7)):
        x, y = (rows(9, *lead).requires_grad_() for _ in range(2))
        found, wanted = compiled(x), rewritten.module(y)
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)
        found.square().sum().backward()
        wanted.square().sum().backward()
        torch.testing.assert_close(x.grad, y.grad, rtol=1e-3, atol=1e-3)
