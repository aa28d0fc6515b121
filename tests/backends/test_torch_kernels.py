"""`compile("torch", kernels="tvm")`: which ops run on kernels and which do not, torch.compile, and refusals."""

from functools import lru_cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import regraft
from regraft.backends import compile_graph
from regraft.backends.tvm import _calls, _compat
from regraft.errors import BackendError, MissingExtraError, OptionError, VerificationError
from regraft.frontends.onnx import load, single_node_model
from regraft.frontends.torch import capture
from regraft.ops import get_op


class Layers(nn.Module):
    """Two layers of one shape, and a third one."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(24, 24), nn.Linear(24, 24), nn.Linear(24, 12)

    def forward(self, x: Tensor) -> Tensor:
        return self.third(torch.relu(self.second(torch.relu(self.first(x)))))


@lru_cache(maxsize=1)
def optimized() -> Any:
    torch.manual_seed(0)
    passes = ["low-rank{keep=0.6,targets=[first;second]}", "monarch{targets=[third],slower=true}"]
    return regraft.optimize(Layers().eval(), passes, example_inputs=(torch.randn(2, 5, 24),), progress=False)


@lru_cache(maxsize=1)
def executable() -> Any:
    return optimized().compile("torch", kernels="tvm")


@pytest.mark.parametrize(("batch", "sequence"), [(2, 5), (1, 1), (3, 40), (0, 4)])
def test_the_module_computes_the_same_on_kernels_at_any_size(batch: int, sequence: int) -> None:
    x = torch.randn(batch, sequence, 24)
    torch.testing.assert_close(executable()(x), optimized().compile("torch")(x), atol=1e-5, rtol=1e-5)


def test_it_is_told_which_ops_run_on_kernels() -> None:
    by_site = {use.site: use for use in executable().kernels}
    assert {name: use.op for name, use in by_site.items()} == {
        "first": "lowrank_linear",
        "second": "lowrank_linear",
        "third": "monarch_linear",
    }
    assert str(by_site["first"]) == "first: lowrank_linear on tvm"
    targets = [str(node.target) for node in executable().module.graph.nodes]
    assert targets.count("regraft_kernels.run.default") == sum(use.kernel == "tvm" for use in executable().kernels)


def test_without_the_option_no_kernel_is_used() -> None:
    plain = optimized().compile("torch")
    assert plain.kernels == ()
    assert "regraft_kernels" not in str(plain.module.graph)


def test_torch_compile_takes_the_module_whole() -> None:
    module = torch.compile(executable().module, fullgraph=True, backend="aot_eager")
    x = torch.randn(2, 7, 24)
    with torch.no_grad():
        torch.testing.assert_close(module(x), executable()(x), atol=1e-6, rtol=1e-6)


def test_weights_that_only_kernels_read_are_not_kept_twice() -> None:
    assert not [name for name, _ in executable().module.named_parameters() if name.startswith(("first", "second"))]


def test_another_element_type_keeps_the_composite_form_and_says_so() -> None:
    found = regraft.optimize(
        Layers().bfloat16().eval(),
        ["low-rank{keep=0.6,targets=[first]}"],
        example_inputs=(torch.randn(2, 5, 24).bfloat16(),),
        progress=False,
    )
    (use,) = found.compile("torch", kernels="tvm").kernels
    assert use.kernel is None
    assert str(use) == ("first: lowrank_linear as it is: activations and factors must all be float32, or all float64")


def test_a_kernel_that_computes_something_else_is_not_handed_out(monkeypatch: pytest.MonkeyPatch) -> None:
    run = _calls.Compiled.__call__
    monkeypatch.setattr(_calls.Compiled, "__call__", lambda self, *given: run(self, *given) + 1)
    with pytest.raises(VerificationError, match=r"tvm kernel lowrank_linear: first of Layers is off by .* of its size"):
        optimized().compile("torch", kernels="tvm")


def test_kernels_that_do_not_exist_are_refused() -> None:
    graph = capture(nn.Linear(3, 2), (torch.ones(2, 3),))
    with pytest.raises(OptionError, match="torch backend: kernels must be one of None, 'tvm'; got 'triton'"):
        compile_graph(graph, "torch", kernels="triton")
    op = get_op("lowrank_linear")
    model = single_node_model(op, op.examples[0].tensors(torch.float32), None, 18, (0,))
    with pytest.raises(BackendError, match="torch backend: runs models captured from PyTorch"):
        compile_graph(load(model), "torch", kernels="tvm")


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        raise _compat.PackageNotFoundError(name)

    monkeypatch.setattr(_compat, "version", version)
    with pytest.raises(MissingExtraError, match="tvm backend: needs apache-tvm .*; apache-tvm is not installed"):
        optimized().compile("torch", kernels="tvm")
