"""Masks of any number of dims, and several of them: combined in front of attention, with the meaning they had."""

from functools import lru_cache
from typing import Any

import onnx
import pytest
import torch
import transformers
from attention_models import HEADS, WIDTH, case, exported, inputs
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_transformers import block_example, block_graph
from torch import Tensor, nn

import regraft
from regraft.errors import GraphError, ShapeError
from regraft.frontends.onnx import load
from regraft.frontends.torch import capture
from regraft.graph import Graph
from regraft.graph.types import TensorType
from regraft.ledger import Ledger
from regraft.ops import evaluate
from regraft.ops.combined_mask import op as combined_mask
from regraft.passes import Settings, resolve_passes, run_passes

KINDS = ("fx", "onnx")


def _run(graph: Graph, passes: str, probes: Any = ()) -> tuple[Graph, Ledger]:
    return run_passes(graph, resolve_passes(passes), Settings(probes=probes, strict=False))


def _same(after: Graph, before: Graph, example: Any, tolerance: float = 1e-5) -> None:
    wanted, found = (graph.run(example)[0][0] for graph in (before, after))
    torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance)


def _count(graph: Graph, op: str) -> int:
    return [node.op for node in graph.nodes()].count(op)


# Models


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("passes", ["fuse-attention", "flash-svd{head_rank=5,mlp=false}"])
def test_t5_adds_positions_and_padding_one_after_the_other(kind: str, passes: str) -> None:
    before = case("t5", "eager").graph if kind == "fx" else exported("t5", 18, "eager")
    after, ledger = _run(before, passes)
    assert [entry.status for entry in ledger] == ["rewritten"]
    assert _count(after, "combined_mask") == 1
    for sizes in ((2, 6), (3, 9), (1, 1)):
        _same(after, before, inputs("t5", *sizes))


@lru_cache(maxsize=1)
def _two_layers() -> Graph:
    config = transformers.T5Config(
        vocab_size=40, num_layers=2, num_heads=4, d_model=24, d_kv=5, d_ff=16, attn_implementation="eager"
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.T5EncoderModel(config).eval()
    return capture(model, inputs("t5", 2, 6))


def test_layers_with_the_same_masks_combine_them_once() -> None:
    after, ledger = _run(_two_layers(), "fuse-attention")
    assert [entry.status for entry in ledger] == ["rewritten"] * 2
    assert _count(after, "combined_mask") == 1
    _same(after, _two_layers(), inputs("t5", 3, 5))


def test_the_diff_knows_where_a_combined_mask_comes_from_and_files_run(tmp_path: Any) -> None:
    result = regraft.optimize(exported("t5", 18, "eager").closed(), "fuse-attention", progress=False)
    assert not result.diff.unexplained
    path = result.export(tmp_path / "fused.onnx")
    onnx.checker.check_model(path, full_check=True)
    _same(load(path), result.graph, inputs("t5", 2, 6))


def test_a_causal_mask_of_two_dims_is_taken_from_onnx() -> None:
    before = block_graph("onnx", "causal")
    after, ledger = _run(before, "flash-svd{head_rank=5,mlp=false,blocks=2}")
    assert [entry.status for entry in ledger] == ["rewritten"]
    for sizes in ((2, 7), (1, 12), (3, 1)):
        _same(after, before, block_example("causal", *sizes))


# Masks of all shapes

EXTENTS = (2, HEADS, 5, 3)
"""Of scores: batch, heads, queries, keys."""


@st.composite
def masks(draw: st.DrawFn) -> Tensor:
    """Booleans or numbers that broadcast to scores, with fewer dims or with dims of 1."""
    dims = draw(st.integers(1, 4))
    shape = [extent if draw(st.booleans()) else 1 for extent in EXTENTS[4 - dims :]]
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    if draw(st.booleans()):
        return torch.rand(shape, generator=generator) > 0.3
    return torch.randn(shape, generator=generator)


def _onnx_model(given: list[Tensor]) -> Graph:
    """Attention with masks added, or chosen by, one after the other; a hidden row gives nothing."""
    types = {torch.bool: "bool", torch.float32: "float"}
    names = [f"m{place}" for place in range(len(given))]
    operands = [f"{types[mask.dtype]}{list(mask.shape)} {name}" for name, mask in zip(names, given, strict=True)]
    body, scores = "", "s"
    for name, mask in zip(names, given, strict=True):
        masked = f"Where({name}, {scores}, low)" if mask.dtype == torch.bool else f"Add({scores}, {name})"
        body, scores = f"{body} {scores}_ = {masked}", f"{scores}_"
    batch, _, queries, keys = EXTENTS
    wide = [f"float[{batch}, {rows}, {WIDTH}] {name}" for name, rows in (("q", queries), ("k", keys), ("v", keys))]
    split = "".join(f"{x}r = Reshape({x}, heads) {x}h = Transpose<perm = [0, 2, 1, 3]>({x}r) " for x in "qkv")
    text = f"""<ir_version: 10, opset_import: ["": 18]>
    net ({", ".join([*wide, *operands])}) => (float[{batch}, {queries}, {WIDTH}] y) {{
        heads = Constant <value_ints = [0, 0, {HEADS}, -1]> () flat = Constant <value_ints = [0, 0, -1]> ()
        low = Constant <value_float = -inf> () zero = Constant <value_float = 0.0> () {split}
        kt = Transpose<perm = [0, 1, 3, 2]>(kh) s = MatMul(qh, kt) {body}
        a = Softmax<axis = -1>({scores}) nan = IsNaN(a) w = Where(nan, zero, a)
        h = MatMul(w, vh) o = Transpose<perm = [0, 2, 1, 3]>(h) y = Reshape(o, flat) }}"""
    return load(onnx.parser.parse_model(text))


@settings(deadline=None, max_examples=40)
@given(st.lists(masks(), min_size=1, max_size=3))
def test_masks_of_all_shapes_and_kinds_keep_their_meaning(given: list[Tensor]) -> None:
    before = _onnx_model(given)
    after, ledger = _run(before, "fuse-attention")
    assert [entry.status for entry in ledger] == ["rewritten"]
    (node,) = [node for node in after.nodes() if node.op == "multi_head_attention"]
    assert {value.type.rank for value in node.inputs[3:] if value is not None} == {4}
    generator = torch.Generator().manual_seed(0)
    batch, _, queries, keys = EXTENTS
    x = [torch.randn(batch, rows, WIDTH, generator=generator) for rows in (queries, keys, keys)]
    _same(after, before, (*x, *given), 2e-5)


class Masked(nn.Module):
    """torch's operator with a mask of any number of dims."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(1)
            self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        q, k, v = (layer(x).unflatten(-1, (HEADS, -1)).transpose(1, 2) for layer in self.layers[:3])
        y = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.layers[3](y.transpose(1, 2).flatten(2))


@pytest.mark.parametrize("shape", [(5, 5), (1, 5), (1, 5, 5), (2, 1, 1, 5)])
@pytest.mark.parametrize("boolean", [False, True])
def test_torchs_operator_takes_masks_of_fewer_dims(shape: tuple[int, ...], boolean: bool) -> None:
    generator = torch.Generator().manual_seed(2)
    mask = torch.rand(shape, generator=generator) > 0.3 if boolean else torch.randn(shape, generator=generator)
    example = (torch.randn(2, 5, WIDTH, generator=generator), mask)
    before = capture(Masked().eval(), example, None)
    for passes in ("fuse-attention", f"flash-svd{{head_rank={WIDTH // HEADS},blocks=2}}"):
        after, ledger = _run(before, passes)
        assert [entry.status for entry in ledger] == ["rewritten"]
        assert _count(after, "combined_mask") == int(len(shape) < 4)
        _same(after, before, example)


# The op, and how it comes into a graph


@pytest.mark.parametrize(
    ("first", "second", "attributes", "text"),
    [
        (("float32", (5, 7)), None, {"first_lead": 1}, "first must have 4 dims with the 1 in front; got float32[5, 7]"),
        (
            ("float32", (1, 1, 5, 7)),
            ("float32", (3, 7)),
            {"second_lead": 2},
            "masks do not broadcast; got float32[1, 1, 5, 7] and float32[3, 7]",
        ),
        (("bool", (1, 1, 5, 7)), None, {}, "first must be of numbers; got bool[1, 1, 5, 7]"),
        (("float32", (1, 1, 5, 7)), None, {"boolean": 1}, "first must be of booleans; got float32[1, 1, 5, 7]"),
        (
            ("float32", (1, 1, 5, 7)),
            ("float16", (1, 1, 5, 7)),
            {},
            "both masks must be of one type; got float32[1, 1, 5, 7] and float16[1, 1, 5, 7]",
        ),
    ],
)
def test_masks_that_do_not_fit_are_refused(first: Any, second: Any, attributes: Any, text: str) -> None:
    with pytest.raises(ShapeError) as refused:
        combined_mask.infer(
            TensorType(*first), None if second is None else TensorType(*second), **{"first_lead": 0, **attributes}
        )
    assert str(refused.value) == f"combined_mask: {text}"


@given(masks(), masks())
def test_two_masks_are_their_sum_or_what_both_allow(first: Tensor, second: Tensor) -> None:
    if first.dtype != second.dtype:
        second = second.to(first.dtype)
    attributes = {"first_lead": 4 - first.dim(), "second_lead": 4 - second.dim(), "boolean": first.dtype == torch.bool}
    found = evaluate(combined_mask, {"first": first, "second": second}, attributes)
    wanted = first & second if first.dtype == torch.bool else first + second
    assert found.dim() == 4
    assert torch.equal(found, wanted[(None,) * (4 - wanted.dim())])
    types = [TensorType("bool" if first.dtype == torch.bool else "float32", tuple(x.shape)) for x in (first, second)]
    assert combined_mask.infer(*types, **attributes).shape == tuple(found.shape)


@pytest.mark.parametrize("kind", KINDS)
def test_a_node_is_inserted_once_for_the_same_operands(kind: str) -> None:
    graph = (case("t5", "eager").graph if kind == "fx" else exported("t5", 18, "eager")).copy()
    (add, *_) = [node for node in graph.nodes() if node.op == "add" and node.outputs[0].type.rank == 4]
    first, second = (value.key for value in add.inputs if value is not None)
    attributes = {"first_lead": 0, "second_lead": 0, "boolean": 0}
    operands = {"first": first, "second": second}
    keys = {graph.insert(combined_mask, operands, attributes, add.outputs[0].key, "here") for _ in range(2)}
    assert len(keys) == 1
    other = graph.insert(combined_mask, {"first": second, "second": first}, attributes, add.outputs[0].key, "here")
    assert other not in keys
    graph.validate()
    assert graph.value(other).type == graph.value(*keys).type
    with pytest.raises(GraphError, match=r"^here: .*'missing'"):
        graph.insert(combined_mask, {"first": "missing"}, attributes, add.outputs[0].key, "here")
