"""Output paths are checked before any work."""

import os
from pathlib import Path

import pytest

from regraft.cli._outputs import check_outputs, check_suffix, model_bytes
from regraft.errors import OptionError, OutputError


def test_a_fresh_name_in_a_folder_is_fine(tmp_path: Path) -> None:
    check_outputs([tmp_path / "a.onnx", tmp_path / "b.json"], [tmp_path / "in.onnx"])


def test_a_missing_folder_is_refused_with_the_line_that_makes_it(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"the folder of .* does not exist") as caught:
        check_outputs([tmp_path / "deep" / "a.onnx"], [])
    assert caught.value.hint == f"mkdir -p '{tmp_path / 'deep'}'"


def test_a_folder_in_the_files_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.onnx").mkdir()
    with pytest.raises(OutputError, match=r"a\.onnx is a folder; the name of a file is needed"):
        check_outputs([tmp_path / "a.onnx"], [])


def test_a_read_only_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: not mode & os.W_OK)
    with pytest.raises(OutputError, match=r"the folder of .*a\.onnx cannot be written to"):
        check_outputs([tmp_path / "a.onnx"], [])


def test_the_input_under_any_name_is_refused(tmp_path: Path) -> None:
    source = tmp_path / "in.onnx"
    source.touch()
    (tmp_path / "link.onnx").symlink_to(source)
    for name in ("in.onnx", "./in.onnx", "link.onnx"):
        with pytest.raises(OutputError, match="is an input of this command") as caught:
            check_outputs([tmp_path / name], [source])
        assert caught.value.hint == "give another name; an input file is never changed in place"


def test_two_outputs_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"a\.json is named for two outputs"):
        check_outputs([tmp_path / "a.json", tmp_path / "." / "a.json"], [])


def test_a_suffix_says_what_is_written(tmp_path: Path) -> None:
    check_suffix("-o", Path("a.onnx"), (".onnx",))
    with pytest.raises(OptionError, match=r"--diff must end in \.txt or \.json; got 'a\.html'"):
        check_suffix("--diff", Path("a.html"), (".txt", ".json"))


def test_the_size_of_a_model_includes_its_data_file(tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(b"123")
    assert model_bytes(tmp_path / "a.onnx") == 3
    (tmp_path / "a.onnx.data").write_bytes(b"12345")
    assert model_bytes(tmp_path / "a.onnx") == 8
