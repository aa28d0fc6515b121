"""Records of trials: nothing that was written is lost, whatever happens to the file's end or to its writers."""

import json
import multiprocessing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tuning import key

from regraft.errors import InputError, OutputError
from regraft.tune import Key, Records, Trial, bucket
from regraft.tune._records import parsed

CONFIGS = st.dictionaries(
    st.text(min_size=1, max_size=5), st.integers() | st.text(max_size=5) | st.floats(allow_nan=False), max_size=3
)


def trial(place: int, seconds: float | None = 1.0, **changed: str) -> Trial:
    state = "ok" if seconds is not None else "failed"
    return Trial(key(**changed), {"place": place}, state, seconds, "" if seconds else "it crashed")


@given(CONFIGS, st.floats(min_value=1e-9, max_value=1e3), st.text(max_size=20))
def test_a_trial_is_read_as_it_was_written(config: dict[str, int], seconds: float, text: str) -> None:
    for written in (
        Trial(key(device=text), config, "ok", seconds),
        Trial(key(), config, "wrong", None, text),
    ):
        assert "\n" not in written.as_line()
        assert parsed(written.as_line().encode() + b"\n").trials == (written,)


def test_a_file_that_is_not_there_holds_nothing(tmp_path: Path) -> None:
    assert Records(tmp_path / "none.jsonl").read().trials == ()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("share", [0.01, 0.3, 0.7, 0.99, 1.0])
def test_a_torn_last_line_costs_that_trial_alone_and_is_removed_by_the_next(tmp_path: Path, share: float) -> None:
    records = Records(tmp_path / "t.jsonl")
    whole = [trial(place) for place in range(3)]
    records.add(*whole)
    line = trial(3).as_line().encode()
    with records.path.open("ab") as file:
        file.write(line[: max(1, int(share * len(line)))])
    assert records.read().trials == tuple(whole)
    assert records.read().skipped == ()
    last = trial(4)
    records.add(last)
    assert records.read().trials == (*whole, last)
    assert records.read().skipped == ()


def test_a_torn_line_longer_than_a_page_is_removed(tmp_path: Path) -> None:
    records = Records(tmp_path / "t.jsonl")
    records.add(trial(0))
    with records.path.open("ab") as file:
        file.write(b"x" * 10_000)
    records.add(trial(1))
    assert [found.config["place"] for found in records.read().trials] == [0, 1]
    records.path.write_bytes(b"y" * 9_000)
    records.add(trial(2))
    assert [found.config["place"] for found in records.read().trials] == [2]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{half", "it is no JSON"),
        ("[1]", "it is no object"),
        ('{"schema": 9}', "it has schema 9; this version reads 1"),
        ('{"schema": 1}', "its fields are not those of a trial (KeyError: 'state')"),
    ],
)
def test_a_line_that_is_no_trial_is_named_and_skipped_and_kept(tmp_path: Path, line: str, reason: str) -> None:
    records = Records(tmp_path / "t.jsonl")
    records.add(trial(0))
    with records.path.open("a", encoding="utf-8") as file:
        file.write(line + "\n")
    records.add(trial(1))
    content = records.read()
    assert [(skipped.line, skipped.reason) for skipped in content.skipped] == [(2, reason)]
    assert len(content.trials) == 2
    assert line in records.path.read_text(encoding="utf-8")


@pytest.mark.parametrize("seconds", [0, -1.0, None, "fast", True])
def test_a_time_that_is_none_makes_no_trial(seconds: object) -> None:
    content = json.loads(trial(0).as_line()) | {"seconds": seconds}
    assert len(parsed(json.dumps(content).encode() + b"\n").skipped) == 1


@pytest.mark.parametrize("field", ["target", "device", "driver", "compiler", "version"])
def test_a_record_of_another_machine_or_version_is_never_applied(tmp_path: Path, field: str) -> None:
    records = Records(tmp_path / "t.jsonl")
    records.add(trial(0, 1.0), trial(1, 0.1, **{field: "another"}))
    best = records.read().best(key())
    assert best is not None
    assert best.config == {"place": 0}


@pytest.mark.parametrize(
    "other",
    [
        {"op": "another"},
        {"shape": {"m": 128, "n": 65}},
        {"dtypes": {"x": "float16"}},
    ],
)
def test_a_record_of_another_op_shape_or_type_is_never_applied(tmp_path: Path, other: dict[str, object]) -> None:
    changed = Key.from_json({**key().as_json(), **other})
    records = Records(tmp_path / "t.jsonl")
    records.add(Trial(changed, {"place": 1}, "ok", 0.1))
    assert records.read().best(key()) is None


def test_the_last_trial_of_a_config_counts_and_only_good_ones_are_best(tmp_path: Path) -> None:
    records = Records(tmp_path / "t.jsonl")
    records.add(trial(0, 0.5), trial(1, None), trial(0, 2.0), trial(2, 3.0))
    content = records.read()
    assert len(content.of(key())) == 3
    best = content.best(key())
    assert best is not None
    assert best.seconds == 2.0


def test_merging_takes_each_trial_once(tmp_path: Path) -> None:
    one, two = Records(tmp_path / "1.jsonl"), Records(tmp_path / "2.jsonl")
    shared = trial(0)
    one.add(shared, trial(1))
    two.add(shared, trial(2), trial(3))
    assert one.merge([two, two, one]) == 2
    assert one.merge([two]) == 0
    assert sorted(int(found.config["place"]) for found in one.read().trials) == [0, 1, 2, 3]


def _write(path: Path, writer: int) -> None:
    records = Records(path)
    for place in range(25):
        records.add(trial(100 * writer + place))


def test_several_processes_write_one_file(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_write, args=(tmp_path / "t.jsonl", place)) for place in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    content = Records(tmp_path / "t.jsonl").read()
    assert content.skipped == ()
    assert sorted(int(found.config["place"]) for found in content.trials) == sorted(
        100 * writer + place for writer in range(4) for place in range(25)
    )


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(OutputError, match=r"folder\.jsonl: cannot be (written|read): Is a directory"):
        Records(tmp_path / "folder.jsonl").add(trial(0))
    with pytest.raises(OutputError, match=r"t\.jsonl: the folder .*gone does not exist$"):
        Records(tmp_path / "gone" / "t.jsonl").add(trial(0))
    assert not (tmp_path / "gone").exists()
    with pytest.raises(OutputError, match=r"folder\.jsonl: cannot be read: Is a directory"):
        Records(tmp_path / "folder.jsonl").read()


@given(st.integers(1, 2**40))
def test_a_bucket_is_the_power_of_two_above(extent: int) -> None:
    found = bucket(extent)
    assert found & (found - 1) == 0
    assert found / 2 < extent <= found


def test_an_extent_of_nothing_has_no_bucket() -> None:
    with pytest.raises(InputError, match=r"^an extent must be at least 1; got 0$"):
        bucket(0)
