"""Every core operation: as nodes of standard operators in ONNX Runtime it computes what TorchBuilder computes."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import onnx
import onnx_ir as ir
import pytest
import torch
from torch import Tensor

from regraft.errors import DtypeError
from regraft.frontends.onnx import open_session
from regraft.frontends.onnx._attention import AttentionBuilder
from regraft.frontends.onnx._builder import operand_syms
from regraft.frontends.onnx._tensors import onnx_dtype_of
from regraft.graph.types import dtype_name
from regraft.ops import TorchBuilder
from regraft.ops._builder import Builder

OPSETS = (13, 15, 18, 21, 24)


@dataclass(frozen=True)
class Case:
    """One use of an operation: a program over a builder and its operands."""

    name: str
    program: Callable[..., Any]
    operands: Mapping[str, Tensor]
    transposed: tuple[str, ...] = ()


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def codes(*shape: int, low: int = 0, high: int = 255, dtype: torch.dtype = torch.uint8) -> Tensor:
    return torch.randint(low, high + 1, shape, generator=torch.Generator().manual_seed(1)).to(dtype)


A, B = normal(2, 3, 5), normal(3, 5, seed=1)
HALVES = torch.tensor([[-2.5, -1.5, -0.5, 0.5, 1.5, 2.5]])
INT8_WEIGHT = codes(4, 5, low=-127, high=127, dtype=torch.int8)
WHOLE = torch.arange(12, dtype=torch.int64).reshape(3, 4)
PLACES = torch.tensor([[3, 0], [1, 2]])

ATTENTION = {"heads": 2, "kv_heads": 2, "split": True, "scale": 0.6}
HEADS = {"q": normal(2, 3, 6), "k": normal(2, 4, 6, seed=1), "v": normal(2, 4, 10, seed=2)}
SEEN = torch.tensor([[True, False, True, True], [False, False, False, False]]).reshape(2, 1, 1, 4)

CASES = (
    Case("attention", lambda b, q, k, v: b.attention(q, k, v, None, None, **ATTENTION, causal=False), HEADS),
    Case("attention", lambda b, q, k, v: b.attention(q, k, v, None, None, **ATTENTION, causal=True), HEADS),
    Case(
        "attention",
        lambda b, q, k, v, m: b.attention(q, k, v, m, None, **ATTENTION, causal=False),
        {**HEADS, "m": SEEN},
    ),
    Case(
        "attention",
        lambda b, q, k, v, m, x: b.attention(q, k, v, m, x, **ATTENTION, causal=True),
        {**HEADS, "m": SEEN, "x": normal(1, 2, 3, 4, seed=3)},
    ),
    Case("linear", lambda b, x, w: b.linear(x, w), {"x": A, "w": normal(4, 5)}),
    Case("linear", lambda b, x, w: b.linear(x, w), {"x": A, "w": normal(4, 5)}, ("w",)),
    Case("matmul", lambda b, x, w: b.matmul(x, w), {"x": A, "w": normal(2, 5, 4)}),
    Case("matmul", lambda b, x, w: b.matmul(x, w), {"x": A, "w": normal(5, 4)}, ("w",)),
    Case(
        "linear_integer",
        lambda b, x, w, z: b.linear_integer(x, w, z),
        {"x": codes(2, 3, 5), "w": INT8_WEIGHT, "z": torch.tensor(131, dtype=torch.uint8)},
    ),
    Case(
        "linear_integer",
        lambda b, x, w, z: b.linear_integer(x, w, z),
        {"x": codes(2, 3, 5), "w": INT8_WEIGHT, "z": torch.tensor(7, dtype=torch.uint8)},
        ("w",),
    ),
    Case(
        "matmul_integer",
        lambda b, x, w, z: b.matmul_integer(x, w, z),
        {
            "x": codes(2, 3, 5),
            "w": codes(2, 5, 4, low=-127, high=127, dtype=torch.int8),
            "z": torch.tensor(131, dtype=torch.uint8),
        },
    ),
    Case("dynamic_quantize", lambda b, x: b.dynamic_quantize(x), {"x": A}),
    Case("dynamic_quantize", lambda b, x: b.dynamic_quantize(x), {"x": A.abs() + 1}),
    Case("dynamic_quantize", lambda b, x: b.dynamic_quantize(b.widen(x)), {"x": A.half()}),
    Case("linear_after", lambda b, x, w, v: b.linear_after(x, w, v, None), {"x": B, "w": normal(4, 5), "v": normal(4)}),
    Case("linear_after", lambda b, x, w, v: b.linear_after(x, w, v, x), {"x": B, "w": normal(4, 5), "v": normal(4)}),
    Case("linear_after", lambda b, x, w: b.linear_after(x, w, None, x), {"x": B, "w": normal(4, 5)}, ("w",)),
    Case("linear_after", lambda b, x, w: b.linear_after(x, w, None, None), {"x": B, "w": normal(4, 5)}),
    Case("accumulate", lambda b, x, w: b.accumulate(b.linear(x, w), x, w), {"x": B, "w": normal(4, 5)}, ("w",)),
    Case("accumulate", lambda b, t, x, w: b.accumulate(b.abs(t), x, w), {"t": normal(3, 4), "x": B, "w": normal(4, 5)}),
    Case("add_to", lambda b, x, y: b.add_to(b.abs(x), y), {"x": A, "y": B}),
    Case("add", lambda b, x, y: b.add(x, y), {"x": A, "y": B}),
    Case("sub", lambda b, x, y: b.sub(x, y), {"x": A, "y": B}),
    Case("mul", lambda b, x, y: b.mul(x, y), {"x": A, "y": B}),
    Case("div", lambda b, x, y: b.div(x, y), {"x": A, "y": B}),
    Case("floor_div", lambda b, x: b.floor_div(x, 5), {"x": WHOLE}),
    Case("modulo", lambda b, x: b.modulo(x, 5), {"x": WHOLE}),
    Case("maximum", lambda b, x, y: b.maximum(x, y), {"x": A, "y": B}),
    Case("minimum", lambda b, x, y: b.minimum(x, y), {"x": A, "y": B}),
    Case("neg", lambda b, x: b.neg(x), {"x": A}),
    Case("abs", lambda b, x: b.abs(x), {"x": A}),
    Case("sqrt", lambda b, x: b.sqrt(x), {"x": A.abs()}),
    Case("exp", lambda b, x: b.exp(x), {"x": A}),
    Case("erf", lambda b, x: b.erf(x), {"x": A}),
    Case("tanh", lambda b, x: b.tanh(x), {"x": A}),
    Case("sigmoid", lambda b, x: b.sigmoid(x), {"x": A}),
    Case("relu", lambda b, x: b.relu(x), {"x": A}),
    Case("gelu", lambda b, x: b.gelu(x, tanh=False), {"x": A * 3}),
    Case("gelu", lambda b, x: b.gelu(x, tanh=True), {"x": A * 3}),
    Case("gelu", lambda b, x: b.gelu(x, tanh=False), {"x": A.double()}),
    Case("silu", lambda b, x: b.silu(x), {"x": A}),
    Case("round", lambda b, x: b.round(x), {"x": HALVES}),
    Case("equal", lambda b, x, y: b.equal(x, y), {"x": torch.round(A), "y": torch.round(B)}),
    Case("where", lambda b, x, y: b.where(b.equal(b.relu(x), x), x, y), {"x": A, "y": B}),
    Case("cast", lambda b, x: b.cast(x, "int32"), {"x": A * 10}),
    Case("cast", lambda b, x: b.cast(x, "float16"), {"x": A}),
    Case("cast_like", lambda b, x, y: b.cast_like(x, y), {"x": A * 10, "y": codes(1, dtype=torch.int32)}),
    Case("cast_like", lambda b, x, y: b.cast_like(x, b.cast(y, "float16")), {"x": A, "y": A}),
    Case("widen", lambda b, x: b.widen(x), {"x": A.half()}),
    Case("widen", lambda b, x: b.widen(b.widen(x)), {"x": A}),
    Case("straight_through", lambda b, x: b.straight_through(b.round(x), lambda: x), {"x": A * 3}),
    Case("scalar", lambda b, x: b.scalar(0.1, x), {"x": A}),
    Case("scalar", lambda b, x: b.scalar(0.1, x), {"x": A.double()}),
    Case("scalar", lambda b, x: b.scalar(0.1, x), {"x": A.half()}),
    Case("scalar", lambda b, x: b.scalar(3, x), {"x": INT8_WEIGHT}),
    Case("scalar", lambda b, x: b.scalar(0.1, b.cast(x, "float64")), {"x": A}),
    Case("table", lambda b, x: b.gather(b.table([0.5, -1, 2, 4], "float16"), x, 0), {"x": PLACES.reshape(-1)}),
    Case("reduce_sum", lambda b, x: b.reduce_sum(x, 1), {"x": A}),
    Case("reduce_max", lambda b, x: b.reduce_max(x, -1), {"x": A}),
    Case("reduce_min", lambda b, x: b.reduce_min(x, -1), {"x": A}),
    Case("reduce_mean", lambda b, x: b.reduce_mean(x, -2), {"x": A}),
    Case("softmax", lambda b, x: b.softmax(x, 1), {"x": A}),
    Case("swap_last", lambda b, x: b.swap_last(x), {"x": B}),
    Case("swap_last", lambda b, x: b.swap_last(x), {"x": B}, ("x",)),
    Case("permute", lambda b, x: b.permute(x, (2, 0, -2)), {"x": A}),
    Case("lead", lambda b, x: b.lead(x, 2), {"x": A}),
    Case("reshape", lambda b, x: b.reshape(x, (0, -1, 1)), {"x": A}),
    Case("as_rows", lambda b, x: b.as_rows(x), {"x": normal(2, 3, 4, 5)}),
    Case("as_rows", lambda b, x: b.as_rows(x), {"x": normal(5)}),
    Case("like_rows_of", lambda b, y, x: b.like_rows_of(y, x), {"y": normal(6, 4), "x": A}),
    Case("concat", lambda b, x, y: b.concat([x, y, x], -1), {"x": A, "y": normal(2, 3, 2)}),
    Case("slice", lambda b, x: b.slice(x, -1, 1, 4), {"x": A}),
    Case("slice", lambda b, x: b.slice(x, 0, 0, 1), {"x": A}),
    Case("split", lambda b, x: tuple(b.split(x, 1, 2)), {"x": A}),
    Case("split", lambda b, x: tuple(b.split(x, 0, 1)), {"x": A}),
    Case("split", lambda b, x, w: tuple(b.linear(x, v) for v in b.split(w, 0, 3)), {"x": A, "w": normal(7, 5)}, ("w",)),
    Case(
        "split",
        lambda b, x, w: tuple(b.linear(b.abs(x), v) for v in b.split(w, 1, 2)),
        {"x": normal(3, 5), "w": normal(7, 10)},
        ("w",),
    ),
    Case("pad_last", lambda b, x: b.pad_last(x, 3), {"x": A}),
    Case("pad_last", lambda b, x: b.pad_last(x, 3), {"x": INT8_WEIGHT}),
    Case("gather", lambda b, x, i: b.gather(x, i, -1), {"x": A, "i": torch.tensor([4, 0, 0])}),
    Case("gather", lambda b, x, i: b.gather(x, i, 1), {"x": A, "i": torch.tensor([2, 1])}),
    Case("scatter", lambda b, x, i, u: b.scatter(x, i, u), {"x": normal(2, 4), "i": PLACES, "u": normal(2, 2)}),
    Case("top_k", lambda b, x: b.top_k(x, 2), {"x": A}),
)


def torch_results(case: Case) -> list[Tensor]:
    outcome = case.program(TorchBuilder(), *case.operands.values())
    return list(outcome) if isinstance(outcome, tuple) else [outcome]


def onnx_results(case: Case, opset: int) -> list[Tensor]:
    """Run a case in ONNX Runtime, as a plain graph that the checker accepts."""
    dtypes = {name: dtype_name(operand.dtype) for name, operand in case.operands.items()}
    builder = AttentionBuilder(opset)
    syms = operand_syms(list(case.operands), dtypes, case.transposed)
    stored = {name: value.t() if name in case.transposed else value for name, value in case.operands.items()}
    outcome = case.program(builder, *syms)
    results = [builder.result(one) for one in (outcome if isinstance(outcome, tuple) else (outcome,))]
    inputs = [declared(sym.value, str(sym.value.name), stored[str(sym.value.name)]) for sym in syms]
    pairs = zip(results, torch_results(case), strict=True)
    outputs = [declared(result, f"y{at}", like) for at, (result, like) in enumerate(pairs)]
    graph = ir.Graph(inputs, outputs, nodes=builder.nodes, opset_imports={"": opset}, name="core operation")
    version = onnx.helper.find_min_ir_version_for([onnx.helper.make_opsetid("", opset)])
    proto = ir.to_proto(ir.Model(graph, ir_version=version))
    onnx.checker.check_model(proto, full_check=True)
    return open_session(proto, {}, case.name).run([str(output.name) for output in outputs], stored)


def declared(value: ir.Value, name: str, like: Tensor) -> ir.Value:
    value.name, value.type, value.shape = name, ir.TensorType(onnx_dtype_of(like)), ir.Shape(like.shape)
    return value


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("case", CASES, ids=[f"{case.name}-{place}" for place, case in enumerate(CASES)])
def test_a_core_operation_computes_in_onnx_what_it_computes_in_torch(case: Case, opset: int) -> None:
    for got, want in zip(onnx_results(case, opset), torch_results(case), strict=True):
        assert got.dtype == want.dtype
        if got.dtype == torch.uint8 and case.name == "dynamic_quantize":
            assert (got.int() - want.int()).abs().max() <= 1  # a tie may round either way
        else:
            torch.testing.assert_close(got, want, rtol=2e-6 if got.dtype == torch.float32 else 1e-3, atol=1e-6)


def test_every_operation_of_the_builder_has_a_case() -> None:
    names = {name for name, member in inspect.getmembers(Builder, inspect.isfunction) if not name.startswith("_")}
    assert names == {case.name for case in CASES}


def test_a_weight_stored_transposed_is_read_by_a_product_without_another_node() -> None:
    builder = AttentionBuilder(18)
    x, w = operand_syms(["x", "w"], {}, ["w"])
    builder.linear(x, w)
    assert [node.op_type for node in builder.nodes] == ["MatMul"]


def test_a_weight_stored_transposed_is_turned_back_for_any_other_use() -> None:
    builder = AttentionBuilder(18)
    (w,) = operand_syms(["w"], {}, ["w"])
    builder.abs(w)
    assert [node.op_type for node in builder.nodes] == ["Transpose", "Abs"]


def test_before_opset_15_a_scalar_needs_the_element_type_and_says_so() -> None:
    builder = AttentionBuilder(14)
    (x,) = operand_syms(["x"], {}, [])
    with pytest.raises(DtypeError, match=r"^opset 14 has no CastLike: the element type of x must be known$") as caught:
        builder.scalar(1.0, x)
    assert caught.value.hint == "convert the model to opset 15 or later"


def test_a_body_is_typed_only_where_the_opset_forces_it() -> None:
    def body(opset: int) -> AttentionBuilder:
        builder = AttentionBuilder(opset)
        (x,) = operand_syms(["x"], {"x": "float16"}, [])
        builder.scalar(1.0, x)
        return builder

    assert body(14).is_typed
    assert not body(15).is_typed


def test_equal_constants_are_written_once() -> None:
    builder = AttentionBuilder(18)
    (x,) = operand_syms(["x"], {}, [])
    builder.reduce_max(builder.reduce_max(x, -1), -1)
    assert [node.op_type for node in builder.nodes].count("Constant") == 1
