"""State dicts that bitsandbytes quantized: the layers that they have, reading them, and what a broken one says."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from regraft.errors import ModelFileError, ModelNotFoundError, OptionError, RegraftError
from regraft.numerics.int8 import quantize_rows
from regraft.numerics.int8_state import open_state


def layer(name: str, weight: Tensor) -> dict[str, Tensor]:
    """What Linear8bitLt puts into a state dict."""
    return {
        f"{name}.weight": quantize_rows(weight).codes,
        f"{name}.SCB": weight.abs().amax(dim=1),
        f"{name}.weight_format": torch.tensor(0, dtype=torch.uint8),
    }


WEIGHT = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
STATE = {**layer("model.a.query", WEIGHT), **layer("model.b.query", 2 * WEIGHT), "model.norm.weight": torch.ones(6)}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    save_file(STATE, tmp_path / "int8.safetensors")
    return tmp_path / "int8.safetensors"


def test_a_layer_is_read_as_it_was_stored(file: Path) -> None:
    state = open_state(file)
    assert sorted(state.layers) == ["model.a.query", "model.b.query"]
    found = state.read("model.b.query")
    assert torch.equal(found.codes, STATE["model.b.query.weight"])
    torch.testing.assert_close(found.scale, STATE["model.b.query.SCB"] / 127)


def test_a_folder_is_all_of_its_files(tmp_path: Path) -> None:
    save_file(layer("a", WEIGHT), tmp_path / "model-1.safetensors")
    save_file(layer("b", WEIGHT), tmp_path / "model-2.safetensors")
    assert sorted(open_state(tmp_path).layers) == ["a", "b"]
    assert open_state(tmp_path).read("b").codes.shape == (4, 6)


def test_names_may_differ_by_a_prefix(file: Path) -> None:
    state = open_state(file)
    assert state.layer_named("model.a.query") == "model.a.query"
    assert state.layer_named("a.query") == "model.a.query"
    assert state.layer_named("bert.model.a.query") == "model.a.query"
    assert state.layer_named("c.query") is None


def test_a_name_that_could_be_several_layers_is_refused(file: Path) -> None:
    with pytest.raises(OptionError, match=r"the layer query could be any of model\.a\.query, model\.b\.query; one is"):
        open_state(file).layer_named("query")


def test_the_restored_state_loads_into_the_dense_model(file: Path) -> None:
    restored = dict(open_state(file).dequantized())
    assert sorted(restored) == ["model.a.query.weight", "model.b.query.weight", "model.norm.weight"]
    steps = (restored["model.a.query.weight"] - WEIGHT).abs() / (WEIGHT.abs().amax(dim=1, keepdim=True) / 127)
    assert float(steps.max()) <= 0.5001


def broken(tmp_path: Path, name: str) -> Path:
    path = tmp_path / name
    if name == "text.safetensors":
        path.write_text("no tensors here")
    elif name == "pickle.bin":
        torch.save(STATE, path)
    elif name == "empty":
        path.mkdir()
    elif name == "dense.safetensors":
        save_file({"a.weight": WEIGHT}, path)
    return path


@pytest.mark.parametrize(
    ("name", "kind", "text"),
    [
        ("absent.safetensors", ModelNotFoundError, "state {path} does not exist"),
        ("empty", ModelNotFoundError, "state {path} has no .safetensors file"),
        ("pickle.bin", OptionError, "state {path}: a .safetensors file, or a folder of them, is needed"),
        ("dense.safetensors", ModelFileError, "state {path} holds no layer in 8 bits: no tensor's name ends in .SCB"),
        ("text.safetensors", ModelFileError, "{path} is not a safetensors file: "),
    ],
)
def test_what_is_no_such_state_is_refused_in_one_line(
    tmp_path: Path, name: str, kind: type[RegraftError], text: str
) -> None:
    path = broken(tmp_path, name)
    with pytest.raises(kind) as caught:
        open_state(path)
    assert str(caught.value).startswith(text.format(path=path))
    assert len(str(caught.value).splitlines()) == 1


def test_a_layout_of_some_gpu_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "turing.safetensors"
    save_file({**layer("a", WEIGHT), "a.weight_format": torch.tensor(2, dtype=torch.uint8)}, path)
    with pytest.raises(ModelFileError, match=r"a\.weight_format must be 0 \(rows\); got 2$"):
        open_state(path).read("a")


def test_scales_without_codes_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "half.safetensors"
    save_file({"a.SCB": torch.ones(4)}, path)
    with pytest.raises(ModelFileError, match=r"a has a\.SCB, but no a\.weight$"):
        open_state(path).read("a")
