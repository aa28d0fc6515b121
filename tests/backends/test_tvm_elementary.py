"""Activations as vectors: in a whole graph against float64, far from zero, and of what is no number."""

from functools import lru_cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from regraft.backends import compile_graph
from regraft.backends.tvm._decompose import program_of
from regraft.backends.tvm._maker import CpuMaker
from regraft.frontends.torch import capture

FUNCTIONS = {
    "gelu": nn.functional.gelu,
    "gelu_tanh": lambda x: nn.functional.gelu(x, approximate="tanh"),
    "silu": nn.functional.silu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
}
VALUES = torch.cat([torch.linspace(-12, 12, 2001), torch.tensor([-1e4, -100.0, -88.0, 0.0, 1e-6, 88.0, 100.0, 1e4])])


class All(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(function(x) for function in FUNCTIONS.values())


@lru_cache(maxsize=1)
def executable() -> Any:
    return compile_graph(capture(All(), (VALUES,)), "tvm", "llvm")


@pytest.mark.parametrize(("place", "name"), list(enumerate(FUNCTIONS)), ids=list(FUNCTIONS))
def test_an_activation_is_that_of_float64_to_a_few_roundings(place: int, name: str) -> None:
    got = executable()(VALUES)[place].double()
    torch.testing.assert_close(got, FUNCTIONS[name](VALUES.double()), atol=1e-6, rtol=1e-6)


def test_what_is_no_number_stays_so() -> None:
    x = VALUES.clone()
    x[7] = float("nan")
    for got in executable()(x):
        assert got[7].isnan()
        assert not got[8:].isnan().any()


def test_linear_layers_of_a_whole_graph_are_calls_of_kernels() -> None:
    layers = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3)).eval()
    program = program_of(capture(layers, (torch.randn(2, 5),)), CpuMaker())
    targets = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert targets == ["regraft_kernels.run.default", "aten.relu.default", "regraft_kernels.run.default"]
