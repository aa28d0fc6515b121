"""Passes one after the other: a factor of a low-rank layer is a layer that later passes can rewrite."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import regraft
from regraft.passes import LowRank


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(96, 160), nn.ReLU(), nn.Linear(160, 96, bias=False), nn.Tanh()).eval()


def inputs(rows: int) -> torch.Tensor:
    return torch.randn(rows, 96, generator=torch.Generator().manual_seed(rows))


@pytest.fixture(params=["fx", "onnx"])
def model(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    if request.param == "fx":
        return network()
    return regraft.load(network(), example_inputs=inputs(4)).export(tmp_path / "dense.onnx")


def optimized(model: Any, passes: list[Any], **options: Any) -> regraft.Optimized:
    example = inputs(4) if isinstance(model, nn.Module) else None
    return regraft.optimize(model, passes, example_inputs=example, calibration=[inputs(400)], progress=False, **options)


def output(result: Any, x: torch.Tensor) -> torch.Tensor:
    found = result(x)
    return found.detach() if isinstance(found, torch.Tensor) else found[0]


@pytest.mark.parametrize("second", ["llm-int8{small=true}", "shift-add{small=true,terms=2}"])
def test_factors_of_low_rank_layers_are_quantized_one_by_one(model: Any, second: str) -> None:
    low_rank = optimized(model, [LowRank(keep=0.6)])
    both = optimized(model, [LowRank(keep=0.6), second])
    quantized = [entry.site for entry in both.ledger.rewritten if entry.pass_name != "low-rank"]
    assert quantized == ["0.down", "0.up", "2.down", "2.up"]
    wanted, found = output(low_rank, inputs(50)), output(both, inputs(50))
    assert float((found - wanted).norm() / wanted.norm()) < 0.08
    assert not any(node.op == "lowrank_linear" for node in both.graph.nodes())


def test_the_order_in_which_they_are_asked_for_does_not_matter(model: Any) -> None:
    one = optimized(model, ["llm-int8{small=true}", LowRank(keep=0.6)])
    other = optimized(model, [LowRank(keep=0.6), "llm-int8{small=true}"])
    assert [entry.site for entry in one.ledger] == [entry.site for entry in other.ledger]


def test_writing_a_low_rank_layer_out_does_not_change_what_it_computes(model: Any) -> None:
    low_rank = optimized(model, [LowRank(keep=0.6)])
    before = low_rank.graph.snapshot()
    expanded = low_rank.graph.expanded(["lowrank_linear"])
    expanded.validate()
    torch.testing.assert_close(expanded.run(inputs(7))[0], low_rank.graph.run(inputs(7))[0])
    assert {node.op for node in expanded.nodes()} & {"linear", "matmul"}
    assert low_rank.graph.snapshot() == before


def test_a_low_rank_layer_stays_whole_when_the_later_pass_rewrites_nothing(model: Any) -> None:
    both = optimized(model, [LowRank(keep=0.6), "llm-int8"], strict=False)
    assert [entry.pass_name for entry in both.ledger.rewritten] == ["low-rank", "low-rank"]
    assert [node.op for node in both.graph.nodes()].count("lowrank_linear") == 2


def test_composed_torch_models_export_and_run_in_onnx_runtime(tmp_path: Path) -> None:
    both = optimized(network(), [LowRank(keep=0.6), "llm-int8{small=true}"])
    loaded = regraft.load(both.export(tmp_path / "both.onnx"))
    wanted, found = output(both, inputs(9)), output(loaded, inputs(9))
    assert float((found - wanted).norm() / wanted.norm()) < 0.01
