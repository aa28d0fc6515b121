"""Ops that are composed of several kernels, on the CPU: `lowrank_attention`; `int8_topk_linear` says why it is not."""

import pytest
import torch
from torch import Tensor, nn

from regraft.backends.tvm._composed import COMPOSITIONS
from regraft.backends.tvm._maker import CpuMaker, Varying
from regraft.backends.tvm._torch import with_kernels
from regraft.frontends.torch import capture
from regraft.frontends.torch.library import torch_op
from regraft.ops import Example, evaluate, get_op

OP = get_op("lowrank_attention")
VARY = COMPOSITIONS[OP.name].activations


def layer(example: Example, dtype: torch.dtype = torch.float32):
    """The kernels of an example, and its activations."""
    tensors = example.tensors(dtype)
    constants = {name: x for name, x in tensors.items() if name not in VARY}
    varying = {name: x for name, x in tensors.items() if name in VARY}
    types = {name: Varying(x.dtype, tuple(x.shape), tuple(x.shape)) for name, x in varying.items()}
    made = COMPOSITIONS[OP.name].make(constants, types, dict(example.attributes or {}), CpuMaker())
    return made, list(varying.values())


@pytest.mark.parametrize("example", OP.examples, ids=lambda example: example.name)
def test_attention_in_factors_computes_what_its_oracle_does(example: Example) -> None:
    made, activations = layer(example)
    exact = {name: x.double() if x.is_floating_point() else x for name, x in example.tensors(torch.float32).items()}
    wanted = evaluate(OP, exact, dict(example.attributes or {}))
    assert not isinstance(made, str)
    found = made(*activations)
    assert found.shape == wanted.shape
    assert float((found.double() - wanted).norm() / wanted.norm()) <= 1e-5


def test_activations_are_not_written_over() -> None:
    made, activations = layer(OP.examples[2])  # with a residual
    before = [x.clone() for x in activations]
    first = made(*activations)
    assert torch.equal(first, made(*activations))
    assert all(torch.equal(one, other) for one, other in zip(activations, before, strict=True))


def test_halves_are_refused_by_the_kernels_that_it_is_composed_of() -> None:
    made, _ = layer(OP.examples[0], torch.bfloat16)
    assert made == "activations and weights must all be float32, or all float64"


class OneOp(nn.Module):
    """An op of one input."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.op = get_op(name)
        self.example = self.op.examples[0]
        self.names = [name for name in self.example.shapes if name != "x"]
        for own, tensor in self.example.tensors(torch.float32).items():
            if own != "x":
                self.register_buffer(own, tensor)

    def forward(self, x: Tensor) -> Tensor:
        own = {name: getattr(self, name) for name in self.names}
        return torch_op(self.op.name)(x, *(own[name] for name in self.names), **dict(self.example.attributes or {}))


def test_it_is_one_opaque_operator_that_torch_compile_takes() -> None:
    module = OneOp("lowrank_attention").eval()
    x = module.example.tensors(torch.float32)["x"]
    program, (use,) = with_kernels(capture(module, (x,)))
    assert str(use) == "lowrank_attention: lowrank_attention on tvm"
    assert [str(node.target) for node in program.graph.nodes if node.op == "call_function"] == [
        "regraft_kernels.run.default"
    ]
    compiled = torch.compile(program, fullgraph=True, backend="aot_eager")
    other = torch.randn(3, 9, x.shape[-1])
    with torch.no_grad():
        torch.testing.assert_close(compiled(other), module(other), atol=1e-4, rtol=1e-4)
        assert program(torch.randn(0, 9, x.shape[-1])).shape == (0, 9, 6)


def test_columns_that_each_call_finds_are_refused_on_the_cpu_with_the_reason() -> None:
    module = OneOp("int8_topk_linear").eval()
    _, (use,) = with_kernels(capture(module, (module.example.tensors(torch.float32)["x"],)))
    assert use.kernel is None
    assert use.reason == "its columns are found in each call, and packed weights cannot be read by column"
