"""The error of a whole model: the worst of its outputs, infinite where nothing can be compared."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from regraft.passes._check import model_error


def _t(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float32)


def test_equal_outputs_have_no_error_and_no_output_none_either() -> None:
    assert model_error([(_t(1, 2),)], [(_t(1, 2),)]) == 0.0
    assert model_error([], []) == 0.0
    assert model_error([()], [()]) == 0.0


def test_the_error_is_relative_over_all_batches_together() -> None:
    original = [(_t(3, 0),), (_t(0, 4),)]
    rewritten = [(_t(3, 1),), (_t(0, 4),)]
    assert model_error(original, rewritten) == pytest.approx(1 / 5)


def test_the_worst_output_counts() -> None:
    original = [(_t(1), _t(10), _t(1))]
    assert model_error(original, [(_t(1.1), _t(15), _t(1.2))]) == pytest.approx(0.5)


@given(st.lists(st.floats(-100, 100, width=32), min_size=2, max_size=8), st.floats(0.01, 100))
@settings(deadline=None, max_examples=60)
def test_scaling_both_models_scales_nothing(numbers: list[float], factor: float) -> None:
    y = torch.tensor(numbers, dtype=torch.float64)
    z = y + torch.linspace(-1, 1, len(y), dtype=torch.float64)
    assert model_error([(y * factor,)], [(z * factor,)]) == pytest.approx(model_error([(y,)], [(z,)]))


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_finite_where_the_originals_are_count_as_infinitely_wrong(number: float) -> None:
    assert model_error([(_t(1, 2),)], [(_t(1, number),)]) == math.inf


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_places_where_the_original_is_not_finite_do_not_count(number: float) -> None:
    assert model_error([(_t(3, number, 4),)], [(_t(3, number, 5),)]) == pytest.approx(0.2)
    assert model_error([(_t(3, number, 4),)], [(_t(3, 0, 4),)]) == 0.0


def test_another_shape_counts_as_infinitely_wrong() -> None:
    assert model_error([(_t(1, 2),)], [(_t(1, 2, 3),)]) == math.inf
    assert model_error([(_t(1, 2),)], [(_t(1, 2)[None],)]) == math.inf
    assert model_error([(_t(1),), (_t(1),)], [(_t(1),), (_t(1, 1),)]) == math.inf


def test_an_original_of_zeros_is_met_exactly_or_not_at_all() -> None:
    assert model_error([(_t(0, 0),)], [(_t(0, 0),)]) == 0.0
    assert model_error([(_t(0, 0),)], [(_t(0, 1e-20),)]) == math.inf


def test_outputs_of_integers_are_not_compared() -> None:
    assert model_error([(torch.tensor([1]), _t(1))], [(torch.tensor([9]), _t(1))]) == 0.0


def test_16_bit_outputs_are_compared_in_float64() -> None:
    y = torch.full((4096,), 200.0, dtype=torch.float16)
    assert model_error([(y,)], [(y * 0.5,)]) == pytest.approx(0.5)
