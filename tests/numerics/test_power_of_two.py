"""Sums of signed powers of two: levels, nearest sums, packing, scales, and the bounds that they keep."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from regraft.errors import DtypeError, OptionError, ShapeError
from regraft.numerics.power_of_two import TERM_VALUES, levels, nearest, pack, packed_width, unpack
from regraft.numerics.power_of_two_fit import least_squares_scale, quantize_rows, quantize_with_feedback

TERMS = pytest.mark.parametrize("terms", [1, 2])


def gaussian(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def relative(weight: torch.Tensor, restored: torch.Tensor) -> float:
    return float((weight - restored).norm() / weight.norm())


def test_levels_of_one_term_are_zero_and_the_powers_of_two_up_to_64() -> None:
    assert levels(1).tolist() == [0, 1, 2, 4, 8, 16, 32, 64]


def test_sums_of_two_terms_are_those_that_fit_int8() -> None:
    singles = set(TERM_VALUES)
    sums = {a + b for a in singles for b in singles}
    assert levels(2).tolist() == sorted(value for value in sums if 0 <= value < 128)
    assert levels(2).max() == 96


@TERMS
def test_the_nearest_sum_is_nearest_among_all_levels(terms: int) -> None:
    weight, scale = gaussian(5, 37) * 20, torch.tensor([0.1, 0.3, 1.0, 2.0, 7.0], dtype=torch.float64)
    table = torch.cat([-levels(terms), levels(terms)]).double()
    best = ((weight / scale[:, None])[..., None] - table).abs().amin(dim=-1)
    found = nearest(weight, scale, terms)
    assert found.dtype == torch.int8
    torch.testing.assert_close((weight / scale[:, None] - found).abs(), best)


def test_one_term_is_off_by_a_third_at_most_where_nothing_saturates_or_vanishes() -> None:
    weight = torch.linspace(1, 64, 2000, dtype=torch.float64)[None]
    found = nearest(weight, torch.ones(1, dtype=torch.float64), 1)
    worst = ((weight - found).abs() / weight).max()
    assert 0.32 < float(worst) <= 1 / 3


@given(
    terms=st.sampled_from([1, 2]),
    rows=st.integers(1, 4),
    columns=st.integers(1, 23),
    seed=st.integers(0, 1000),
)
def test_packing_and_unpacking_give_the_same_bits(terms: int, rows: int, columns: int, seed: int) -> None:
    magnitudes = levels(terms)
    generator = torch.Generator().manual_seed(seed)
    picked = magnitudes[torch.randint(len(magnitudes), (rows, columns), generator=generator)]
    signs = torch.randint(0, 2, (rows, columns), generator=generator) * 2 - 1
    values = (picked * signs).to(torch.int8)
    packed = pack(values, terms)
    assert packed.dtype == torch.uint8
    assert packed.shape == (rows, packed_width(columns, terms)) == (rows, -(-terms * columns // 2))
    assert torch.equal(unpack(packed, terms, columns), values)


def test_what_is_no_sum_of_powers_cannot_be_packed() -> None:
    with pytest.raises(ShapeError, match="values to pack must be sums of 1 powers of two up to 64"):
        pack(torch.tensor([[3]], dtype=torch.int8), 1)
    assert unpack(pack(torch.tensor([[3]], dtype=torch.int8), 2), 2, 1).item() == 3


@TERMS
def test_errors_on_gaussian_weights_are_those_of_the_literature(terms: int) -> None:
    weight = gaussian(64, 512)
    plain = relative(weight, quantize_rows(weight, terms, search=False).dequantize())
    assert plain == pytest.approx({1: 0.195, 2: 0.039}[terms], abs=0.01)


@TERMS
def test_searching_for_scales_never_makes_a_row_worse(terms: int) -> None:
    weight = torch.cat([gaussian(20, 33), gaussian(20, 33, 1).pow(3), gaussian(20, 33, 2) * 1e-6])
    plain, searched = (quantize_rows(weight, terms, search=search).dequantize() for search in (False, True))
    before, after = ((weight - found).norm(dim=1) for found in (plain, searched))
    assert bool((after <= before * (1 + 1e-6)).all())
    assert float(after.sum()) < float(before.sum())


def test_the_least_squares_scale_is_the_best_for_its_values() -> None:
    weight = gaussian(6, 40)
    values = nearest(weight, weight.abs().amax(dim=1) / 64, 1)
    scale = least_squares_scale(weight, values)
    error = (weight - values * scale[:, None]).norm(dim=1)
    for factor in (0.99, 1.01):
        assert bool(((weight - values * (factor * scale)[:, None]).norm(dim=1) > error).all())


@TERMS
@pytest.mark.parametrize("shape", [(1, 1), (3, 1), (1, 7), (5, 63), (4, 65)])
def test_small_and_odd_shapes_and_rows_of_zeros(terms: int, shape: tuple[int, int]) -> None:
    weight = gaussian(*shape)
    weight[0] = 0
    found = quantize_rows(weight, terms)
    assert found.values.shape == shape
    assert bool((found.scale > 0).all())
    assert torch.equal(found.dequantize()[0], weight[0])
    assert torch.equal(unpack(found.packed, terms, shape[1]), found.values)


@TERMS
def test_columns_that_are_multiplied_apart_are_zero_and_do_not_set_the_scale(terms: int) -> None:
    weight = gaussian(8, 40)
    loud = weight.clone()
    loud[:, 5] *= 1000
    apart = torch.tensor([5])
    found = quantize_rows(loud, terms, without=apart)
    assert not bool(found.values[:, 5].any())
    assert torch.equal(found.values, quantize_rows(weight, terms, without=apart).values)


@TERMS
def test_error_feedback_gives_a_smaller_output_error_on_its_inputs(terms: int) -> None:
    weight = gaussian(48, 64)
    x = gaussian(2000, 64, 3) @ (gaussian(64, 64, 4) * torch.logspace(0, -1.5, 64, dtype=torch.float64)[:, None])
    moment = x.t() @ x / len(x)
    plain = quantize_rows(weight, terms).dequantize().double()
    fed = quantize_with_feedback(weight, terms, moment, damping=0.01).dequantize().double()
    assert relative(x @ weight.t(), x @ fed.t()) < 0.9 * relative(x @ weight.t(), x @ plain.t())


def test_wrong_terms_and_weights_that_are_not_finite_are_refused() -> None:
    with pytest.raises(OptionError, match="a weight is a sum of 1 or 2 powers of two; got 3"):
        levels(3)
    with pytest.raises(DtypeError):
        quantize_rows(torch.tensor([[1.0, float("nan")]]), 1)
    with pytest.raises(ShapeError):
        quantize_rows(torch.zeros(3), 1)
