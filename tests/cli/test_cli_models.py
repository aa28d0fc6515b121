"""The MODEL argument: files, functions, and one clear line for everything else."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from regraft.cli._models import is_function, load_model
from regraft.errors import CaptureError, ModelNotFoundError, ModelTypeError, RegraftError


def test_an_onnx_path_stays_a_path(onnx_file: Path) -> None:
    model = load_model("mlp.onnx")
    assert (model.source, model.file, model.example_inputs) == (Path("mlp.onnx"), Path("mlp.onnx"), None)


def test_a_function_in_the_current_folder_is_called(zoo: str) -> None:
    model = load_model(f"{zoo}:mlp")
    assert isinstance(model.source, nn.Module)
    assert (model.file, model.example_inputs) == (None, None)


def test_a_function_may_return_example_inputs_too(zoo: str) -> None:
    model = load_model(f"{zoo}:mlp_with_inputs")
    assert isinstance(model.source, nn.Module)
    assert tuple(model.example_inputs[0].shape) == (2, 32)


def test_inputs_from_a_file_win_over_the_functions(zoo: str, folder: Path) -> None:
    np.savez(folder / "in.npz", x=np.ones((5, 32), dtype=np.float32))
    model = load_model(f"{zoo}:mlp_with_inputs", folder / "in.npz")
    assert torch.equal(model.example_inputs["x"], torch.ones(5, 32))


@pytest.mark.parametrize("attribute", ["ready", "Mlp"])
def test_a_module_and_a_class_are_as_good_as_a_function(zoo: str, attribute: str) -> None:
    assert isinstance(load_model(f"{zoo}:{attribute}").source, nn.Module)


REFUSED = {
    "tiny_zoo:nope": (ModelNotFoundError, "tiny_zoo:nope: tiny_zoo has no 'nope'; it has: Mlp, broken, leaving, mlp,"),
    "nosuch_package.zoo:mlp": (ModelNotFoundError, "nosuch_package.zoo:mlp: there is no module 'nosuch_package'"),
    "tiny_zoo.deeper:mlp": (ModelNotFoundError, "tiny_zoo.deeper:mlp: there is no module 'tiny_zoo.deeper'"),
    "broken_zoo:mlp": (CaptureError, "importing broken_zoo for broken_zoo:mlp failed with ModuleNotFoundError:"),
    "tiny_zoo:wrong": (
        ModelTypeError,
        "tiny_zoo:wrong gave int; an nn.Module or (nn.Module, example_inputs) is",
    ),
    "tiny_zoo:number": (ModelTypeError, "tiny_zoo:number is int; a function or an nn.Module is needed"),
    "tiny_zoo:needing": (ModelTypeError, "tiny_zoo:needing must be callable without arguments: missing a required arg"),
    "tiny_zoo:broken": (CaptureError, "tiny_zoo:broken raised ValueError: found here (tiny_zoo.py, line 32)"),
    "tiny_zoo:leaving": (CaptureError, "tiny_zoo:leaving raised SystemExit: goodbye (tiny_zoo.py, line 36)"),
    "gone.onnx": (ModelNotFoundError, "model gone.onnx does not exist"),
    "weights.pt": (ModelTypeError, "MODEL must be an .onnx file, or package.module:function that returns an nn.Module"),
    "gibberish": (ModelTypeError, "MODEL must be an .onnx file, or package.module:function that returns an nn.Module"),
}


@pytest.mark.parametrize("spelling", REFUSED)
def test_what_is_no_model_is_refused_in_one_line(zoo: str, spelling: str) -> None:
    kind, text = REFUSED[spelling]
    with pytest.raises(RegraftError) as caught:
        load_model(spelling)
    assert type(caught.value) is kind
    assert str(caught.value).startswith(text)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_gets_the_hint_that_it_holds_no_program(zoo: str) -> None:
    with pytest.raises(ModelTypeError) as caught:
        load_model("weights.pt")
    assert caught.value.hint is not None
    assert caught.value.hint.startswith("a checkpoint holds weights and no program")


def test_an_existing_file_with_a_colon_is_a_file(folder: Path) -> None:
    (folder / "a:b").touch()
    assert not is_function("a:b")
    assert is_function("a:c")
    assert not is_function("C:/models/a.onnx")
