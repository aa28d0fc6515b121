"""What the TVM backend cannot take of an ONNX file is named before anything is compiled, and why."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.helper as oh
import pytest
import torch
from onnx_cases import BATCH, Case, numbers
from tiny_transformers import library_example, library_model

import regraft
from regraft.backends import compile_graph
from regraft.backends.tvm._maker import CpuMaker
from regraft.backends.tvm._onnx import program_of_onnx
from regraft.errors import BackendError
from regraft.frontends.onnx import load

X = numbers(BATCH, 6)


def refusal(model: Any) -> BackendError:
    with pytest.raises(BackendError) as caught:
        compile_graph(load(model), "tvm", "llvm")
    return caught.value


def of_nodes(nodes: list[Any], result: int = onnx.TensorProto.FLOAT) -> onnx.ModelProto:
    x = oh.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", 4])
    y = oh.make_tensor_value_info("y", result, None)
    return oh.make_model(oh.make_graph(nodes, "odd", [x], [y]), opset_imports=[oh.make_opsetid("", 18)], ir_version=9)


def test_operators_are_named_once_each_with_the_reason() -> None:
    nodes = [
        oh.make_node("NonZero", ["x"], ["a"]),
        oh.make_node("NonZero", ["x"], ["b"]),
        oh.make_node("Det", ["x"], ["c"]),
        oh.make_node("RandomNormalLike", ["x"], ["y"]),
    ]
    listed = "NonZero (the shape of its result depends on data), Det, RandomNormalLike (its result is random)"
    error = refusal(of_nodes(nodes))
    assert str(error) == f"tvm backend: odd has operators that it cannot take: {listed}"
    assert error.hint is None


FORMS = [
    (
        Case("MaxPool", [numbers(BATCH, 2, 5)], {"kernel_shape": [2]}, outputs=(0, 1)),
        "MaxPool: its result 2, 'y1'",
    ),
    (
        Case("MaxPool", [numbers(BATCH, 2, 5)], {"kernel_shape": [2], "strides": [2], "ceil_mode": 1}),
        "MaxPool: ceil",
    ),
    (Case("Pad", [X, np.array([0, 1, 0, 1])], {"mode": "edge"}), "Pad: it takes integers that are computed from data"),
    (
        Case("Attention", [numbers(1, 2, 3, 4)] * 3, {}, outputs=(0, 3)),
        "Attention: its result 4, 'y3'",
    ),
]


@pytest.mark.parametrize(("case", "text"), FORMS, ids=str)
def test_forms_that_are_not_translated_are_refused_by_name(case: Case, text: str) -> None:
    assert str(refusal(case.model())).startswith(f"tvm backend: {text}")


def choice(condition: list[Any]) -> onnx.ModelProto:
    bodies: dict[str, Any] = {
        f"{name}_branch": oh.make_graph(
            [oh.make_node(op, ["x"], [name])], name, [], [oh.make_tensor_value_info(name, 1, ["n", 4])]
        )
        for name, op in (("then", "Neg"), ("else", "Abs"))
    }
    return of_nodes([*condition, oh.make_node("If", ["c"], ["y"], **bodies)])


@pytest.mark.parametrize("taken", [True, False])
def test_a_choice_that_is_known_while_tracing_takes_its_body(taken: bool) -> None:
    stored = onnx.numpy_helper.from_array(np.array(taken), "c")
    model = load(choice([oh.make_node("Constant", [], ["c"], value=stored)]))
    program, _ = program_of_onnx(model, CpuMaker())
    x = torch.randn(5, 4)
    torch.testing.assert_close(program.module()(x)[0], -x if taken else x.abs())


def test_a_choice_made_of_data_is_refused() -> None:
    nodes = [oh.make_node("ReduceSum", ["x"], ["s"], keepdims=0), oh.make_node("Cast", ["s"], ["c"], to=9)]
    assert str(refusal(choice(nodes))) == "tvm backend: If: a choice between bodies that is made of data"


@pytest.fixture(scope="module")
def optimized() -> Any:
    passes = ["low-rank{keep=0.7,targets=[*.query]}", "fuse-attention"]
    return regraft.optimize(library_model("bert"), passes, example_inputs=library_example("bert"), progress=False)


@pytest.mark.parametrize("functions", ["keep", "inline"])
def test_a_file_for_onnx_runtime_runs(optimized: Any, functions: Any, tmp_path: Path) -> None:
    path = optimized.export(tmp_path / "bert.onnx", target="onnxruntime", functions=functions)
    executable = regraft.load(path).compile("tvm", "llvm")
    inputs = library_example("bert", 3, 5)
    for got, exact in zip(executable(*inputs), optimized.graph.run(list(inputs))[0], strict=True):
        assert float((got - exact).norm() / exact.norm()) <= 1e-3


def test_a_loop_of_an_inlined_function_of_ours_is_refused_with_the_remedy() -> None:
    body = oh.make_graph(
        [oh.make_node("Identity", ["on"], ["still"]), oh.make_node("Neg", ["at"], ["next"])],
        "body",
        [
            oh.make_tensor_value_info("step", onnx.TensorProto.INT64, []),
            oh.make_tensor_value_info("on", onnx.TensorProto.BOOL, []),
            oh.make_tensor_value_info("at", onnx.TensorProto.FLOAT, None),
        ],
        [
            oh.make_tensor_value_info("still", onnx.TensorProto.BOOL, []),
            oh.make_tensor_value_info("next", onnx.TensorProto.FLOAT, None),
        ],
    )
    count = onnx.numpy_helper.from_array(np.array(3), "count")
    nodes = [
        oh.make_node("Constant", [], ["count"], value=count),
        oh.make_node("Loop", ["count", "", "x"], ["y"], body=body),
    ]
    model = of_nodes(nodes)
    oh.set_model_props(model, {"regraft.recipe": "passes: []"})
    error = refusal(model)
    assert str(error) == "tvm backend: odd has operators that it cannot take: Loop (a loop whose length is data)"
    assert error.hint == "export(functions='keep') writes structured ops that are taken by their meaning"
