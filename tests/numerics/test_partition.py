"""Partitions: cutting a weight into blocks loses nothing, whatever the counts and the order of features."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from regraft.errors import ShapeError
from regraft.numerics.partition import Partition


@st.composite
def partitions(draw: st.DrawFn) -> Partition:
    in_features, out_features = draw(st.integers(1, 13)), draw(st.integers(1, 13))
    in_blocks, out_blocks = draw(st.integers(1, in_features)), draw(st.integers(1, out_features))
    return Partition(in_features, out_features, in_blocks, out_blocks, draw(st.booleans()), draw(st.booleans()))


def _weight(cut: Partition) -> torch.Tensor:
    count = cut.out_features * cut.in_features
    return torch.arange(1, count + 1, dtype=torch.float64).reshape(cut.out_features, cut.in_features)


@given(cut=partitions())
def test_joining_what_was_cut_gives_the_weight_back(cut: Partition) -> None:
    weight = _weight(cut)
    blocks = cut.cut(weight)
    assert blocks.shape == (cut.in_blocks, cut.out_blocks, cut.height, cut.width)
    assert torch.equal(cut.join(blocks), weight)


@given(cut=partitions())
def test_padding_is_zeros_and_nothing_else_is(cut: Partition) -> None:
    blocks = cut.cut(_weight(cut))
    assert int((blocks != 0).sum()) == cut.in_features * cut.out_features
    grid = (cut.in_features + cut.in_padding) * (cut.out_features + cut.out_padding)
    assert blocks.numel() == grid


@given(cut=partitions(), data=st.data())
def test_every_element_is_where_the_order_says(cut: Partition, data: Any) -> None:
    row, column = data.draw(st.integers(0, cut.out_features - 1)), data.draw(st.integers(0, cut.in_features - 1))
    b, s = (row % cut.out_blocks, row // cut.out_blocks) if cut.out_strided else divmod(row, cut.height)
    a, p = (column % cut.in_blocks, column // cut.in_blocks) if cut.in_strided else divmod(column, cut.width)
    assert cut.cut(_weight(cut))[a, b, s, p] == _weight(cut)[row, column]


@given(cut=partitions())
def test_a_moment_is_put_in_the_order_of_the_blocks(cut: Partition) -> None:
    """The mean of ‖W x‖² is the same, computed from the blocks or from the weight."""
    root = torch.randn(cut.in_features, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    moment, weight = root @ root.t(), _weight(cut)
    k, l, s, p = cut.cut(weight).shape  # noqa: E741 - the formula's letters
    rows = cut.cut(weight).permute(1, 2, 0, 3).reshape(l * s, k * p)
    blockwise = ((rows @ cut.cut_inputs(moment)) * rows).sum()
    torch.testing.assert_close(blockwise, ((weight @ moment) * weight).sum())


@given(cut=partitions())
def test_parameters_are_those_of_two_block_diagonal_factors(cut: Partition) -> None:
    k, l, n, m = cut.in_blocks, cut.out_blocks, cut.width * cut.in_blocks, cut.height * cut.out_blocks  # noqa: E741
    for rank in (1, 3):
        assert cut.parameters(rank) == rank * (l * n + k * m)


@given(cut=partitions(), keep=st.floats(0.01, 0.99))
def test_the_rank_for_a_share_is_the_largest_that_keeps_within_it(cut: Partition, keep: float) -> None:
    rank, dense = cut.rank_for(keep), cut.in_features * cut.out_features
    assert cut.parameters(rank) <= keep * dense + 1e-9
    assert cut.parameters(rank + 1) > keep * dense - 1e-9


@given(cut=partitions())
def test_below_the_break_even_rank_there_are_fewer_parameters_and_at_it_not(cut: Partition) -> None:
    dense = cut.in_features * cut.out_features
    assert cut.parameters(cut.break_even_rank) >= dense
    assert cut.parameters(cut.break_even_rank - 1) < dense
    assert cut.break_even_rank <= cut.full_rank


def test_four_blocks_of_full_inner_width_hold_half_of_a_square_and_five_sixteenths_of_a_feed_forward_layer() -> None:
    """The published layer: as many intermediate values as the shorter side, shared out over the groups."""
    assert Partition(64, 64, 4, 4).parameters(64 // 4 // 4) == 64 * 64 // 2
    assert Partition(64, 256, 4, 4).parameters(64 // 4 // 4) == 64 * 256 * 5 // 16


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((3, 5, 4, 1), "in_blocks must be at least 1 and at most the 3 input features; got 4"),
        ((3, 5, 1, 6), "out_blocks must be at least 1 and at most the 5 output features; got 6"),
        ((3, 5, 0, 1), "in_blocks must be at least 1 and at most the 3 input features; got 0"),
    ],
)
def test_more_blocks_than_features_are_refused(arguments: tuple[int, int, int, int], text: str) -> None:
    with pytest.raises(ShapeError) as caught:
        Partition(*arguments)
    assert str(caught.value) == text


@pytest.mark.parametrize("shape", [(3, 5), (5,), (1, 5, 3)])
def test_a_weight_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError) as caught:
        Partition(3, 5, 2, 2).cut(torch.zeros(shape))
    assert str(caught.value) == f"a weight to cut into these blocks must be [5, 3]; got {list(shape)}"
