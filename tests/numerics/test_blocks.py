"""Into how many blocks a hidden width is cut: laws of the count."""

from hypothesis import given
from hypothesis import strategies as st

from regraft.numerics.blocks import LEAST_WIDTH, mlp_blocks

WIDTHS = {"hidden": st.integers(1, 20000), "read": st.integers(1, 10000)}


@given(**WIDTHS)
def test_every_block_holds_something(hidden: int, read: int) -> None:
    count = mlp_blocks(hidden, read)
    size = -(-hidden // count)
    assert (count - 1) * size < hidden <= count * size


@given(**WIDTHS, element_bytes=st.sampled_from([2, 4, 8]))
def test_the_weights_of_a_block_fill_half_of_the_cache_at_most_unless_blocks_would_be_narrow(
    hidden: int, read: int, element_bytes: int
) -> None:
    size = -(-hidden // mlp_blocks(hidden, read, element_bytes))
    assert size <= LEAST_WIDTH or size * read * element_bytes <= 2**19


@given(**WIDTHS)
def test_a_block_is_an_eighth_of_the_width_at_most_unless_it_would_be_narrow(hidden: int, read: int) -> None:
    size = -(-hidden // mlp_blocks(hidden, read))
    assert size <= max(LEAST_WIDTH, hidden // 8)


@given(**WIDTHS)
def test_a_larger_cache_takes_no_more_blocks(hidden: int, read: int) -> None:
    assert mlp_blocks(hidden, read, cache=2**22) <= mlp_blocks(hidden, read, cache=2**20)


def test_a_narrow_layer_is_one_block_and_that_of_bert_is_cut_in_twelve() -> None:
    assert mlp_blocks(64, 32) == 1
    assert mlp_blocks(3072, 240 + 240) == 12
