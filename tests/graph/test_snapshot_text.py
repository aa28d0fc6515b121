"""The text form of snapshots: exact both ways, safe to print, and clear when it cannot be read."""

import math
import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from snapshot_strategies import HOSTILE, any_snapshot, node, snapshot, types, value

from regraft.errors import SnapshotError
from regraft.graph.escape import escape, quote, unescape
from regraft.graph.snapshot import Snapshot, SnapshotNode, SnapshotValue
from regraft.graph.text import parse, parse_type, to_text
from regraft.graph.types import TensorType


def sample() -> Snapshot:
    product = SnapshotNode(
        key="MatMul_3",
        op="matmul",
        native="MatMul",
        scope="encoder.layer.0.query",
        inputs=("x", "w", ""),
        outputs=(value("linear_3", "batch", 384),),
        attributes={"perm": (1, 0), "alpha": 2, "mode": "tanh", "flags": (True, None, ("nested",))},
        metadata={"regraft.pass": "low-rank"},
    )
    split = SnapshotNode("split", "split", "split", "", ("linear_3",), (value("a", "batch", 2), value("b", 2)), {}, {})
    effect = SnapshotNode("", "print", "aten._print", "", ("a",), (), {}, {})
    return Snapshot(
        kind="onnx",
        name="a model",
        inputs=(value("x", "batch", 384), SnapshotValue("ids", "input ids", TensorType("int64", ("2*s0", "s 1")))),
        constants=(SnapshotValue("w", "encoder.layer.0.query.weight", TensorType("float32", (384, 384))),),
        nodes=(product, split, effect, node("relu", "b", SnapshotValue("y", "y", TensorType()))),
        outputs=("y", "a"),
    )


def test_the_text_form_reads_as_agreed(golden):
    golden("snapshot.txt", str(sample()))


@given(any_snapshot)
def test_a_snapshot_comes_back_from_its_text(found):
    text = to_text(found)
    again = parse(text)
    assert again == found
    assert to_text(again) == text


@given(any_snapshot)
def test_a_text_holds_nothing_that_a_terminal_acts_on(found):
    for line in to_text(found).split("\n"):
        assert line.isprintable()


@given(types)
def test_a_type_comes_back_from_its_text(found):
    text = to_text(snapshot([SnapshotValue("x", "x", found)], [], [], "")).split("\n")[1].removeprefix("input %x : ")
    assert parse_type(text) == found


def test_kinds_of_numbers_are_told_apart():
    attributes = {"a": -0.0, "b": 0, "c": False, "d": 1.0, "e": math.nan, "f": -math.inf, "g": "1", "h": 1e-05}
    found = parse(to_text(snapshot([], [], [node("op", "", value("y"), "", attributes)], "")))
    back = found.nodes[0].attributes
    assert {name: repr(item) for name, item in back.items()} == {name: repr(item) for name, item in attributes.items()}


def test_equal_snapshots_have_equal_texts_whatever_the_order_of_attributes():
    one = snapshot([], [], [node("op", "", value("y"), "", {"a": 1, "b": 2})], "y")
    other = snapshot([], [], [node("op", "", value("y"), "", {"b": 2, "a": 1})], "y")
    assert one == other
    assert to_text(one) == to_text(other)


@given(st.one_of(st.text(), st.sampled_from(HOSTILE)))
@example("\\n")
@example("\U000e0041")
def test_escaping_is_undone_exactly(text):
    assert unescape(escape(text)) == text
    assert unescape(quote(text)[1:-1]) == text


@given(st.text())
def test_an_escaped_text_has_no_control_or_format_characters(text):
    kinds = {unicodedata.category(character) for character in escape(text)}
    assert not kinds & {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


def test_ordinary_unicode_stays_readable():
    assert escape("größe 注意 👍") == "größe 注意 👍"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", 'line 1: the text is empty; snapshot fx|onnx "<name>" is needed'),
        ("graph", "line 1, column 1: found graph; snapshot is needed"),
        ('snapshot jax "m"', 'line 1, column 13: found  "m"; the kind fx or onnx is needed'),
        ("snapshot fx", "line 1, column 12: found the end of the line; the snapshot's name between double quotes is"),
        ('snapshot fx "m"', "line 1: the text ends; a last line that begins with output is needed"),
        ('snapshot fx "m"\n\nhello', "line 3, column 1: found hello; a line that begins with input, const, output"),
        ('snapshot fx "m"\noutput\n%y : f[] = a()', "line 3, column 1: found %y : f[] = a(); the order input, const"),
        ('snapshot fx "m"\n%y : f[] = a()\ninput %x : f[]', "line 3, column 6: found  %x : f[]; the order input, con"),
        ('snapshot fx "m"\noutput\noutput', "line 3, column 7: found the end of the line; the order input"),
        ('snapshot fx "m"\ninput x : f[]', "line 2, column 7: found x : f[]; % is needed"),
        ('snapshot fx "m"\ninput %x f[]', "line 2, column 10: found f[]; : is needed"),
        ('snapshot fx "m"\ninput %x : f[3', "line 2, column 15: found the end of the line; , or ] is needed"),
        ('snapshot fx "m"\ninput %x : f[&]', "line 2, column 14: found &]; an extent, a name or an expression"),
        ('snapshot fx "m"\ninput %x : f[] !', "line 2, column 16: found !; the end of the line is needed"),
        ('snapshot fx "m"\ninput %"x : f[]', 'line 2, column 8: found "x : f[]; a text between double quotes'),
        ('snapshot fx "m"\ninput %"\\q" : f[]', "a text with valid escapes (no such escape: \\\\q"),
        ('snapshot fx "m"\n%y : f[] = a(x)', "line 2, column 14: found x); % is needed"),
        ('snapshot fx "m"\n%y : f[] = a() {b}', "line 2, column 18: found }; = is needed"),
        ('snapshot fx "m"\n%y : f[] = a() {b=yes}', "found }; none, true, false, nan, inf, a number"),
        ('snapshot fx "m"\n%y : f[] = a() {b=1, b=2}', "another name than b, which has a value, is needed"),
        ('snapshot fx "m"\n%y : f[] = a() meta={b=1}', "a quoted text as metadata b is needed"),
        ('snapshot fx "m"\n%y : f[] = a() {b=' + "(" * 70, "a value nested at most 64 deep is needed"),
        ('snapshot fx "m"\ninput %x : f[' + "9" * 5000 + "]", "an integer of fewer than 5000 digits is needed"),
        ('snapshot fx "m"\noutput %y,', "line 2, column 11: found the end of the line; %<key> is needed"),
    ],
)
def test_a_text_that_cannot_be_read_is_refused_with_line_and_reason(text, message):
    with pytest.raises(SnapshotError) as caught:
        parse(text)
    assert message in str(caught.value)


def test_what_was_found_is_shown_escaped():
    with pytest.raises(SnapshotError) as caught:
        parse('snapshot fx "m"\n\x1b[31m')
    assert str(caught.value).isprintable()


@given(st.text())
def test_any_text_is_read_or_refused(text):
    for candidate in (text, f'snapshot fx "m"\n{text}', f'snapshot fx "m"\n%y : f[] = op() {text}\noutput'):
        try:
            parse(candidate)
        except SnapshotError:
            continue


def test_an_attribute_of_another_kind_is_refused_by_name():
    wrong = snapshot([], [], [node("op", "", value("y"), "", {"shape": [1, 2]})], "y")
    with pytest.raises(SnapshotError) as caught:
        to_text(wrong)
    expected = 'node "y": an attribute is a list; None, bool, int, float, str or a tuple of these is needed'
    assert str(caught.value) == expected


def test_a_large_text_is_read_in_well_under_a_second_a_thousand_lines():
    nodes = [node("add", "a a", value(f"v{place}", "batch", 4), "layer", {"alpha": 1}) for place in range(5000)]
    text = to_text(snapshot([value("a", "batch", 4)], [], nodes, "v4999"))
    assert to_text(parse(text)) == text
