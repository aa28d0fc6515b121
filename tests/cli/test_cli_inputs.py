"""Inputs from .npz files: what is read, and what is refused."""

from pathlib import Path

import numpy as np
import pytest
import torch

from regraft.cli._inputs import load_inputs
from regraft.errors import InputError, ModelNotFoundError


def test_named_arrays_come_back_by_name(tmp_path: Path) -> None:
    path = tmp_path / "batch.npz"
    np.savez(path, ids=np.arange(6).reshape(2, 3), mask=np.ones((2, 3), dtype=bool))
    inputs = load_inputs(path)
    assert isinstance(inputs, dict)
    assert {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in inputs.items()} == {
        "ids": (torch.int64, (2, 3)),
        "mask": (torch.bool, (2, 3)),
    }


def test_unnamed_arrays_come_back_in_order(tmp_path: Path) -> None:
    path = tmp_path / "batch.npz"
    np.savez(path, *(np.full(2, place) for place in range(12)))
    inputs = load_inputs(path)
    assert isinstance(inputs, tuple)
    assert [int(tensor[0]) for tensor in inputs] == list(range(12))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"inputs .*gone\.npz do not exist"):
        load_inputs(tmp_path / "gone.npz")


def test_a_single_array_is_no_archive(tmp_path: Path) -> None:
    path = tmp_path / "one.npy"
    np.save(path, np.ones(3))
    with pytest.raises(InputError, match=r"one\.npy is not an \.npz archive") as caught:
        load_inputs(path)
    assert caught.value.hint == "write one with numpy.savez(path, input_ids=...)"


def test_an_empty_archive_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "none.npz"
    np.savez(path)
    with pytest.raises(InputError, match=r"none\.npz holds no array; at least one is needed"):
        load_inputs(path)


class Bomb:
    """An object that leaves a trace when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> object:
        return (Path.touch, (self.trace,))


def test_python_objects_are_refused_and_never_unpickled(tmp_path: Path) -> None:
    path, trace = tmp_path / "bomb.npz", tmp_path / "exploded"
    np.savez(path, x=np.array([Bomb(trace)], dtype=object))
    with pytest.raises(InputError, match=r"bomb\.npz holds something else than plain arrays: Object arrays"):
        load_inputs(path)
    assert not trace.exists()


def test_a_truncated_archive_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "short.npz"
    np.savez(path, x=np.zeros(10_000))
    path.write_bytes(path.read_bytes()[:4000])
    with pytest.raises(InputError, match=r"short\.npz"):
        load_inputs(path)


def test_text_is_no_number(tmp_path: Path) -> None:
    path = tmp_path / "words.npz"
    np.savez(path, words=np.array(["a", "b"]))
    with pytest.raises(InputError, match="array 'words' must hold numbers or booleans; got <U1"):
        load_inputs(path)
