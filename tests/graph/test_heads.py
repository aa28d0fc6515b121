"""Heads split off, merged, repeated and turned: followed only where extents prove it, whatever the extents are."""

import math

import pytest
import torch
from fake_graph import FakeGraph
from hypothesis import assume, given
from hypothesis import strategies as st

from regraft.graph import Dim, Value
from regraft.graph.heads import SPLIT, SPLIT_TURNED, merged, origin, packed, unrepeated, unturned

EXTENTS = st.integers(1, 4)
ROWS = st.sampled_from(["rows", 1, 3])
ORDERS = st.permutations(range(4)).map(tuple)


def turn(g: FakeGraph, x: Value, perm: tuple[int, ...]) -> Value:
    shape = x.type.shape or ()
    return g.node("transpose", x, shape=[shape[axis] for axis in perm], perm=perm)


def reshape(g: FakeGraph, x: Value, *shape: Dim) -> Value:
    return g.node("reshape", x, shape=shape)


@given(ROWS, EXTENTS, EXTENTS, ORDERS)
def test_heads_come_from_where_they_were_split_off_in_that_order_alone(
    rows: Dim, heads: int, width: int, perm: tuple[int, ...]
) -> None:
    g = FakeGraph()
    wide = g.input("x", "batch", rows, heads * width)
    apart = turn(g, reshape(g, wide, "batch", rows, heads, width), perm)
    for order in (SPLIT, SPLIT_TURNED):
        found, nodes = packed(apart, order)
        assert found is (wide if perm == order else None)
        assert len(nodes) == (2 if perm == order else 0)


@given(st.permutations(["batch", "rows", 2, 3]))
def test_a_reshape_that_moves_other_dims_is_no_split(shape: list[Dim]) -> None:
    assume(shape[:2] != ["batch", "rows"])
    g = FakeGraph()
    assert packed(turn(g, reshape(g, g.input("x", "batch", "rows", 6), *shape), SPLIT)) == (None, ())


@given(ROWS, EXTENTS, EXTENTS, ORDERS, st.booleans())
def test_heads_go_to_where_they_are_merged_in_that_order_alone(
    rows: Dim, heads: int, width: int, perm: tuple[int, ...], flat: bool
) -> None:
    g = FakeGraph()
    turned = turn(g, g.input("y", "batch", heads, rows, width), perm)
    lead: tuple[Dim, ...] = (f"batch*{rows}",) if flat else ("batch", rows)
    result = reshape(g, turned, *lead, heads * width)
    found, nodes = merged(g.inputs()[0])
    assert found is (result if perm == SPLIT else None)
    assert len(nodes) == (2 if perm == SPLIT else 0)


@pytest.mark.parametrize("spoiled", ["read twice", "returned", "another width"])
def test_a_merge_that_is_not_all_that_becomes_of_heads_is_none(spoiled: str) -> None:
    g = FakeGraph()
    y = g.node("relu", g.input("y", "batch", 2, "rows", 3), shape=("batch", 2, "rows", 3))
    turned = turn(g, y, SPLIT)
    reshape(g, turned, "batch", "rows", 3 if spoiled == "another width" else 6)
    if spoiled == "read twice":
        g.node("relu", y, shape=y.type.shape)
    if spoiled == "returned":
        g.output(y)
    assert merged(y) == (None, ())


@given(EXTENTS, st.integers(2, 4), EXTENTS, st.integers(0, 4))
def test_repeated_heads_are_those_that_stand_side_by_side(few: int, times: int, width: int, axis: int) -> None:
    g = FakeGraph()
    x = g.input("x", "batch", few, "rows", width)
    single: list[Dim] = ["batch", few, "rows", width]
    single.insert(axis, 1)
    many = [times if place == axis else extent for place, extent in enumerate(single)]
    one = reshape(g, x, *single)
    stacked = g.node("expand", one, shape=many)
    result = reshape(g, stacked, "batch", few * times, "rows", width)
    found, nodes = unrepeated(result)
    assert (found, len(nodes)) == ((x, 3) if axis == 2 else (result, 0))


def test_keys_turned_in_four_dims_or_by_way_of_three_are_turned_back() -> None:
    g = FakeGraph()
    k = g.input("k", 2, 4, 5, 3)
    direct = turn(g, k, (0, 1, 3, 2))
    assert unturned(g, direct)[0] is k  # type: ignore[arg-type]
    flat = g.node("reshape", k, g.holding("there", torch.tensor([8, 5, 3])), shape=(8, 5, 3))
    shape = (2, 4, 3, 5)
    back = g.node("reshape", turn(g, flat, (0, 2, 1)), g.holding("back", torch.tensor(shape)), shape=shape)
    found, nodes = unturned(g, back)  # type: ignore[arg-type]
    assert (found is k, len(nodes)) == (True, 3)


@given(st.permutations([2, 4, 5, 3]), st.sampled_from([(8, 5, 3), (8, 3, 5), (4, 10, 3)]))
def test_the_way_through_three_dims_must_keep_rows_and_width(back: list[int], there: tuple[int, ...]) -> None:
    g = FakeGraph()
    k = g.input("k", 2, 4, 5, 3)
    flat = g.node("reshape", k, g.holding("there", torch.tensor(there)), shape=there)
    turned = turn(g, flat, (0, 2, 1))
    result = g.node("reshape", turned, g.holding("back", torch.tensor(back)), shape=back)
    found, _ = unturned(g, result)  # type: ignore[arg-type]
    assert (found is k) == (there == (8, 5, 3) and back == [2, 4, 3, 5])
    if found is k:
        x = torch.arange(math.prod(k.type.shape or ())).reshape(2, 4, 5, 3)
        assert torch.equal(x.reshape(there).transpose(1, 2).reshape(back), x.transpose(2, 3))


@given(ORDERS)
def test_a_transposition_of_other_dims_is_not_turned_back(perm: tuple[int, ...]) -> None:
    g = FakeGraph()
    k = g.input("k", 2, 4, 5, 3)
    found, _ = unturned(g, turn(g, k, perm))  # type: ignore[arg-type]
    assert (found is k) == (perm == (0, 1, 3, 2))


def test_what_changes_neither_content_nor_shape_is_followed_and_nothing_else() -> None:
    g = FakeGraph()
    x = g.input("x", "batch", "rows", 6)
    same = x
    for op in ("clone", "reshape", "expand", "cast", "dropout"):
        same = g.node(op, same, shape=("batch", "rows", 6))
    found, nodes = origin(same)
    assert (found is x, len(nodes)) == (True, 5)
    for op, shape in (("reshape", ("batch*rows", 6)), ("relu", ("batch", "rows", 6)), ("reshape", None)):
        other = g.node(op, x, shape=shape)
        assert origin(other) == (other, ())
