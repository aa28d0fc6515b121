"""Atomic writing: the old content or the new one, never half of it, and nothing left behind."""

import os
import stat

import pytest

from regraft._files import write_atomic
from regraft.errors import OutputError


def test_a_new_file_holds_the_data(tmp_path):
    write_atomic(tmp_path / "a.bin", b"\x00data")
    assert (tmp_path / "a.bin").read_bytes() == b"\x00data"
    assert [path.name for path in tmp_path.iterdir()] == ["a.bin"]


def test_a_new_file_gets_the_permissions_that_any_new_file_gets(tmp_path):
    (tmp_path / "plain").write_bytes(b"")
    write_atomic(tmp_path / "atomic", b"")
    assert (tmp_path / "atomic").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_replaced_file_keeps_its_permissions(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"old")
    path.chmod(0o640)
    write_atomic(path, b"new")
    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_a_link_is_followed_and_stays_a_link(tmp_path):
    (tmp_path / "real").write_bytes(b"old")
    (tmp_path / "link").symlink_to("real")
    write_atomic(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_bytes() == b"new"


@pytest.mark.parametrize("step", ["fsync", "rename"])
def test_a_failure_leaves_the_old_content_and_nothing_else(tmp_path, monkeypatch, step):
    path = tmp_path / "a"
    path.write_bytes(b"old")

    def fail(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync" if step == "fsync" else "replace", fail)
    with pytest.raises(OutputError) as caught:
        write_atomic(path, b"new")
    assert str(caught.value) == f"{path}: cannot be written: No space left on device"
    assert isinstance(caught.value, OSError)
    assert path.read_bytes() == b"old"
    assert [item.name for item in tmp_path.iterdir()] == ["a"]


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(OutputError) as caught:
        write_atomic(tmp_path / "no" / "a", b"")
    assert str(caught.value) == f"{tmp_path / 'no' / 'a'}: the folder {tmp_path / 'no'} does not exist"
    assert caught.value.hint == "create the folder first"


def test_a_folder_is_refused(tmp_path):
    with pytest.raises(OutputError) as caught:
        write_atomic(tmp_path, b"")
    assert str(caught.value) == f"{tmp_path}: is a directory; the name of a file is needed"


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "f").write_bytes(b"")
    with pytest.raises(OutputError) as caught:
        write_atomic(tmp_path / "f" / "a", b"")
    assert str(caught.value) == f"{tmp_path / 'f' / 'a'}: {tmp_path / 'f'} is not a folder"


def test_a_folder_that_may_not_be_written_is_refused(tmp_path, monkeypatch):
    def fail(*_args, **_kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.open", fail)  # a test may run as root, who may write everywhere
    with pytest.raises(OutputError, match="cannot be written: Permission denied"):
        write_atomic(tmp_path / "a", b"")
