"""Every structured op, on every example: its ONNX function in ONNX Runtime against the float64 oracle."""

from dataclasses import dataclass

import onnx_ir as ir
import pytest
import torch
from onnx_ir.passes.common import InlinePass
from torch import Tensor

from regraft.frontends.onnx import function_for, load, single_node_model
from regraft.frontends.onnx._session import light_proto, open_session
from regraft.ops import Example, Op, all_ops, evaluate

TOLERANCE = {torch.float16: 2e-2, torch.float32: 1e-5, torch.float64: 1e-12}
"""Largest ‖y - ŷ‖ / ‖y‖: a few hundred roundings of the type."""


@dataclass(frozen=True)
class Run:
    """One way to run one example."""

    op: Op
    example: Example
    opset: int
    dtype: torch.dtype
    dynamic: bool
    inline: bool

    def __str__(self) -> str:
        dims = "dynamic" if self.dynamic else "fixed"
        form = "inline" if self.inline else "function"
        kind = str(self.dtype).removeprefix("torch.")
        return f"{self.op.name}-{self.example.name}-{self.opset}-{kind}-{dims}-{form}".replace(" ", "_")


WAYS = (
    (18, torch.float32, True, False),
    (18, torch.float32, False, True),
    (21, torch.float32, True, True),
    (21, torch.float32, False, False),
    (13, torch.float32, True, False),
    (18, torch.float64, True, False),
    (18, torch.float16, True, False),
    (13, torch.float16, False, True),
    (23, torch.float32, True, False),
)

RUNS = [Run(op, example, *way) for op in all_ops().values() for example in op.examples for way in WAYS]


@pytest.mark.parametrize("run", RUNS, ids=str)
def test_an_op_computes_in_onnx_runtime_what_its_oracle_does(run: Run) -> None:
    attributes = dict(run.example.attributes or {})
    tensors = run.example.tensors(run.dtype)
    model = _model(run, tensors)
    first = run.op.operands[0].name
    (got,) = open_session(*light_proto(model), run.op.name).run(["y"], {"x": tensors[first]})
    exact = {name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    wanted = evaluate(run.op, exact, attributes)
    assert got.dtype == run.dtype
    assert got.shape == wanted.shape
    error = float((got.double() - wanted).norm() / wanted.norm().clamp_min(1e-30))
    assert error <= _tolerance(run, model)


def _model(run: Run, tensors: dict[str, Tensor]) -> ir.Model:
    dynamic = run.example.dynamic if run.dynamic else ()
    model = single_node_model(run.op, tensors, run.example.attributes, run.opset, dynamic)
    if run.inline:
        InlinePass()(model)
        assert not model.functions
    return model


def _tolerance(run: Run, model: ir.Model) -> float:
    """That of the type, or of single precision where the op goes through it."""
    nodes = [
        *model.graph.all_nodes(),
        *(node for function in model.functions.values() for node in function.all_nodes()),
    ]
    casts = [node.attributes["to"].as_int() for node in nodes if node.op_type == "Cast"]
    widened = ir.DataType.FLOAT in casts
    return max(TOLERANCE[run.dtype], TOLERANCE[torch.float32] if widened else 0.0)


@pytest.mark.parametrize("op", all_ops().values(), ids=list(all_ops()))
def test_a_dynamic_dim_may_have_another_extent_at_run_time(op: Op) -> None:
    example = next(example for example in op.examples if example.dynamic)
    tensors = example.tensors(torch.float32)
    model = single_node_model(op, tensors, example.attributes, 18, example.dynamic)
    first = op.operands[0].name
    axis = example.dynamic[0]
    longer = torch.cat([tensors[first], tensors[first]], dim=axis)
    (got,) = open_session(*light_proto(model), op.name).run(["y"], {"x": longer})
    (once,) = open_session(*light_proto(model), op.name).run(["y"], {"x": tensors[first]})
    assert got.shape[axis] == 2 * once.shape[axis]


@pytest.mark.parametrize("op", all_ops().values(), ids=list(all_ops()))
def test_a_single_node_model_is_valid_and_shows_the_op(op: Op) -> None:
    for example in op.examples:
        model = single_node_model(op, example.tensors(torch.float32), example.attributes, 18, example.dynamic)
        rank = evaluate(op, example.tensors(), example.attributes or {}).dim()
        model.graph.outputs[0].shape = ir.Shape([f"out{axis}" for axis in range(rank)])  # the checker wants one
        graph = load(model)
        graph.validate()
        (node,) = graph.nodes()
        assert node.op == op.name
        assert [value is not None for value in node.inputs] == [name in example.shapes for name in _names(op)]
        assert dict(node.attributes) == dict(example.attributes or {})


def _names(op: Op) -> list[str]:
    return [operand.name for operand in op.operands]


def _present(op: Op, example: Example) -> frozenset[str]:
    return frozenset(operand.name for operand in op.operands if operand.optional and operand.name in example.shapes)


@pytest.mark.parametrize("op", all_ops().values(), ids=list(all_ops()))
def test_a_function_is_the_same_every_time_and_of_standard_operators(op: Op) -> None:
    for example in op.examples:
        dtypes = dict.fromkeys(example.shapes, "float32")
        made = [function_for(op, _present(op, example), 18, example.attributes, dtypes) for _ in range(2)]
        first, second = (ir.to_proto(function).SerializeToString() for function in made)
        assert first == second
        assert {node.domain for node in made[0].all_nodes()} == {""}
        assert made[0].doc_string and made[0].doc_string.startswith(op.doc)
