"""What is printed: plain lines into a pipe, a table on a terminal, JSON that every reader accepts."""

import json
import math

import pytest

from regraft.cli import _report
from regraft.cli._output import json_text, on_terminal, print_lines, print_rows
from regraft.cli._report import print_ledger
from regraft.ledger import Entry, Ledger, PassRecord


def ledger() -> Ledger:
    return Ledger(
        passes=[PassRecord("low-rank", "low-rank{keep=0.4}", 1.5, 0.02, ("one site was taken back",))],
        entries=[
            Entry("low-rank", "first[bold]", "rewritten", "64x32", "rank 9", "", 0.1, 0.031, "random", 8192, 3456),
            Entry("low-rank", "head\x1b[2J", "kept", "4x32", "", "rank 3 would not be smaller"),
            Entry("low-rank", "last", "rolled back", "8x8", "rank 2", "announced 0.1, measured 0.2"),
        ],
    )


def test_a_pipe_gets_one_aligned_line_a_site(capsys: pytest.CaptureFixture[str]) -> None:
    print_ledger(ledger())
    assert capsys.readouterr().out.splitlines()[:3] == [
        "low-rank  first[bold]  64x32 -> rank 9  error 0.031  8.19 -> 3.46 kB",
        "low-rank  head\\x1b[2J  kept: rank 3 would not be smaller",
        "low-rank  last         rolled back: announced 0.1, measured 0.2",
    ]


def test_a_terminal_gets_a_table_with_names_as_they_are(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_report, "on_terminal", lambda: True)
    monkeypatch.setenv("COLUMNS", "120")
    print_ledger(ledger())
    out = capsys.readouterr().out
    assert "\x1b" not in out  # the escape sequence in a name, that is: nothing here is coloured
    for text in ("first[bold]", "head\\x1b[2J", "kept: rank 3 would not be smaller", "one site was taken back"):
        assert text in out


def test_rows_in_a_pipe_have_no_header_and_no_frame(capsys: pytest.CaptureFixture[str]) -> None:
    print_rows(("name", "text"), [("a", "x"), ("long", "y")])
    assert capsys.readouterr().out == "a     x\nlong  y\n"


def test_long_lines_are_not_wrapped(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    print_lines(["word " * 40])
    assert capsys.readouterr().out.count("\n") == 1


def test_json_has_no_infinities() -> None:
    text = json_text({"error": math.inf, "list": [math.nan, 1.5, {"deep": -math.inf}], "text": "\x1b\u202e"})
    assert json.loads(text) == {"error": None, "list": [None, 1.5, {"deep": None}], "text": "\x1b\u202e"}
    assert text.isascii()


@pytest.mark.parametrize("terminal", ["dumb", "xterm"])
def test_captured_output_is_no_terminal(monkeypatch: pytest.MonkeyPatch, terminal: str) -> None:
    monkeypatch.setenv("TERM", terminal)
    assert not on_terminal()
