"""Spellings of passes: read back exactly, and refused where they break off."""

from typing import Any

import pytest
from doubles import EveryOption
from hypothesis import given, settings
from hypothesis import strategies as st

from regraft.errors import OptionError
from regraft.passes import AnyPass, LowRank, spelling
from regraft.passes._registry import make_pass
from regraft.passes._spelling import coerce_options, split_passes

texts = st.text(max_size=12) | st.sampled_from(
    [
        '"',
        "'",
        '""',
        "a,b",
        "re:.*{2,3}",
        " a ",
        "a=b",
        "[x]",
        "x;y",
        "}",
        "\t",
        "None",
        "true",
        "5",
        "a'b\"c",
        "[",
        "]",
    ]
)
numbers = st.floats(allow_nan=False)
passes = st.builds(
    EveryOption,
    number=numbers,
    whole=st.none() | st.integers(),
    flag=st.booleans(),
    text=texts,
    mode=st.sampled_from(["one", "two", "three"]),
    names=st.lists(texts, max_size=4).map(tuple),
    keep_bias=st.booleans(),
)
shares = st.floats(0.001, 0.999)
low_ranks = st.builds(
    LowRank,
    keep=shares,
    rank=st.none() | st.integers(1, 4096),
    targets=st.lists(st.sampled_from(["*", "encoder.*", "re:a{1,2}", "a, b", 're:"'])).map(tuple),
    exclude=st.lists(texts.filter(lambda text: not text.startswith("re:"))).map(tuple),
    heads=st.booleans(),
    centred=st.booleans(),
    ridge=st.floats(0, 10),
)


def _read(text: str, cls: type[AnyPass]) -> AnyPass:
    ((name, options),) = split_passes(text)
    return cls(**coerce_options(name, options, cls))  # type: ignore[arg-type]


@given(passes)
@settings(deadline=None, max_examples=300)
def test_a_spelling_reads_back_to_an_equal_pass(item: EveryOption) -> None:
    assert _read(spelling(item), EveryOption) == item


@given(low_ranks)
@settings(deadline=None, max_examples=100)
def test_a_spelling_of_low_rank_makes_an_equal_pass(item: LowRank) -> None:
    ((name, options),) = split_passes(spelling(item))
    assert make_pass(name, options) == item


@given(st.lists(passes, min_size=1, max_size=3))
@settings(deadline=None, max_examples=100)
def test_spellings_joined_by_commas_read_back_in_order(items: list[EveryOption]) -> None:
    joined = ", ".join(spelling(item) for item in items)
    read = [EveryOption(**coerce_options(name, options, EveryOption)) for name, options in split_passes(joined)]
    assert read == items


def test_only_options_that_differ_from_their_defaults_are_spelled() -> None:
    assert spelling(LowRank()) == "low-rank"
    assert spelling(LowRank(keep=0.25, targets=("encoder.*", "re:.*mlp.*"))) == (
        "low-rank{keep=0.25,targets=[encoder.*;re:.*mlp.*]}"
    )
    assert spelling(LowRank(rank=8, heads=True)) == "low-rank{rank=8,heads=true}"
    assert spelling(LowRank(targets=("a, b", 'a"b'))) == 'low-rank{targets=["a, b";"a""b"]}'


def test_spaces_dashes_quotes_and_a_trailing_comma_are_understood() -> None:
    spaced = " every-option { number = 0.25 , text = 'it''s, so' , names = [ a ; 'b;c' ; ] , } "
    assert _read(spaced, EveryOption) == EveryOption(number=0.25, text="it's, so", names=("a", "b;c"))


def test_a_regular_expression_with_brackets_needs_no_quotes() -> None:
    assert _read("x{names=re:layer.[0-3].*,flag=on}", EveryOption) == EveryOption(
        names=("re:layer.[0-3].*",), flag=True
    )


def test_one_name_needs_no_brackets_and_none_means_none() -> None:
    assert _read("x{names=re:.*mlp.*}", EveryOption) == EveryOption(names=("re:.*mlp.*",))
    assert _read("x{whole=none,names=none}", EveryOption) == EveryOption(whole=None, names=("none",))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"kep": 0.5}, "low-rank has no option 'kep' (did you mean 'keep'?); it has: "),
        ({"qqq": 0.5}, "low-rank has no option 'qqq'; it has: "),
        ({5: 3}, "low-rank has no option 5; it has: "),
    ],
)
def test_an_unknown_option_is_refused_with_what_may_have_been_meant(options: dict[Any, Any], text: str) -> None:
    known = "keep, rank, energy, targets, exclude, heads, centred, ridge"
    with pytest.raises(OptionError) as caught:
        make_pass("low-rank", options)
    assert str(caught.value) == text + known


@pytest.mark.parametrize(
    ("option", "raw", "text"),
    [
        ("number", "half", "number must be a number; got 'half'"),
        ("number", True, "number must be a number; got true"),
        ("number", None, "number must be a number; got None"),
        ("number", ("1", "2"), "number must be a number; got ('1', '2')"),
        ("whole", "1.5", "whole must be a whole number or none; got '1.5'"),
        ("whole", True, "whole must be a whole number or none; got true"),
        ("flag", "perhaps", "flag must be true or false; got 'perhaps'"),
        ("text", 5, "text must be text; got 5"),
        ("mode", "four", "mode must be one or two or three; got 'four'"),
        ("names", [1, 2], "names must be names; got [1, 2]"),
        ("names", 5, "names must be names; got 5"),
    ],
)
def test_a_value_of_another_type_is_refused_with_the_type_that_is_needed(option: str, raw: Any, text: str) -> None:
    with pytest.raises(OptionError) as caught:
        coerce_options("every-option", {option: raw}, EveryOption)
    assert str(caught.value) == f"every-option: {text}"


def test_values_from_yaml_are_taken_as_they_are() -> None:
    options = {"number": 1, "whole": None, "flag": True, "names": ["a", "b"]}
    assert coerce_options("every-option", options, EveryOption) == {
        "number": 1.0, "whole": None, "flag": True, "names": ("a", "b")
    }  # fmt: skip


def test_an_option_of_several_words_takes_dashes_and_once() -> None:
    assert coerce_options("p", {"keep-bias": "no"}, EveryOption) == {"keep_bias": False}
    with pytest.raises(OptionError, match=r"^p: keep_bias is given twice; once is needed$"):
        coerce_options("p", {"keep-bias": "true", "keep_bias": "true"}, EveryOption)


@pytest.mark.parametrize(
    ("text", "needed"),
    [
        ("", "the name of a pass is needed at the end"),
        ("low-rank,", "the name of a pass is needed at the end"),
        (",low-rank", "the name of a pass is needed at ',low-rank'"),
        ("low-rank{keep=0.5", "a comma or } is needed at the end"),
        ("low-rank{keep", "an option such as keep=0.5, or }, is needed at the end"),
        ("low-rank{", "an option such as keep=0.5, or }, is needed at the end"),
        ("low-rank{=0.5}", "an option such as keep=0.5, or }, is needed at '=0.5}'"),
        ("low-rank{keep=}", "a value is needed at '}'"),
        ("low-rank{keep=0.5}}", "a comma or the end is needed at '}'"),
        ("low-rank]", "a comma or the end is needed at ']'"),
        ("low-rank{keep=0.5,keep=0.4}", "keep is given twice; once is needed at '0.4}'"),
        ("low-rank{targets=[a;b}", "; or ] is needed at the end"),
        ("low-rank{targets=[;]}", "a value is needed at ';]}'"),
        ("low-rank{targets=['a' b]}", "; or ] is needed at 'b]}'"),
        ('low-rank{targets="a}', "a closing \" is needed at '\"a}'"),
        ("low-rank{targets=[a;'b'']}", "a closing ' is needed at \"'b'']}\""),
    ],
)
def test_a_spelling_that_breaks_off_is_refused_at_that_place(text: str, needed: str) -> None:
    with pytest.raises(OptionError) as caught:
        split_passes(text)
    assert str(caught.value) == f"cannot read the passes {text!r}: {needed}"


@given(st.text(alphabet="ab{}[]=,;\"' ", max_size=30))
@settings(deadline=None, max_examples=300)
def test_any_text_is_read_or_refused_with_an_error_of_ours(text: str) -> None:
    try:
        read = split_passes(text)
    except OptionError as error:
        assert str(error).startswith("cannot read the passes ")
    else:
        assert all(name for name, _ in read)
