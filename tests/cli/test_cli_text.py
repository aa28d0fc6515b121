"""What is shown never acts on the terminal, and columns line up."""

import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from regraft.cli._text import aligned, one_line, printable, size_text


@given(st.text())
def test_printable_text_holds_nothing_that_a_terminal_acts_on(text: str) -> None:
    assert not any(unicodedata.category(letter).startswith("C") for letter in printable(text))


@given(st.text())
def test_printable_text_stays_as_it_is(text: str) -> None:
    assert printable(printable(text)) == printable(text)


@given(st.text(alphabet=st.characters(categories=["L", "N", "P", "S"])))
def test_printable_text_keeps_what_is_harmless(text: str) -> None:
    assert printable(text) == text


def test_escape_sequences_and_bidi_marks_are_shown_as_escapes() -> None:
    assert printable("layer\x1b[31m\u202e.0\n") == "layer\\x1b[31m\\u202e.0\\n"


def test_one_line_is_one_line() -> None:
    assert one_line("first\n\n  second\tthird ") == "first second third"


def test_columns_are_as_wide_as_their_widest_cell() -> None:
    assert aligned([("a", "longer", "x"), ("abc", "b"), ()]) == ["a    longer  x", "abc  b", ""]


def test_sizes_have_a_fitting_unit() -> None:
    assert [size_text(size) for size in (12, 12_345, 12_345_678)] == ["12 bytes", "12.3 kB", "12.35 MB"]
