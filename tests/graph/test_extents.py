"""What a graph computes shapes to be, against what the same computation gives on numbers."""

import torch
from fake_graph import FakeGraph
from hypothesis import given
from hypothesis import strategies as st

from regraft.graph import Dim, Value
from regraft.graph.extents import extents_of, target_shape

DIMS = st.lists(st.sampled_from(["batch", "rows", 2, 3, 5]), min_size=1, max_size=4)
NUMBERS = {"batch": 7, "rows": 11}


def numbers(dims: tuple[Dim, ...] | list[Dim]) -> list[int]:
    return [NUMBERS[dim] if isinstance(dim, str) else dim for dim in dims]


def held(g: FakeGraph, *content: int) -> Value:
    return g.holding(f"c{len(g.constants())}", torch.tensor(content))


@given(DIMS, st.integers(-4, 4), st.integers(-4, 4) | st.none())
def test_a_part_of_a_shape_is_that_part_of_its_dims(dims: list[Dim], start: int, end: int | None) -> None:
    g = FakeGraph()
    attributes = {"start": start} | ({} if end is None else {"end": end})
    shape = g.node("shape", g.input("x", *dims), shape=None, **attributes)
    assert extents_of(g, shape) == tuple(dims)[start:end]  # type: ignore[arg-type]


@given(DIMS, st.integers(-5, 5))
def test_an_entry_is_gathered_where_there_is_one(dims: list[Dim], place: int) -> None:
    g = FakeGraph()
    shape = g.node("shape", g.input("x", *dims), shape=None)
    found = extents_of(g, g.node("gather", shape, held(g, place), shape=None))  # type: ignore[arg-type]
    assert found == ((dims[place],) if -len(dims) <= place < len(dims) else None)


@given(DIMS, st.integers(-4, 4), st.integers(-4, 4))
def test_a_slice_of_extents_is_what_slicing_their_numbers_gives(dims: list[Dim], start: int, end: int) -> None:
    g = FakeGraph()
    shape = g.node("shape", g.input("x", *dims), shape=None)
    found = extents_of(g, g.node("slice", shape, held(g, start), held(g, end), held(g, 0), shape=None))  # type: ignore[arg-type]
    assert found is not None
    assert numbers(found) == torch.tensor(numbers(dims))[start:end].tolist()


@given(st.lists(DIMS, min_size=1, max_size=3))
def test_shapes_side_by_side_are_concatenated(parts: list[list[Dim]]) -> None:
    g = FakeGraph()
    shapes = [g.node("shape", g.input(f"x{place}", *dims), shape=None) for place, dims in enumerate(parts)]
    wide = g.node("concat", *[g.node("cast", shape, shape=None) for shape in shapes], held(g, 4, -1), shape=None)
    assert extents_of(g, wide) == (*(dim for dims in parts for dim in dims), 4, -1)  # type: ignore[arg-type]


def test_a_reshape_s_target_is_read_from_its_second_operand() -> None:
    g = FakeGraph()
    x = g.input("x", "batch", "rows", 6)
    target = g.node("concat", g.node("shape", x, shape=None, start=0, end=2), held(g, 2, 3), shape=None)
    y = g.node("reshape", x, target, shape=("batch", "rows", 2, 3))
    assert y.producer is not None
    assert target_shape(g, y.producer) == ("batch", "rows", 2, 3)  # type: ignore[arg-type]
    alone = g.node("reshape", x, shape=("batch", "rows", 2, 3))
    assert alone.producer is not None
    assert target_shape(g, alone.producer) is None  # type: ignore[arg-type]


def test_extents_that_are_computed_from_data_are_not_known() -> None:
    g = FakeGraph()
    x = g.input("x", "batch", 6)
    shape = g.node("shape", x, shape=None)
    unknown = g.node("shape", g.node("relu", x, shape=None), shape=None)
    for value in (
        x,
        unknown,
        g.node("concat", shape, unknown, shape=None),
        g.node("mul", shape, held(g, 2), shape=None),
        g.node("gather", shape, x, shape=None),
        g.node("gather", shape, held(g, 0, 1), shape=None),
        g.node("slice", shape, held(g, 0), shape=None),
        g.node("slice", shape, held(g, 0), held(g, 2), held(g, 0), held(g, 2), shape=None),
        g.holding("floats", torch.tensor([1.0, 2.0])),
        g.holding("table", torch.ones(2, 2, dtype=torch.int64)),
    ):
        assert extents_of(g, value) is None  # type: ignore[arg-type]
