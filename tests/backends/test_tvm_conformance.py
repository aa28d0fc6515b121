"""Every structured op in code that TVM compiled, from both graph kinds, against the float64 oracle."""

from functools import lru_cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from regraft.backends import compile_graph
from regraft.backends.tvm import _maker
from regraft.backends.tvm._decompose import program_of
from regraft.frontends.onnx import load, single_node_model
from regraft.frontends.torch import FxGraph, capture
from regraft.frontends.torch.library import torch_op
from regraft.graph import Graph
from regraft.ops import Example, Op, all_ops, evaluate, get_op

TOLERANCE = 1e-5
"""Largest ‖y - ŷ‖ / ‖y‖: a few hundred roundings of float32."""

ALL = [(op, example) for op in all_ops().values() for example in op.examples]
QUICK = [(get_op(name), get_op(name).examples[0]) for name in ("int8_linear", "lowrank_linear", "shift_linear")]
QUICK += [(op, example) for op, example in ALL if (op.name, example.name) == ("multi_head_attention", "merged to rows")]
"""Compiling takes seconds; the others are run by the slow tests."""


def label(value: Any) -> str:
    return str(getattr(value, "name", value)).replace(" ", "_")


class OneOp(nn.Module):
    """An op whose first operand is the input."""

    def __init__(self, op: Op, tensors: dict[str, Tensor], attributes: Any) -> None:
        super().__init__()
        self.op, self.values = op, dict(attributes or {})
        self.names = [operand.name for operand in op.operands]
        for name in self.names[1:]:
            self.register_buffer(name, tensors.get(name))

    def forward(self, x: Tensor) -> Tensor:
        return torch_op(self.op.name)(x, *(getattr(self, name) for name in self.names[1:]), **self.values)


def graph_of(kind: str, op: Op, example: Example, tensors: dict[str, Tensor]) -> Graph:
    if kind == "onnx":
        model = single_node_model(op, tensors, example.attributes, 18, example.dynamic)
        return load(model)
    dims = dict.fromkeys(example.dynamic, torch.export.Dim.AUTO)
    module = OneOp(op, tensors, example.attributes).eval()
    return capture(module, (tensors[op.operands[0].name],), dynamic_shapes={"x": dims})


def check(kind: str, op: Op, example: Example) -> None:
    tensors = example.tensors(torch.float32)
    executable = compile_graph(graph_of(kind, op, example, tensors), "tvm", "llvm")
    (got,) = executable(tensors[op.operands[0].name])
    exact = {name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    wanted = evaluate(op, exact, dict(example.attributes or {}))
    assert got.dtype == torch.float32
    assert got.shape == wanted.shape
    assert float((got.double() - wanted).norm() / wanted.norm().clamp_min(1e-30)) <= TOLERANCE


@pytest.mark.parametrize(("op", "example"), QUICK, ids=label)
def test_an_op_computes_what_its_oracle_does(op: Op, example: Example) -> None:
    check("onnx", op, example)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["fx", "onnx"])
@pytest.mark.parametrize(("op", "example"), ALL, ids=label)
def test_every_example_computes_what_its_oracle_does(op: Op, example: Example, kind: str) -> None:
    check(kind, op, example)


@lru_cache(maxsize=1)
def integer_layer() -> tuple[Graph, Tensor]:
    op = all_ops()["int8_linear"]
    tensors = op.examples[0].tensors(torch.float32)
    return graph_of("fx", op, op.examples[0], tensors), tensors["x"]


def test_the_integer_product_is_one_of_integers(monkeypatch: pytest.MonkeyPatch) -> None:
    graph, _ = integer_layer()
    assert isinstance(graph, FxGraph)
    monkeypatch.setattr(_maker, "cpu_kernels", dict)
    program = program_of(graph, _maker.CpuMaker())
    assert "linear_integer" in str(program.graph)
    kinds = {node.meta["val"].dtype for node in program.graph.nodes if isinstance(node.meta.get("val"), Tensor)}
    assert torch.int32 in kinds
    assert torch.float64 not in kinds


def test_halves_are_rounded_to_even_as_in_torch() -> None:
    class Rounded(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.round(x)

    x = torch.tensor([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 3.4])
    (got,) = compile_graph(capture(Rounded(), (x,)), "tvm", "cpu")(x)
    assert got.tolist() == [-2.0, -2.0, 0.0, 0.0, 2.0, 2.0, 3.0]
