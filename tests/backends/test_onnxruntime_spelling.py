"""Ops in ONNX Runtime's own operators: on every example against the float64 oracle, and as files for that runtime."""

from collections import Counter
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import pytest
import torch
from attention_models import case, inputs
from onnx_ir.passes.common import InlinePass

import regraft
from regraft.backends.onnxruntime._spelling import CONTRIB, for_this_runtime, respell
from regraft.errors import OptionError
from regraft.frontends.onnx import load, single_node_model
from regraft.frontends.onnx._session import light_proto, open_session
from regraft.ops import Example, evaluate, get_op

ATTENTION = get_op("multi_head_attention")
EXAMPLES = [pytest.param(example, id=example.name.replace(" ", "-")) for example in ATTENTION.examples]
OPERATOR = "MultiHeadAttention"


def operators(model: ir.Model) -> list[tuple[str, str]]:
    bodies = [node for function in model.functions.values() for node in function.all_nodes()]
    return [(node.domain, node.op_type) for node in (*model.graph.all_nodes(), *bodies)]


def error_of(model: ir.Model, example: Example, dtype: torch.dtype) -> float:
    tensors = example.tensors(dtype)
    (got,) = open_session(*light_proto(model), "attention").run(["y"], {"x": tensors["q"]})
    exact = {name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    wanted = evaluate(ATTENTION, exact, example.attributes or {})
    assert got.dtype == dtype
    assert got.shape == wanted.shape
    return float((got.double() - wanted).norm() / wanted.norm().clamp_min(1e-30))


@pytest.mark.parametrize("example", EXAMPLES)
@pytest.mark.parametrize(("opset", "inline"), [(18, False), (21, True), (23, False)])
def test_attention_in_its_own_operator_is_what_the_oracle_says(example: Example, opset: int, inline: bool) -> None:
    model = single_node_model(ATTENTION, example.tensors(torch.float32), example.attributes, opset, example.dynamic)
    respell(model)
    assert (CONTRIB, OPERATOR) in operators(model)
    assert "Softmax" not in {op for _, op in operators(model)}
    if inline:
        InlinePass()(model)
    assert error_of(model, example, torch.float32) <= 1e-5


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_other_precisions_keep_the_standard_operators(dtype: torch.dtype) -> None:
    example = ATTENTION.examples[0]
    model = single_node_model(ATTENTION, example.tensors(dtype), example.attributes, 18, example.dynamic)
    before = ir.to_proto(model).SerializeToString()
    respell(model)
    assert ir.to_proto(model).SerializeToString() == before
    assert error_of(model, example, dtype) <= (2e-2 if dtype == torch.float16 else 1e-12)


@pytest.mark.parametrize("example", EXAMPLES)
@pytest.mark.parametrize("opset", [23, 24])
def test_the_standard_operator_is_what_the_oracle_says_where_the_opset_has_it(example: Example, opset: int) -> None:
    model = single_node_model(ATTENTION, example.tensors(torch.float32), example.attributes, opset, example.dynamic)
    assert operators(model).count(("", "Attention")) == 1
    assert error_of(model, example, torch.float32) <= 1e-5


def test_rows_that_see_nothing_are_zero_in_every_spelling() -> None:
    example = Example(
        "unseen",
        {"q": (2, 3, 4), "k": (2, 5, 4), "v": (2, 5, 4), "mask": (2, 1, 3, 5)},
        {"heads": 2, "kv_heads": 2, "split": 1, "scale": 0.5, "causal": 0},
    )
    tensors = {**example.tensors(torch.float32), "mask": torch.zeros(2, 1, 3, 5, dtype=torch.bool)}
    tensors["mask"][0, :, 1:] = True
    for opset, own in ((18, False), (18, True), (23, False), (23, True)):
        model = single_node_model(ATTENTION, tensors, example.attributes, opset)
        if own:
            respell(model)
        (y,) = open_session(*light_proto(model), "attention").run(["y"], {"x": tensors["q"]})
        assert torch.equal(y[1], torch.zeros(3, 4))
        assert torch.equal(y[0, 0], torch.zeros(4))
        assert (y[0, 1:] != 0).all()


@pytest.fixture(scope="module")
def bert() -> Any:
    graph = case("bert").graph
    return regraft.load(graph.module, example_inputs=inputs("bert", 2, 6))


@pytest.fixture(scope="module")
def portable(bert: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bert.export(tmp_path_factory.mktemp("portable") / "bert.onnx")


def outputs(path: Path, given: dict[str, torch.Tensor]) -> torch.Tensor:
    return regraft.load(path)(**given)[0]


@pytest.mark.parametrize("functions", ["keep", "inline"])
@pytest.mark.parametrize("opset", [None, 20])
def test_a_file_for_onnx_runtime_holds_its_operator_and_computes_the_same(
    portable: Path, tmp_path: Path, functions: Any, opset: int | None
) -> None:
    path = regraft.load(portable).export(
        tmp_path / "bert.ort.onnx", target="onnxruntime", functions=functions, opset=opset
    )
    model = ir.load(path)
    assert operators(model).count((CONTRIB, OPERATOR)) == (2 if functions == "inline" else 1)  # one body for two calls
    assert "IsNaN" not in {op for _, op in operators(model)}
    assert model.opset_imports[CONTRIB] == 1
    assert model.opset_imports[""] == (opset or 21)
    for batch, length in ((3, 5), (1, 1)):
        given = inputs("bert", batch, length)
        torch.testing.assert_close(outputs(path, given), outputs(portable, given), atol=1e-5, rtol=1e-5)


def test_without_a_target_the_file_is_of_standard_operators_and_passes_the_checker(portable: Path) -> None:
    onnx.checker.check_model(onnx.load(portable), full_check=True)
    assert {domain for domain, _ in operators(ir.load(portable))} == {""}


def test_the_pass_alone_writes_a_portable_file_too(portable: Path, tmp_path: Path) -> None:
    path = regraft.optimize(portable, "fuse-attention", progress=False).export(tmp_path / "fused.onnx")
    onnx.checker.check_model(onnx.load(path), full_check=True)
    found = Counter(operators(ir.load(path)))
    assert [count for (domain, _), count in found.items() if domain == "regraft"] == [2]
    assert CONTRIB not in {domain for domain, _ in found}
    given = inputs("bert", 2, 6)
    torch.testing.assert_close(outputs(path, given), outputs(portable, given), atol=1e-5, rtol=1e-5)


def test_a_file_for_onnx_runtime_can_be_read_and_written_for_any_runtime_again(portable: Path, tmp_path: Path) -> None:
    own = regraft.load(portable).export(tmp_path / "own.onnx", target="onnxruntime")
    again = regraft.load(own).export(tmp_path / "again.onnx", opset=20)
    onnx.checker.check_model(onnx.load(again), full_check=True)
    assert CONTRIB not in {domain for domain, _ in operators(ir.load(again))}
    given = inputs("bert", 2, 6)
    torch.testing.assert_close(outputs(again, given), outputs(portable, given), atol=1e-5, rtol=1e-5)


def test_an_unknown_target_of_a_file_is_refused(bert: Any, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"^target must be 'onnxruntime', or None for any runtime; got 'tensorrt'$"):
        bert.export(tmp_path / "never.onnx", target="tensorrt")
    assert not list(tmp_path.iterdir())


def test_what_is_compiled_has_its_attention_fused_unless_told_otherwise(portable: Path) -> None:
    graph = load(portable)
    assert (CONTRIB, OPERATOR) in operators(for_this_runtime(graph).model)
    assert (CONTRIB, OPERATOR) not in operators(graph.model)
    given = inputs("bert", 3, 5)
    wanted = regraft.load(portable).compile(fuse_attention=False)(**given)[0]
    torch.testing.assert_close(regraft.load(portable).compile()(**given)[0], wanted, atol=1e-5, rtol=1e-5)
