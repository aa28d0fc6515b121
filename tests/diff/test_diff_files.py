"""Saving diffs, and reading them back."""

import json

import pytest
from snapshot_strategies import node, snapshot, value

from regraft.diff import GraphDiff, diff
from regraft.errors import OptionError, OutputError, SnapshotError


def sample() -> GraphDiff:
    before = snapshot([value("x", 2)], [], [node("relu", "x", value("y", 2), "é", {"a": float("inf")})], "y")
    return diff(before, snapshot([value("x", 2)], [], [node("tanh", "x", value("y", 2), "é")], "y"))


def test_a_text_file_holds_what_is_printed(tmp_path):
    sample().save(tmp_path / "diff.txt")
    assert (tmp_path / "diff.txt").read_text(encoding="utf-8") == f"{sample()}\n"


def test_a_json_file_is_strict_json_and_comes_back(tmp_path):
    sample().save(str(tmp_path / "diff.JSON"))

    def refuse(constant):
        raise AssertionError(constant)

    data = json.loads((tmp_path / "diff.JSON").read_text(), parse_constant=refuse)
    assert GraphDiff.from_dict(data) == sample()


@pytest.mark.parametrize(("name", "got"), [("diff.yaml", ".yaml"), ("diff", "no suffix")])
def test_another_suffix_is_refused_by_name(tmp_path, name, got):
    path = tmp_path / name
    with pytest.raises(OptionError) as caught:
        sample().save(path)
    assert str(caught.value) == f"{path}: a diff is written as .txt or .json; got {got}"
    assert not path.exists()


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(OutputError):
        sample().save(tmp_path / "no" / "diff.txt")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "x"}, "not a diff: format 'regraft.diff' version 1 is needed; got 'x' version 1"),
        ({"version": 2}, "not a diff: format 'regraft.diff' version 1 is needed; got 'regraft.diff' version 2"),
        ({"changes": 3}, "not a diff: TypeError: 'int' object is not iterable"),
        ({"summary": {}}, "not a diff: KeyError: 'before'"),
    ],
)
def test_data_that_is_no_diff_is_refused(change, message):
    with pytest.raises(SnapshotError) as caught:
        GraphDiff.from_dict({**sample().to_dict(), **change})
    assert str(caught.value) == message
