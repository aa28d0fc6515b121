"""Moments: sums over calibration rows, however the rows are cut into batches."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from regraft.errors import ShapeError
from regraft.numerics.moments import Moments


def _rows(rows: int, features: int, seed: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(rows, features, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def _moments(*batches: torch.Tensor) -> Moments:
    moments = Moments(batches[0].shape[-1])
    for batch in batches:
        moments.update(batch)
    return moments


@given(
    features=st.integers(1, 6),
    sizes=st.lists(st.integers(0, 5), min_size=1, max_size=6),
    seed=st.integers(0, 2**16),
)
@settings(deadline=None, max_examples=60)
def test_rows_cut_into_any_batches_give_the_same_sums(features: int, sizes: list[int], seed: int) -> None:
    rows = _rows(sum(sizes), features, seed)
    split = _moments(*rows.split(sizes))
    assert split.rows == len(rows)
    torch.testing.assert_close(split.gram, rows.t() @ rows / max(len(rows), 1), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(split.mean, rows.sum(0) / max(len(rows), 1), rtol=1e-12, atol=1e-12)
    peak = rows.abs().amax(0) if len(rows) else torch.zeros(features, dtype=torch.float64)
    torch.testing.assert_close(split.peak, peak, rtol=0, atol=0)


@given(shape=st.lists(st.integers(1, 3), min_size=0, max_size=3), seed=st.integers(0, 2**16))
@settings(deadline=None, max_examples=40)
def test_leading_dims_of_any_number_are_rows(shape: list[int], seed: int) -> None:
    flat = _rows(torch.Size(shape).numel(), 4, seed)
    moments = _moments(flat.reshape(*shape, 4))
    assert moments.rows == len(flat)
    torch.testing.assert_close(moments.second, flat.t() @ flat)


def test_covariance_is_that_of_the_population() -> None:
    rows = _rows(50, 4, 0) + torch.tensor([3.0, -1.0, 0.0, 10.0], dtype=torch.float64)
    torch.testing.assert_close(_moments(rows).covariance, torch.cov(rows.t(), correction=0))


def test_the_covariance_of_one_row_is_zero() -> None:
    assert float(_moments(_rows(1, 5, 3)).covariance.abs().max()) < 1e-15


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_sums_of_any_type_are_kept_in_float64(dtype: torch.dtype) -> None:
    rows = _rows(4096, 2, 1, dtype) + 8
    moments = _moments(rows)
    assert {moments.second.dtype, moments.first.dtype, moments.peak.dtype} == {torch.float64}
    torch.testing.assert_close(moments.first, rows.double().sum(0), rtol=1e-12, atol=0)


def test_moments_of_no_row_are_zeros_of_full_extent() -> None:
    moments = Moments(3)
    assert moments.gram.shape == moments.covariance.shape == (3, 3)
    assert moments.mean.shape == (3,)
    assert float(moments.gram.abs().sum() + moments.mean.abs().sum()) == 0.0


def test_an_empty_batch_changes_nothing() -> None:
    rows = _rows(6, 3, 2)
    with_empty = _moments(rows[:0], rows, rows[:0])
    assert with_empty.rows == 6
    torch.testing.assert_close(with_empty.second, rows.t() @ rows)


def test_rows_are_not_changed_and_carry_no_gradient_into_the_sums() -> None:
    rows = _rows(6, 3, 2).requires_grad_()
    kept = rows.detach().clone()
    moments = _moments(rows)
    assert not moments.second.requires_grad
    assert torch.equal(rows.detach(), kept)


@pytest.mark.parametrize(("shape", "text"), [((2, 4), "[2, 4]"), ((), "[]"), ((3, 1), "[3, 1]")])
def test_rows_of_another_width_are_refused_and_named(shape: tuple[int, ...], text: str) -> None:
    with pytest.raises(ShapeError) as caught:
        Moments(3).update(torch.zeros(shape))
    assert str(caught.value) == f"calibration rows must end in 3 features; got {text}"
