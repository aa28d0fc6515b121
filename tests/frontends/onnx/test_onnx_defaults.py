"""Weights that a file lists among its inputs: read as ONNX Runtime reads them."""

import runpy
import sys
from pathlib import Path

import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import helper
from onnx_models import mlp

from regraft._probes import random_inputs
from regraft.errors import InputError
from regraft.frontends.onnx import OnnxGraph, load, save
from regraft.graph import find_linear_sites

X = torch.ones(2, 6)


def listing(ir_version: int) -> onnx.ModelProto:
    """The two-layer model with all of its weights among the inputs."""
    model = mlp()
    model.ir_version = ir_version
    for tensor in model.graph.initializer:
        model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    return model


def runtime_inputs(model: onnx.ModelProto) -> tuple[list[str], list[str]]:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    given, overridable = session.get_inputs(), session.get_overridable_initializers()
    return [value.name for value in given], [value.name for value in overridable]


def test_up_to_ir_version_3_listed_weights_are_constants_here_as_in_onnx_runtime() -> None:
    graph, plain = load(listing(3)), load(mlp())
    assert runtime_inputs(listing(3)) == (["x"], [])
    assert [value.name for value in graph.inputs()] == ["x"]
    assert [site.name for site in find_linear_sites(graph)[0]] == [site.name for site in find_linear_sites(plain)[0]]
    assert torch.equal(graph.run(X)[0][0], plain.run(X)[0][0])
    with pytest.raises(InputError, match=r"the model has no input 'w0'"):
        graph.run({"x": X, "w0": torch.zeros(6, 4)})


def test_a_model_of_ir_version_3_is_noted_and_written_as_a_valid_one_of_version_4(tmp_path: Path) -> None:
    given = listing(3)
    before = given.SerializeToString(deterministic=True)
    graph = load(given)
    names = [tensor.name for tensor in given.graph.initializer]
    listed = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    note = f"read as IR version 4, for version 3 lists weights among the inputs ({len(names)}): {listed}"
    assert graph.notes == (note,)
    save(graph, tmp_path / "out.onnx")
    written = onnx.load(tmp_path / "out.onnx")
    onnx.checker.check_model(written, full_check=True)
    assert (written.ir_version, [value.name for value in written.graph.input]) == (4, ["x"])
    assert given.SerializeToString(deterministic=True) == before


@pytest.mark.parametrize("ir_version", [4, 8])
def test_later_a_listed_weight_may_be_overridden_and_is_no_layer_for_a_reason_with_the_remedy(ir_version: int) -> None:
    graph = load(listing(ir_version))
    assert runtime_inputs(listing(ir_version))[1] == [value.name for value in graph.inputs() if value.has_default]
    sites, misses = find_linear_sites(graph)
    assert not sites
    assert misses[0].reason == (
        "its weight w0 is also an input of the graph, which callers may override; "
        "python -m onnxruntime.tools.remove_initializer_from_input makes it a constant"
    )


def test_the_remedy_makes_layers_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given, made = tmp_path / "given.onnx", tmp_path / "made.onnx"
    onnx.save(listing(8), given)
    monkeypatch.setattr(sys, "argv", ["tool", "--input", str(given), "--output", str(made)])
    runpy.run_module("onnxruntime.tools.remove_initializer_from_input", run_name="__main__")
    graph = load(made)
    assert isinstance(graph, OnnxGraph)
    assert not graph.notes
    assert len(find_linear_sites(graph)[0]) == len(find_linear_sites(load(mlp()))[0])


def test_a_model_is_measured_with_the_defaults_that_its_file_has() -> None:
    assert list(random_inputs(load(listing(8)), seed=0) or ()) == ["x"]


def test_an_input_without_a_default_has_none() -> None:
    assert [value.has_default for value in load(mlp()).inputs()] == [False]
