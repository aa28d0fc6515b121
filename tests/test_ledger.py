"""The ledger: converts to plain data and back, and prints a line a site."""

import json
import math
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from regraft.ledger import Call, Entry, Ledger, PassRecord, entry_cells

numbers = st.none() | st.floats(allow_nan=False)
entries = st.builds(
    Entry,
    pass_name=st.sampled_from(["low-rank", "monarch"]),
    site=st.text(max_size=8),
    status=st.sampled_from(["rewritten", "kept", "rolled back"]),
    reason=st.text(max_size=8),
    announced_error=numbers,
    measured_error=numbers,
    checked_on=st.sampled_from(["calibration", "random", ""]),
    bytes_before=st.none() | st.integers(0),
    bytes_after=st.none() | st.integers(0),
    removed=st.lists(st.text(max_size=3), max_size=3).map(tuple),
    other_calls=st.lists(st.builds(Call, st.text(max_size=3), st.just(("a", "b"))), max_size=2).map(tuple),
    pass_place=st.none() | st.integers(0, 3),
)
records = st.builds(
    PassRecord,
    name=st.sampled_from(["low-rank", "monarch"]),
    spelling=st.text(max_size=8),
    seconds=st.floats(0, 1e6),
    model_error=numbers,
    notes=st.lists(st.text(max_size=5), max_size=2).map(tuple),
)
ledgers = st.builds(Ledger, st.lists(records, max_size=3), st.lists(entries, max_size=5))


def _small(site: str = "a.b", status: Any = "rewritten", **fields: Any) -> Entry:
    return Entry("low-rank", site, status, **fields)


@given(ledgers)
@settings(deadline=None, max_examples=100)
def test_a_ledger_comes_back_from_plain_data_and_from_strict_json(ledger: Ledger) -> None:
    assert Ledger.from_dict(ledger.to_dict()) == ledger
    text = json.dumps(ledger.to_dict(), allow_nan=False)
    assert Ledger.from_dict(json.loads(text)) == ledger
    assert json.loads(text) == ledger.to_dict()


def test_errors_that_are_no_numbers_survive_as_text() -> None:
    ledger = Ledger([PassRecord("p", "p", 1.0, math.nan)], [_small(measured_error=math.inf)])
    data = ledger.to_dict()
    assert (data["entries"][0]["measured_error"], data["passes"][0]["model_error"]) == ("inf", "nan")
    back = Ledger.from_dict(data)
    assert back.entries[0].measured_error == math.inf
    assert back.model_error is not None
    assert math.isnan(back.model_error)


@given(ledgers)
@settings(deadline=None, max_examples=60)
def test_every_entry_has_one_line_whatever_its_names(ledger: Ledger) -> None:
    lines = str(ledger).split("\n") if ledger.entries or ledger.passes else []
    assert len(lines) == len(ledger) + len(ledger.passes) + sum(len(record.notes) for record in ledger.passes)
    assert str(ledger).replace("\n", "").isprintable()


def test_entries_are_listed_by_what_became_of_them() -> None:
    found = [_small("a"), _small("b", "kept"), _small("c", "rolled back"), _small("d")]
    ledger = Ledger(entries=found)
    assert (ledger.rewritten, ledger.kept, ledger.rolled_back) == ([found[0], found[3]], [found[1]], [found[2]])
    assert (list(ledger), len(ledger)) == (found, 4)


def test_the_model_error_is_the_last_one_measured() -> None:
    assert Ledger().model_error is None
    measured = [PassRecord("a", "a", 0.0, 0.1), PassRecord("b", "b", 0.0, 0.2), PassRecord("c", "c", 0.0)]
    assert Ledger(measured).model_error == 0.2


def test_a_ledger_prints_as_aligned_lines_and_a_total_a_pass() -> None:
    ledger = Ledger(
        [
            PassRecord("low-rank", "low-rank{keep=0.4}", 1.26, 0.0312, ("a remark",)),
            PassRecord("monarch", "monarch", 0.0),
        ],
        [
            _small("encoder.dense", before="1536x384", after="rank 122", measured_error=0.0312, bytes_before=4_720_000,
                   bytes_after=1_880_000),
            _small("pooler", "kept", reason="it is a head (pooler); heads=true rewrites it"),
            _small("out", "rolled back", reason="measured error 0.5", measured_error=0.5),
            _small("x", before="8x8", after="rank 2", measured_error=0.2, bytes_before=256, bytes_after=128),
        ],
    )  # fmt: skip
    assert str(ledger) == "\n".join(
        [
            "low-rank  encoder.dense  1536x384 -> rank 122  error 0.031  4.72 -> 1.88 MB",
            "low-rank  pooler         kept: it is a head (pooler); heads=true rewrites it",
            "low-rank  out            rolled back: measured error 0.5",
            "low-rank  x              8x8 -> rank 2         error 0.2    0.26 -> 0.13 kB",
            "low-rank{keep=0.4}: 2 rewritten, 1 kept, 1 rolled back in 1.3 s; model output error 0.031",
            "low-rank: a remark",
            "monarch: nothing to do in 0.0 s",
        ]
    )


def test_names_of_a_hostile_model_cannot_move_the_cursor() -> None:
    entry = _small("a\x1b[2Jb\nc\u202e", "kept", reason="also read by \x07")
    assert entry_cells(entry)[1:3] == ("a\\x1b[2Jb\\nc\\u202e", "kept: also read by \\x07")


def test_two_runs_of_one_pass_count_their_own_sites() -> None:
    ledger = Ledger(
        [PassRecord("low-rank", "low-rank", 0.0), PassRecord("low-rank", "low-rank{keep=0.3}", 0.0)],
        [_small("a", pass_place=0), _small("b", "kept", pass_place=0), _small("b", pass_place=1)],
    )
    assert str(ledger).splitlines()[-2:] == [
        "low-rank: 1 rewritten, 1 kept in 0.0 s",
        "low-rank{keep=0.3}: 1 rewritten in 0.0 s",
    ]
