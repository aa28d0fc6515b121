"""What flash-svd leaves: files that run, no full-size activation in them, costs, and one entry a block in a diff."""

import json
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import onnx
import onnxruntime as ort
import pytest
import torch
from tiny_transformers import (
    HEAD,
    HEADS,
    HIDDEN,
    WIDTH,
    Block,
    Example,
    Kind,
    block_example,
    block_graph,
    seeded,
)

import regraft
from regraft.backends.onnxruntime._from_torch import to_onnx
from regraft.diff import diff
from regraft.frontends.onnx import OnnxGraph
from regraft.frontends.torch import FxGraph, capture
from regraft.graph import Graph
from regraft.graph.symbols import dim_expr
from regraft.ops import cost, get_op
from regraft.passes import FlashSVD, LowRank, Settings, run_passes

PASSES = [LowRank(keep=0.7, heads=True), FlashSVD(blocks=2)]
DIMS = {"batch": 5, "sequence": 64}


def _model(kind: Kind) -> Any:
    graph = block_graph(kind)
    if isinstance(graph, FxGraph):
        return graph.module
    assert isinstance(graph, OnnxGraph)
    return graph.closed()


@lru_cache(maxsize=8)
def optimized(kind: Kind = "fx", passes: str = "both") -> regraft.Optimized:
    chosen = {"both": PASSES, "low-rank": PASSES[:1]}[passes]
    given: dict[str, Any] = {"example_inputs": block_example("mask")} if kind == "fx" else {}
    model = seeded(Block()) if kind == "fx" else _model(kind)
    return regraft.optimize(model, chosen, progress=False, **given)


def _run_file(path: Path, example: Example) -> torch.Tensor:
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    given = {name: tensor.numpy() for name, tensor in zip(names, example, strict=True) if tensor is not None}
    return torch.from_numpy(session.run(None, given)[0])


def _output(result: regraft.Optimized, example: Example) -> torch.Tensor:
    with torch.no_grad():
        return result.graph.run(example)[0][0]


# Files


@pytest.mark.parametrize("functions", ["keep", "inline"])
@pytest.mark.parametrize("opset", [18, 21])
def test_files_of_a_torch_model_are_valid_and_run(
    opset: int, functions: Literal["keep", "inline"], tmp_path: Path
) -> None:
    path = optimized().export(tmp_path / "fused.onnx", opset=opset, functions=functions)
    onnx.checker.check_model(path, full_check=True)
    proto = onnx.load(path)
    assert {item.domain: item.version for item in proto.opset_import}[""] == opset
    structured = [node.op_type for node in proto.graph.node if node.domain == "regraft"]
    assert len(structured) == len(proto.functions) == (2 if functions == "keep" else 0)
    for example in (block_example("mask"), block_example("mask", 3, 13), block_example("mask", 1, 1)):
        torch.testing.assert_close(_run_file(path, example), _output(optimized(), example), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("functions", ["keep", "inline"])
def test_files_of_an_onnx_model_are_valid_and_run(functions: Literal["keep", "inline"], tmp_path: Path) -> None:
    result = optimized("onnx")
    assert len(result.ledger.rewritten) == 6 + 2
    path = result.export(tmp_path / "fused.onnx", functions=functions)
    onnx.checker.check_model(path, full_check=True)
    for example in (block_example("mask"), block_example("mask", 3, 13), block_example("mask", 1, 1)):
        torch.testing.assert_close(_run_file(path, example), _output(result, example), rtol=1e-5, atol=1e-5)


def _widths(path: Path) -> tuple[list[tuple[str, list[int | str]]], list[str]]:
    """Every activation of a file with its extents, and the names of those whose shape is not known."""
    proto = onnx.shape_inference.infer_shapes(onnx.load(path), strict_mode=True, data_prop=True)
    weights = {tensor.name for tensor in proto.graph.initializer}
    computed = set(weights)  # what follows from weights alone is no activation
    shapes = {
        value.name: [dim.dim_value or dim.dim_param for dim in value.type.tensor_type.shape.dim]
        for value in (*proto.graph.value_info, *proto.graph.output)
        if value.type.tensor_type.HasField("shape")
    }
    known: list[tuple[str, list[int | str]]] = []
    unknown: list[str] = []
    for node in proto.graph.node:
        if all(name in computed for name in node.input if name):
            computed.update(node.output)
            continue
        known += [(name, shapes[name]) for name in node.output if name in shapes]
        unknown += [name for name in node.output if name and name not in shapes]
    return known, unknown


@pytest.mark.parametrize("opset", [18, 21])
def test_no_activation_is_as_wide_as_the_hidden_layer_or_all_heads(opset: int, tmp_path: Path) -> None:
    full = (HIDDEN, HEADS * HEAD)
    assert WIDTH not in full
    before, _ = _widths(optimized(passes="low-rank").export(tmp_path / "a.onnx", opset=opset, functions="inline"))
    assert {extent for _, shape in before for extent in shape if extent in full} == set(full)
    after, unknown = _widths(optimized().export(tmp_path / "b.onnx", opset=opset, functions="inline"))
    assert not unknown
    assert not [(name, shape) for name, shape in after if set(shape) & set(full)]
    widths = {shape[-1] for _, shape in after if shape}
    assert {HIDDEN // 2, HEADS * HEAD // 2} <= widths  # halves of both: the blocks are there


# Cost


@lru_cache(maxsize=2)
def _at_one_size(kind: Kind) -> tuple[Graph, Graph, Graph]:
    """A program of fixed extents: dense, in factors, and fused."""
    example = block_example("mask", 3, 16)
    fx = capture(seeded(Block()), example, None)
    dense = fx if kind == "fx" else to_onnx(fx, 18)
    settings = Settings(probes=[example])
    factors, _ = run_passes(dense, PASSES[:1], settings)
    return dense, factors, run_passes(factors, [FlashSVD(blocks=HEADS)], settings)[0]


@pytest.mark.parametrize("kind", ["fx", "onnx"])
def test_multiply_adds_stay_and_the_peak_of_activations_falls(kind: Kind) -> None:
    _, before, after = (cost(graph.snapshot()).at() for graph in _at_one_size(kind))
    assert after.macs == before.macs
    assert after.peak_activation_bytes < 0.8 * before.peak_activation_bytes
    assert after.largest_buffer_bytes < before.largest_buffer_bytes


def test_the_diff_shows_the_peak_of_activations_before_and_after() -> None:
    dense, _, fused = _at_one_size("fx")
    found = diff(dense.snapshot(), fused.snapshot())
    peaks = [cost(graph.snapshot()).peak_activation_bytes() for graph in (dense, fused)]
    assert [found.summary.before.peak_activation_bytes, found.summary.after.peak_activation_bytes] == peaks
    assert f"peak activations: {peaks[0] / 1e3:.2f} -> {peaks[1] / 1e3:.2f} kB" in str(found)


def test_with_extents_given_the_diff_of_a_dynamic_model_shows_it_too() -> None:
    result = optimized()
    assert result.diff.summary.after.peak_activation_bytes is None
    original = regraft.load(seeded(Block()), example_inputs=block_example("mask"))
    text = str(regraft.diff(original, result, dims=DIMS))
    assert " at batch=5, sequence=64" in text
    assert "peak activations: " in text
    assert "flash-svd: 2 sites" in text


def test_rank_space_takes_fewer_multiply_adds_than_the_dense_model() -> None:
    result = regraft.optimize(
        block_graph().copy().module,  # type: ignore[attr-defined]
        [FlashSVD(head_rank=3, mlp=False)],
        example_inputs=block_example("mask"),
        progress=False,
    )
    assert result.original is not None
    dense, fused = (cost(graph.snapshot()).at(DIMS) for graph in (result.original, result.graph))
    tokens, pairs = 5 * 64, 5 * 64 * 64
    saved = tokens * 4 * HEADS * WIDTH * (HEAD - 3) + pairs * HEADS * 2 * (HEAD - 3)
    assert dense.macs - fused.macs == saved


def test_the_largest_buffer_inside_is_that_of_a_group_of_heads_or_of_a_block() -> None:
    snapshot = optimized().graph.snapshot()
    types = {value.key: value.type for value in (*snapshot.inputs, *snapshot.constants)}
    types |= {value.key: value.type for node in snapshot.nodes for value in node.outputs}
    for name, width in (("lowrank_attention", HEADS * HEAD // 2), ("lowrank_mlp", HIDDEN // 2)):
        node = next(node for node in snapshot.nodes if node.op == name)
        op, operands = get_op(name), [types.get(key) for key in node.inputs]
        named = {operand.name: type_ for operand, type_ in zip(op.operands, operands, strict=False)}
        found = op.cost(**{key: type_ for key, type_ in named.items() if type_ is not None}, **node.attributes)
        assert found.transient_bytes == 4 * dim_expr("batch") * dim_expr("sequence") * width


# What is told


@pytest.mark.parametrize("kind", ["fx", "onnx"])
def test_the_diff_shows_each_block_as_one_entry(kind: Kind) -> None:
    result = optimized(kind)
    fused = [change for change in result.diff.changes if change.cause and change.cause.pass_name == "flash-svd"]
    assert [change.site for change in fused] == ["attention", "mlp"]
    for change, op in zip(fused, ("lowrank_attention", "lowrank_mlp"), strict=True):
        assert change.kind == "replaced"
        assert [node.op for node in change.after] == [op]
        assert len(change.before) >= 4
    assert not result.diff.unexplained
    data = json.loads(json.dumps(result.diff.to_dict()))
    assert str(type(result.diff).from_dict(data)) == str(result.diff)
    text = str(result.diff)
    assert "flash-svd: 2 sites" in text
    assert "factors kept, heads of 5, 2 groups" in text


def test_a_passes_name_is_enough_and_llm_int8_leaves_fused_blocks_alone() -> None:
    result = regraft.optimize(
        seeded(Pooled()),
        "low-rank{keep=0.5,targets=[block.*]},flash-svd,llm-int8{heads=true,small=true}",
        example_inputs=block_example("mask"),
        progress=False,
    )
    done = {(entry.pass_name, entry.site) for entry in result.ledger.rewritten}
    assert {site for name, site in done if name == "flash-svd"} == {"block.attention", "block.mlp"}
    assert {site for name, site in done if name == "llm-int8"} == {"dense"}
    ops = [node.op for node in result.graph.nodes()]
    assert {"lowrank_attention", "lowrank_mlp"} <= set(ops)
    assert len([op for op in ops if op.startswith("int8_")]) == 1


class Pooled(torch.nn.Module):
    """A block and a layer that stands alone."""

    def __init__(self) -> None:
        super().__init__()
        self.block, self.dense = Block(), torch.nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.dense(self.block(x, mask)))


def test_a_recipe_and_explain_know_the_pass(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("passes:\n  - low-rank: {keep: 0.7, heads: true}\n  - flash-svd: {blocks: 2}\n")
    again = regraft.optimize(seeded(Block()), recipe, example_inputs=block_example("mask"), progress=False)
    assert again.recipe == optimized().recipe == ("low-rank{keep=0.7,heads=true}", "flash-svd{blocks=2}")
    facts = [[(entry.site, entry.after) for entry in result.ledger] for result in (again, optimized())]
    assert facts[0] == facts[1]
    found = regraft.explain(seeded(Block()), "flash-svd", example_inputs=block_example("mask"))
    assert [(item.site, item.verdict) for item in found.findings] == [
        ("attention", "would keep"),
        ("mlp", "would keep"),
    ]
