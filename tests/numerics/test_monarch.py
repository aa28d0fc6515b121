"""Monarch projection held to its laws: members are exact, the error is the sum of the tails, nothing is closer."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from regraft.errors import ShapeError
from regraft.numerics import lowrank
from regraft.numerics.monarch import ORDERS, Factors, choose_blocks, project, singular_values
from regraft.numerics.partition import Partition

LAWS = settings(max_examples=60)


def _randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@st.composite
def partitions(draw: st.DrawFn) -> Partition:
    in_features, out_features = draw(st.integers(1, 14)), draw(st.integers(1, 14))
    in_blocks, out_blocks = draw(st.integers(1, in_features)), draw(st.integers(1, out_features))
    return Partition(in_features, out_features, in_blocks, out_blocks, draw(st.booleans()), draw(st.booleans()))


def _member(cut: Partition, rank: int, seed: int) -> Tensor:
    """A Monarch matrix, made block by block."""
    up = _randn(cut.in_blocks, cut.out_blocks, cut.height, rank, seed=seed)
    down = _randn(cut.in_blocks, cut.out_blocks, rank, cut.width, seed=seed + 1)
    return cut.join(up @ down)


def _fourier(n: int) -> Tensor:
    """The discrete Fourier transform of n points, [n, n], complex."""
    times = torch.outer(torch.arange(n), torch.arange(n)).double()
    return torch.polar(torch.ones(n, n, dtype=torch.float64), -2 * math.pi * times / n)


def _distance(weight: Tensor, factors: Factors) -> float:
    total = float(weight.norm())
    return float((weight - factors.dense()).norm()) / total if total > 0 else 0.0


# Members of the class


@given(cut=partitions(), rank=st.integers(1, 4), seed=st.integers(0, 2**16))
@LAWS
def test_monarch_projection_of_a_monarch_matrix_is_exact(cut: Partition, rank: int, seed: int) -> None:
    rank = min(rank, cut.full_rank)
    weight = _member(cut, rank, seed)
    factors = project(weight, cut, rank)
    assert _distance(weight, factors) < 1e-13
    assert factors.error < 1e-13
    assert factors.rank == rank


@given(cut=partitions(), seed=st.integers(0, 2**16))
@LAWS
def test_blocks_of_full_rank_reproduce_any_weight(cut: Partition, seed: int) -> None:
    weight = _randn(cut.out_features, cut.in_features, seed=seed)
    assert _distance(weight, project(weight, cut, cut.full_rank)) < 1e-13


@pytest.mark.parametrize(("n", "blocks"), [(15, 3), (16, 4), (36, 6), (48, 6), (48, 4), (12, 1), (7, 7)])
def test_every_block_of_a_fourier_transform_has_rank_one_when_its_features_are_strided(n: int, blocks: int) -> None:
    cut = Partition(n, n, blocks, n // blocks, True, True)
    values = singular_values(_fourier(n), cut)
    assert _second(values) < 1e-13
    assert _distance(_fourier(n), project(_fourier(n), cut, 1)) < 1e-13


def _second(values: Tensor) -> float:
    return float(values[..., 1].max() / values[..., 0].min()) if values.shape[-1] > 1 else 0.0


def test_the_columns_of_a_fourier_transform_may_be_permuted_instead() -> None:
    """The published form: strided results, contiguous inputs, and the permutation applied to the matrix."""
    order = torch.arange(48).reshape(-1, 6).t().reshape(-1)
    assert project(_fourier(48)[:, order], Partition(48, 48, 6, 8, False, True), 1).error < 1e-13


def test_real_and_imaginary_part_of_a_fourier_transform_together_have_blocks_of_rank_two() -> None:
    real = torch.view_as_real(_fourier(64)).permute(2, 0, 1).reshape(128, 64)
    cut = Partition(64, 128, 8, 8, True, True)
    assert project(real, cut, 2).error < 1e-13
    assert project(real, cut, 1).error > 0.1
    assert cut.parameters(2) == 3072  # of 8192


# The error


@given(cut=partitions(), seed=st.integers(0, 2**16), data=st.data())
@LAWS
def test_the_error_is_the_sum_of_the_tails_and_what_the_stored_factors_have(
    cut: Partition, seed: int, data: st.DataObject
) -> None:
    weight = _randn(cut.out_features, cut.in_features, seed=seed)
    rank = data.draw(st.integers(1, cut.full_rank))
    factors = project(weight, cut, rank)
    tails = sum(float(torch.linalg.svdvals(block)[rank:].square().sum()) for row in cut.cut(weight) for block in row)
    assert factors.error == pytest.approx((tails**0.5) / float(weight.norm()), abs=1e-12)
    assert _distance(weight, factors) == pytest.approx(factors.error, abs=1e-12)


@given(cut=partitions(), seed=st.integers(0, 2**16), data=st.data())
@LAWS
def test_no_other_matrix_of_the_class_is_closer(cut: Partition, seed: int, data: st.DataObject) -> None:
    weight = _randn(cut.out_features, cut.in_features, seed=seed)
    rank = data.draw(st.integers(1, cut.full_rank))
    best = project(weight, cut, rank)
    nudged = best.dense() + 0.05 * _member(cut, rank, seed + 7)
    again = project(nudged, cut, rank)  # some other member, near by
    assert _distance(weight, again) >= best.error - 1e-12


@given(cut=partitions(), seed=st.integers(0, 2**16))
@LAWS
def test_a_higher_rank_is_never_further_off(cut: Partition, seed: int) -> None:
    weight = _randn(cut.out_features, cut.in_features, seed=seed)
    errors = [project(weight, cut, rank).error for rank in range(1, cut.full_rank + 1)]
    assert errors == sorted(errors, reverse=True)


@given(seed=st.integers(0, 2**16), rank=st.integers(1, 5))
@LAWS
def test_one_block_is_the_truncated_svd(seed: int, rank: int) -> None:
    weight = _randn(9, 6, seed=seed)
    thin = lowrank.truncated_svd(weight, rank)
    factors = project(weight, Partition(6, 9, 1, 1), rank)
    torch.testing.assert_close(factors.dense(), thin.up @ thin.down)
    assert factors.error == pytest.approx(thin.error)


# What comes out


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_factors_keep_the_dtype_of_the_weight_and_their_layout(dtype: torch.dtype) -> None:
    weight = _randn(10, 11).to(dtype)
    bias = _randn(10, seed=3)
    factors = project(weight, Partition(11, 10, 3, 4), 2, bias)
    assert (factors.right.shape, factors.left.shape) == ((3, 4, 8), (4, 6, 3))
    assert factors.right.dtype == factors.left.dtype == dtype
    assert factors.right.is_contiguous()
    assert factors.left.is_contiguous()
    assert factors.bias is bias
    rounding = 4 * torch.finfo(dtype).eps
    assert _distance(weight.double(), factors) == pytest.approx(factors.error, abs=rounding)


def test_singular_values_are_split_evenly_between_the_factors() -> None:
    cut = Partition(12, 12, 3, 3)
    factors = project(_randn(12, 12) * 1e4, cut, 2)
    right = factors.right.reshape(3, 4, 3, 2).norm(dim=1)
    left = factors.left.reshape(3, 3, 2, 4).norm(dim=-1)
    torch.testing.assert_close(right, left.transpose(0, 1))


def test_the_weight_is_not_changed_and_needs_no_gradient() -> None:
    weight = _randn(6, 6).requires_grad_()
    kept = weight.detach().clone()
    factors = project(weight, Partition(6, 6, 2, 2), 1)
    assert torch.equal(weight.detach(), kept)
    assert not factors.right.requires_grad


def test_a_weight_of_zeros_is_exact() -> None:
    assert project(torch.zeros(6, 6), Partition(6, 6, 2, 2), 1).error == 0.0


@pytest.mark.parametrize("rank", [0, 4])
def test_a_rank_that_blocks_cannot_have_is_refused(rank: int) -> None:
    text = f"rank must be at least 1 and at most 3 for 4x3 blocks; got {rank}"
    cut = Partition(6, 8, 2, 2)
    for call in (lambda: project(_randn(8, 6), cut, rank), lambda: choose_blocks(_randn(8, 6), cut, rank)):
        with pytest.raises(ShapeError) as caught:
            call()
        assert str(caught.value) == text


def test_a_weight_of_another_shape_is_refused() -> None:
    with pytest.raises(ShapeError, match=r"must be \[8, 6\]; got \[6, 8\]"):
        project(_randn(6, 8), Partition(6, 8, 2, 2), 1)


# The choice of order and rank


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_order_and_the_rank_of_a_member_are_found(order: tuple[bool, bool], dtype: torch.dtype) -> None:
    plain = Partition(48, 40, 4, 4)
    member = plain.with_order(in_strided=order[0], out_strided=order[1])
    choice = choose_blocks(_member(member, 2, 5).to(dtype), plain, 5)
    assert choice == (member, 2, True)


def test_a_fourier_transform_is_found_among_higher_ranks() -> None:
    real = torch.view_as_real(_fourier(256)).permute(2, 0, 1).reshape(512, 256).float()
    choice = choose_blocks(real, Partition(256, 512, 16, 16), Partition(256, 512, 16, 16).rank_for(0.5))
    assert choice == (Partition(256, 512, 16, 16, True, True), 2, True)


def test_a_weight_without_structure_gets_contiguous_blocks_of_the_rank_asked_for() -> None:
    cut = Partition(24, 32, 4, 4)
    assert choose_blocks(_randn(32, 24), cut.with_order(in_strided=True, out_strided=True), 3) == (cut, 3, False)


def test_an_order_that_is_not_allowed_is_not_chosen() -> None:
    cut = Partition(48, 48, 4, 4)
    strided = cut.with_order(in_strided=True, out_strided=True)
    choice = choose_blocks(_member(strided, 2, 0), cut, 3, [(False, False)])
    assert choice == (cut, 3, False)


def test_a_member_with_a_little_noise_gets_its_order_but_is_not_called_exact() -> None:
    cut = Partition(48, 48, 4, 4)
    strided = cut.with_order(in_strided=False, out_strided=True)
    weight = _member(strided, 2, 0) + 1e-2 * _randn(48, 48, seed=9)
    assert choose_blocks(weight, cut, 3) == (strided, 3, False)


def test_zeros_need_one_rank() -> None:
    assert choose_blocks(torch.zeros(8, 8), Partition(8, 8, 2, 2), 3) == (Partition(8, 8, 2, 2), 1, True)
