"""Symbolic dims: arithmetic is understood, anything else is one name, and nothing is ever evaluated."""

import pytest
import sympy
from hypothesis import given, settings
from hypothesis import strategies as st

from regraft.errors import ShapeError
from regraft.graph.symbols import bind, dim_expr, is_plain_symbol, numel

DIMS = {"batch": 3, "seq": 7, "s0": 5}

expressions = st.recursive(
    st.one_of(st.sampled_from(sorted(DIMS)), st.integers(0, 40).map(str)),
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from(["+", "-", "*", " + ", " * ", " - "]), inner).map("".join),
        st.tuples(inner, st.sampled_from(["//", " // "]), st.integers(1, 9).map(str)).map("".join),
        inner.map("({})".format),
        inner.map("-({})".format),
    ),
    max_leaves=8,
)


@given(expressions)
@settings(deadline=None, max_examples=300)
def test_expressions_have_the_value_that_python_gives_them(text: str) -> None:
    assert bind(dim_expr(text), DIMS) == eval(text, {}, dict(DIMS))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("batch*seq", 21),
        ("2*batch + seq", 13),
        ("2*(batch + seq)", 20),
        ("batch - seq - 1", -5),
        ("seq//2", 3),
        ("(seq + 1)/2", 4),
        ("seq//2*2", 6),
        ("-batch", -3),
        ("- -batch", 3),
        ("batch*-1", -3),
        ("((12))", 12),
        ("  batch ", 3),
    ],
)
def test_operators_bind_as_usual(text: str, value: int) -> None:
    assert bind(dim_expr(text), DIMS) == value


def test_equal_names_in_different_texts_are_one_symbol() -> None:
    assert dim_expr("batch + batch") == 2 * dim_expr("batch")
    assert sympy.simplify(dim_expr("seq*batch") - dim_expr("batch") * dim_expr("seq")) == 0


def test_a_number_is_itself_and_a_name_a_positive_whole_number() -> None:
    assert dim_expr(7) == 7
    assert dim_expr("batch").is_positive
    assert dim_expr("batch").is_integer


def test_the_number_of_elements_is_the_product_of_the_extents() -> None:
    assert bind(numel(("batch", "seq", 4)), DIMS) == 84
    assert numel(()) == 1
    assert numel((2, 0, 3)) == 0


HOSTILE = (
    "__import__('os').system('true')",
    "batch.__class__",
    "a.b",
    "lambda: 0",
    "batch if seq else 1",
    "Max(1, s0)",
    "batch**seq",
    "9**9**9**9",
    "batch; seq",
    "batch seq",
    "1 2",
    "(batch",
    "batch)",
    "batch +",
    "* batch",
    "batch /// seq",
    "batch//0",
    "batch//(seq - seq)",
    "²",
    "batch²",
    "2batch",
    "0x10",
    "1.5",
    "1e9",
    "[]",
    "",
    " ",
    "\x00",
    "\x1b[31m",
    "9" * 5000,
    "(" * 100_000,
    "-" * 100_000 + "1",
    "(" * 200 + "1" + ")" * 200,
    "+".join(["batch"] * 2000),
)


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: ascii(text[:20]))
def test_text_that_is_no_expression_is_one_symbol_and_never_evaluated(text: str) -> None:
    expression = dim_expr(text)
    assert isinstance(expression, sympy.Symbol)
    assert expression.name == text
    assert bind(expression, {text: 4}) == 4


@given(st.text(max_size=60))
@settings(deadline=None, max_examples=300)
def test_any_text_is_a_dim(text: str) -> None:
    assert isinstance(dim_expr(text), sympy.Expr)


@given(st.text(alphabet="ab1 +-*/()", max_size=40))
@settings(deadline=None, max_examples=300)
def test_any_arithmetic_text_is_a_dim_with_a_value_or_an_error_of_ours(text: str) -> None:
    expression = dim_expr(text)
    try:
        bind(expression, {str(symbol): 2 for symbol in expression.free_symbols})
    except ShapeError as error:
        assert "is no whole number for" in str(error)


def test_extents_that_are_missing_are_named_all_at_once() -> None:
    with pytest.raises(ShapeError) as caught:
        bind(dim_expr("seq*batch + s0"), {"batch": 2})
    assert str(caught.value) == "the extents of s0, seq are needed; got {'batch': 2}"
    with pytest.raises(ShapeError) as caught:
        bind(dim_expr("batch"), {})
    assert str(caught.value) == "the extents of batch are needed; got none"


def test_a_division_by_an_extent_that_is_zero_has_no_value() -> None:
    with pytest.raises(ShapeError) as caught:
        bind(dim_expr("batch//seq"), {"batch": 2, "seq": 0})
    assert str(caught.value) == "floor(batch/seq) is no whole number for {'batch': 2, 'seq': 0}"


def test_only_names_are_plain_symbols() -> None:
    assert [is_plain_symbol(dim) for dim in ("batch", "s0", "2*batch", "a.b", "", 4)] == [True, True] + [False] * 4
