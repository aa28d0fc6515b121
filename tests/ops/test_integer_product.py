"""Products of 8-bit integers are exact, whichever way a device computes them."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from regraft.numerics.int8 import MOST_INPUTS
from regraft.ops import _integer


def reference(codes: Tensor, weight: Tensor, zero: int) -> Tensor:
    return ((codes.long() - zero) @ weight.long().t()).to(torch.int32)


def draw(rows: int, inputs: int, outputs: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 256, (rows, inputs), generator=generator, dtype=torch.uint8)
    return codes, torch.randint(-127, 128, (outputs, inputs), generator=generator, dtype=torch.int8)


EXTENTS = st.sampled_from([1, 2, 3, 4, 7, 8, 16, 17, 31, 33, 64, 65])


@given(rows=st.integers(0, 40), inputs=EXTENTS, outputs=EXTENTS, zero=st.integers(0, 255), seed=st.integers(0, 999))
@settings(deadline=None, max_examples=200)
def test_every_way_is_exact_for_any_extents(rows: int, inputs: int, outputs: int, zero: int, seed: int) -> None:
    codes, weight = draw(rows, inputs, outputs, seed)
    wanted, zero_point = reference(codes, weight, zero), torch.tensor(zero, dtype=torch.uint8)
    ways = [_integer.linear_integer, _integer._by_double]
    if _integer._has_int8(codes, weight):
        ways.append(_integer._by_int8)
    for way in ways:
        found = way(codes, weight, zero_point)
        assert found.dtype == torch.int32
        assert torch.equal(found, wanted)


@given(blocks=st.integers(1, 4), rows=st.integers(0, 9), inputs=EXTENTS, outputs=EXTENTS, seed=st.integers(0, 999))
@settings(deadline=None, max_examples=100)
def test_products_of_blocks_are_exact_whatever_their_strides(
    blocks: int, rows: int, inputs: int, outputs: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 256, (rows, blocks, inputs), generator=generator, dtype=torch.uint8).transpose(0, 1)
    weight = torch.randint(-127, 128, (blocks, inputs, outputs), generator=generator, dtype=torch.int8)
    found = _integer.matmul_integer(codes, weight, torch.tensor(77, dtype=torch.uint8))
    assert found.dtype == torch.int32
    assert torch.equal(found.long(), (codes.long() - 77) @ weight.long())


@pytest.mark.parametrize("fast", [True, False])
def test_the_largest_sums_of_the_widest_layer_are_exact(fast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_integer, "_CPU_HAS_INT8", fast and _integer._CPU_HAS_INT8)
    weight = torch.full((2, MOST_INPUTS), 127, dtype=torch.int8)
    weight[1] = -127
    for code, zero in ((255, 0), (0, 255), (255, 128), (0, 128)):
        codes = torch.full((3, MOST_INPUTS), code, dtype=torch.uint8)
        found = _integer.linear_integer(codes, weight, torch.tensor(zero, dtype=torch.uint8))
        assert torch.equal(found, reference(codes, weight, zero))


@pytest.mark.parametrize("lead", [(), (3,), (2, 3, 4)])
def test_leading_dims_and_strides_do_not_matter(lead: tuple[int, ...]) -> None:
    codes = torch.randint(0, 256, (*lead, 14), dtype=torch.uint8)[..., ::2]
    weight = torch.randint(-127, 128, (7, 5), dtype=torch.int8).t()
    found = _integer.linear_integer(codes, weight, torch.tensor(3, dtype=torch.uint8))
    assert torch.equal(found, reference(codes, weight, 3))
    assert found.shape == (*lead, 5)


def test_a_single_column_does_not_go_to_the_fast_product_which_gets_it_wrong() -> None:
    codes, weight = draw(7, 1, 3, 0)
    assert not _integer._has_int8(codes, weight)
