"""The order of passes: as given, unless one must come after another."""

import pytest
from doubles import named
from hypothesis import given, settings
from hypothesis import strategies as st

from regraft.errors import OptionError
from regraft.passes import AnyPass
from regraft.passes._order import order_passes


def _names(passes: list[AnyPass]) -> list[str]:
    return [item.name for item in passes]


def test_passes_without_constraints_stay_as_given() -> None:
    passes = [named("c"), named("a"), named("b"), named("a")]
    assert order_passes(passes) == passes


def test_a_pass_comes_after_those_that_it_names_and_others_keep_their_places() -> None:
    passes = [named("late", after_=("early", "absent")), named("x"), named("early"), named("y")]
    assert _names(order_passes(passes)) == ["x", "early", "late", "y"]


@given(st.permutations(range(6)), st.sets(st.tuples(st.integers(0, 5), st.integers(0, 5))))
@settings(deadline=None, max_examples=100)
def test_every_constraint_holds_and_no_pass_is_lost(order: list[int], pairs: set[tuple[int, int]]) -> None:
    """Constraints from smaller to larger numbers have no cycle."""
    before = {number: tuple(str(small) for small, large in pairs if small < large == number) for number in order}
    ordered = _names(order_passes([named(str(number), after_=before[number]) for number in order]))
    assert sorted(ordered) == sorted(map(str, order))
    assert all(ordered.index(early) < ordered.index(str(late)) for late, earlier in before.items() for early in earlier)


def test_all_instances_of_a_pass_come_before_one_that_must_come_after_it() -> None:
    passes = [named("early"), named("late", after_=("early",)), named("early")]
    assert _names(order_passes(passes)) == ["early", "early", "late"]


def test_two_instances_of_a_pass_do_not_wait_for_each_other() -> None:
    twice = [named("a", after_=("a",)), named("a", after_=("a",))]
    assert order_passes(twice) == twice


def test_a_cycle_is_refused_and_named_without_the_passes_around_it() -> None:
    passes = [
        named("behind", after_=("b",)),
        named("a", after_=("c",)),
        named("b", after_=("a",)),
        named("c", after_=("b",)),
        named("free"),
    ]
    with pytest.raises(OptionError) as caught:
        order_passes(passes)
    text = "passes wait for each other: b -> a -> c -> b; drop one, or run them in two calls"
    assert str(caught.value) == text


def test_passes_that_conflict_are_refused_and_named_whichever_says_so() -> None:
    for passes in ([named("a", conflicts_=("b",)), named("b")], [named("b"), named("a", conflicts_=("b",))]):
        with pytest.raises(OptionError) as caught:
            order_passes(passes)
        assert str(caught.value) == "a and b cannot be run together; drop one"


def test_a_pass_that_conflicts_with_itself_can_be_run_once() -> None:
    alone = named("a", conflicts_=("a",))
    assert order_passes([alone]) == [alone]
    with pytest.raises(OptionError, match=r"^a and a cannot be run together; drop one$"):
        order_passes([alone, named("a", conflicts_=("a",))])


def test_a_conflict_with_a_pass_that_is_not_asked_for_does_not_matter() -> None:
    passes = [named("a", conflicts_=("b",)), named("c")]
    assert order_passes(passes) == passes
