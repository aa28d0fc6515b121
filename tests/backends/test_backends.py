"""Backends: what they run, on what, and what they refuse."""

from typing import Any

import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from torch import nn

import regraft
from regraft.backends import backend_names, compare
from regraft.errors import BackendError, ExportError, InputError, OptionError, UnknownNameError


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(24, 48), nn.ReLU(), nn.Linear(48, 24), nn.Tanh()).eval()


def inputs(rows: int = 6) -> torch.Tensor:
    return torch.randn(rows, 24, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def result() -> regraft.Optimized:
    return regraft.optimize(network(), "low-rank", example_inputs=inputs(), progress=False)


def test_backends_are_found_by_their_folders() -> None:
    assert {"onnxruntime", "torch"} <= set(backend_names())


@pytest.mark.parametrize("backend", ["torch", "onnxruntime"])
def test_every_backend_computes_what_the_module_computes_at_any_batch(result: Any, backend: str) -> None:
    executable = result.compile(backend=backend)
    for rows in (1, 6, 17):
        out = executable(inputs(rows))
        found = out if isinstance(out, torch.Tensor) else out[0]
        torch.testing.assert_close(found, result(inputs(rows)).detach(), atol=1e-5, rtol=1e-5)
    named = executable(input=inputs(3))
    assert (named if isinstance(named, torch.Tensor) else named[0]).shape == (3, 24)


@pytest.mark.parametrize("backend", ["torch", "onnxruntime"])
def test_an_executable_says_what_it_takes_and_returns(result: Any, backend: str) -> None:
    executable = result.compile(backend=backend)
    assert executable.backend == backend
    assert executable.target == "cpu"
    assert [str(value.type) for value in executable.inputs] == ["float32[batch, 24]"]
    assert [str(value.type) for value in executable.outputs] == ["float32[batch, 24]"]


@pytest.mark.parametrize("backend", ["torch", "onnxruntime"])
def test_wrong_inputs_are_refused_by_name(result: Any, backend: str) -> None:
    executable = result.compile(backend=backend)
    with pytest.raises(InputError, match=r"input 'input' needs float32 \[batch, 24\], got float32 \[6, 23\]"):
        executable(torch.zeros(6, 23))
    with pytest.raises(InputError, match="'other'"):
        executable(other=inputs())


def test_unknown_backends_and_targets_are_refused_with_those_that_exist(result: Any) -> None:
    with pytest.raises(UnknownNameError, match=r"regraft.backends has no 'tensorrt'; it has: .*onnxruntime"):
        result.compile(backend="tensorrt")
    with pytest.raises(UnknownNameError, match="onnxruntime backend: target must be one of cpu, cuda; got 'tpu'"):
        result.compile(target="tpu")


@pytest.mark.parametrize("backend", ["torch", "onnxruntime"])
def test_a_missing_gpu_is_named(result: Any, backend: str) -> None:
    if torch.cuda.is_available() or "CUDAExecutionProvider" in ort.get_available_providers():
        pytest.skip("there is a GPU")
    with pytest.raises(BackendError, match=f"{backend} backend: target 'cuda' needs"):
        result.compile(backend=backend, target="cuda")


def test_the_torch_backend_refuses_onnx_graphs_and_says_what_runs_them(result: Any, tmp_path: Any) -> None:
    loaded = regraft.load(result.export(tmp_path / "m.onnx"))
    with pytest.raises(BackendError, match="torch backend: runs models captured from PyTorch") as caught:
        loaded.compile(backend="torch")
    assert caught.value.hint == "compile it with backend='onnxruntime'"


def test_exported_nodes_carry_pass_and_layer_and_no_paths_of_the_machine(result: Any, tmp_path: Any) -> None:
    path = result.export(tmp_path / "m.onnx")
    nodes = [node for node in ir.load(path).graph if node.domain == "regraft"]
    assert [node.metadata_props["regraft.site"] for node in nodes] == ["0", "2"]
    assert {node.metadata_props["regraft.pass"] for node in nodes} == {"low-rank"}
    assert b"site-packages" not in path.read_bytes()


def test_weights_of_functions_are_stored_as_onnx_multiplies(result: Any, tmp_path: Any) -> None:
    proto = onnx.load(result.export(tmp_path / "m.onnx"))
    shapes = {tensor.name: tuple(tensor.dims) for tensor in proto.graph.initializer}
    assert shapes["0.down"] == (24, 8)
    assert shapes["0.up"] == (8, 48)
    (function,) = proto.functions
    assert [node.op_type for node in function.node] == ["MatMul", "MatMul", "Add"]


class Oddity(nn.Module):
    """Something that ONNX has no operator for."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.linalg.eigvals(x)


def test_what_onnx_cannot_say_is_named() -> None:
    loaded = regraft.load(Oddity(), example_inputs=torch.eye(3), dynamic_shapes=None)
    with pytest.raises(ExportError, match=r"Oddity cannot be written as ONNX: .*linalg_eig"):
        loaded.export("never.onnx")


def test_an_opset_before_18_is_refused_for_torch_models(result: Any, tmp_path: Any) -> None:
    with pytest.raises(OptionError, match=r"opset must be from 18 to \d+ for a PyTorch model; got 13"):
        result.export(tmp_path / "m.onnx", opset=13)
    assert not list(tmp_path.iterdir())
    with pytest.raises(OptionError, match="functions must be 'keep' or 'inline'; got 'maybe'"):
        result.export(tmp_path / "m.onnx", functions="maybe")


def test_an_option_that_a_backend_lacks_is_refused_with_those_that_it_has(result: Any) -> None:
    with pytest.raises(OptionError, match=r"^onnxruntime backend has no option 'foo'; it has: threads, entries"):
        result.compile("onnxruntime", foo=1)
    with pytest.raises(OptionError, match=r"^torch backend has no option 'threads'; it has: kernels, records$"):
        result.compile("torch", threads=1)


def test_compare_runs_functions_in_turn_and_counts_ratios_within_rounds() -> None:
    order: list[str] = []
    measured = compare({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, rounds=3, warmup=1)
    assert order == ["a", "b"] * 4
    assert measured.baseline == "a"
    assert len(measured.timings["b"].seconds) == 3
    assert measured.ratio("a") == 1.0
    with pytest.raises(OptionError, match="compare needs at least one function and one round; got 0 and 25"):
        compare({})
