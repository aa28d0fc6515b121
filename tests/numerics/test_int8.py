"""Weights in 8 bits and outlier columns: half a step, zero rows, caps, and weights that bitsandbytes quantized."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from regraft.errors import DtypeError, ShapeError
from regraft.numerics.int8 import MOST_INPUTS, column_budget, from_bitsandbytes, outlier_columns, quantize_rows

LAWS = settings(deadline=None, max_examples=60)


@st.composite
def weights(draw: st.DrawFn) -> Tensor:
    """Matrices whose rows differ by orders of magnitude; some rows are zero."""
    rows, columns, seed = draw(st.integers(1, 8)), draw(st.integers(1, 67)), draw(st.integers(0, 2**20))
    generator = torch.Generator().manual_seed(seed)
    size = 10.0 ** torch.randint(-6, 5, (rows, 1), generator=generator)
    weight = torch.randn(rows, columns, generator=generator, dtype=torch.float64) * size
    if draw(st.booleans()):
        weight[draw(st.integers(0, rows - 1))] = 0
    return weight.to(draw(st.sampled_from([torch.float32, torch.float64, torch.bfloat16])))


@given(weights())
@LAWS
def test_codes_are_within_half_a_step_of_the_weight(weight: Tensor) -> None:
    found = quantize_rows(weight)
    assert found.codes.dtype == torch.int8
    assert found.codes.abs().max() <= 127
    off = (weight.double() - found.codes.double() * found.scale.double()[:, None]).abs()
    assert bool((off <= found.scale.double()[:, None] * (0.5 + 1e-4)).all())


@given(weights())
@LAWS
def test_every_row_uses_its_whole_range_and_a_zero_row_has_the_scale_one(weight: Tensor) -> None:
    found = quantize_rows(weight)
    for row, codes, scale in zip(weight, found.codes, found.scale, strict=True):
        assert int(codes.abs().max()) == (127 if bool(row.any()) else 0)
        assert bool(row.any()) or float(scale) == 1.0


@given(weights())
@LAWS
def test_restored_weights_have_the_same_codes_again(weight: Tensor) -> None:
    found = quantize_rows(weight)
    assert torch.equal(quantize_rows(found.dequantize()).codes, found.codes)


def test_columns_that_are_left_out_have_no_codes_and_do_not_count_for_the_scale() -> None:
    weight = torch.tensor([[1.0, 100.0, -2.0], [3.0, -50.0, 0.5]])
    found = quantize_rows(weight, torch.tensor([1]))
    assert found.codes[:, 1].tolist() == [0, 0]
    torch.testing.assert_close(found.scale, torch.tensor([2.0, 3.0]) / 127)
    assert torch.equal(weight, torch.tensor([[1.0, 100.0, -2.0], [3.0, -50.0, 0.5]]))


def test_leaving_out_every_column_leaves_zeros() -> None:
    found = quantize_rows(torch.randn(3, 2), torch.tensor([0, 1]))
    assert not found.codes.any()
    assert found.scale.tolist() == [1.0, 1.0, 1.0]


def test_numbers_too_small_for_a_scale_of_their_own_become_zeros() -> None:
    found = quantize_rows(torch.full((1, 2), 1e-45))
    assert bool(torch.isfinite(found.dequantize()).all())


def test_a_gaussian_weight_is_off_by_eight_thousandths() -> None:
    weight = torch.randn(256, 1024, generator=torch.Generator().manual_seed(0))
    error = float((quantize_rows(weight).dequantize() - weight).norm() / weight.norm())
    assert error == pytest.approx(0.0078, rel=0.05)  # the methods page's figure for 8 bits a row


@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_a_weight_that_is_not_finite_is_refused(bad: float) -> None:
    weight = torch.ones(2, 3)
    weight[1, 1] = bad
    with pytest.raises(DtypeError, match=r"^a weight to quantize must be finite; it has inf or nan$"):
        quantize_rows(weight)


def test_a_weight_that_is_no_matrix_is_refused() -> None:
    with pytest.raises(ShapeError, match=r"^a weight to quantize must be \[out, in\]; got \[2, 3, 4\]$"):
        quantize_rows(torch.ones(2, 3, 4))


def test_sums_of_the_widest_layer_fit_in_32_bits_and_one_input_more_does_not() -> None:
    assert 255 * 127 * MOST_INPUTS < 2**31 <= 255 * 127 * (MOST_INPUTS + 1)


# Outliers

PEAK = torch.tensor([1.0, 7.0, 0.5, 6.0, 5.9, 1.0, 1.0, 9.0])


def columns(**options: float) -> list[int]:
    return outlier_columns(PEAK, **{"threshold": 6.0, "relative": 0.0, "cap": 1.0, **options}).tolist()


def test_columns_that_reach_the_threshold_are_outliers_and_it_counts_as_reached() -> None:
    assert columns() == [1, 3, 7]


def test_a_network_of_another_scale_has_outliers_by_the_relative_rule() -> None:
    small = PEAK / 1000
    assert outlier_columns(small, threshold=6.0, relative=0.0, cap=1.0).tolist() == []
    assert outlier_columns(small, threshold=6.0, relative=6.5, cap=1.0).tolist() == [1, 7]
    assert columns(threshold=0.0, relative=5.9) == [1, 3, 4, 7]  # the median is 1


def test_either_rule_is_turned_off_by_zero() -> None:
    assert columns(threshold=0.0) == []
    assert columns(threshold=0.0, relative=8.5) == [7]


def test_of_too_many_outliers_the_largest_are_taken_in_ascending_order() -> None:
    assert columns(cap=0.25) == [1, 7]
    assert columns(cap=0.01) == [7]
    assert columns(cap=0.0) == []


def test_activations_that_are_zero_or_empty_have_no_relative_outliers() -> None:
    for peak in (torch.zeros(4), torch.zeros(0)):
        assert outlier_columns(peak, threshold=6.0, relative=8.0, cap=1.0).tolist() == []


@given(features=st.integers(0, 500), share=st.floats(0, 1))
@LAWS
def test_a_budget_of_columns_is_the_share_rounded_up(features: int, share: float) -> None:
    budget = column_budget(features, share)
    assert share * features <= budget <= min(features, share * features + 1)


# bitsandbytes


@given(weights())
@LAWS
def test_bitsandbytes_weights_load_as_they_are(weight: Tensor) -> None:
    maxima = weight.float().abs().amax(dim=1)
    codes = torch.round(127 * weight.float() / maxima.clamp_min(1e-30)[:, None]).to(torch.int8)
    found = from_bitsandbytes(codes, maxima)
    assert found.codes is codes
    restored = codes.double() * maxima.double()[:, None] / 127
    torch.testing.assert_close(found.dequantize().double(), restored, rtol=1e-6, atol=0)
    assert bool((found.scale > 0).all())


CODES, MAXIMA = torch.zeros(3, 2, dtype=torch.int8), torch.ones(3)


@pytest.mark.parametrize(
    ("codes", "maxima", "text"),
    [
        (CODES, torch.ones(2), "bitsandbytes weights need CB [out, in] and SCB [out]; got [3, 2] and [2]"),
        (CODES[0], MAXIMA, "bitsandbytes weights need CB [out, in] and SCB [out]; got [2] and [3]"),
        (CODES.float(), MAXIMA, "bitsandbytes weights need CB int8 and SCB float; got torch.float32 and torch.float32"),
        (CODES, CODES[:, 0], "bitsandbytes weights need CB int8 and SCB float; got torch.int8 and torch.int8"),
        (CODES, -MAXIMA, "bitsandbytes weights need SCB finite and not negative"),
        (CODES, MAXIMA * math.nan, "bitsandbytes weights need SCB finite and not negative"),
    ],
)
def test_what_is_no_bitsandbytes_weight_is_refused(codes: Tensor, maxima: Tensor, text: str) -> None:
    with pytest.raises((ShapeError, DtypeError)) as caught:
        from_bitsandbytes(codes, maxima)
    assert str(caught.value) == text
