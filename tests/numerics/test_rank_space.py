"""Rank space held to its laws: exact at full rank, best at any other, heads that share a key cut together."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from regraft.errors import ShapeError
from regraft.numerics.rank_space import Shared, joint_factors, joint_rank, most_rank, root_of

LAWS = settings(deadline=None, max_examples=60)


def _randn(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def _products(left: Tensor, right: Tensor) -> Tensor:
    """leftᵀ · right of every query head, [heads, m, n]."""
    repeated = right.repeat_interleave(left.shape[0] // right.shape[0], dim=0)
    return left.transpose(1, 2) @ repeated


def _distance(shared: Shared, left: Tensor, right: Tensor) -> float:
    return float((_products(left, right) - _products(shared.left, shared.right)).norm())


@st.composite
def pairs(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Factors of all shapes: one head or several, grouped or not, wider or narrower than a head."""
    kv_heads, group, head, m, n = (draw(st.integers(1, most)) for most in (3, 3, 6, 9, 9))
    seed = draw(st.integers(0, 1000))
    return _randn(kv_heads * group, head, m, seed=seed), _randn(kv_heads, head, n, seed=seed + 1)


@LAWS
@given(pairs())
def test_at_full_rank_the_products_are_the_same(pair: tuple[Tensor, Tensor]) -> None:
    left, right = pair
    shared = joint_factors(left, right, most_rank(left, right))
    wanted = _products(left, right)
    torch.testing.assert_close(_products(shared.left, shared.right), wanted, rtol=1e-11, atol=1e-11)
    assert shared.error == 0.0


@LAWS
@given(pairs(), st.integers(1, 6))
def test_the_error_is_that_of_the_singular_values_left_out_and_what_the_products_differ_by(
    pair: tuple[Tensor, Tensor], rank: int
) -> None:
    left, right = pair
    rank = min(rank, most_rank(left, right))
    shared = joint_factors(left, right, rank)
    wanted = _products(left, right)
    group = left.shape[0] // right.shape[0]
    stacked = wanted.reshape(right.shape[0], group * left.shape[2], right.shape[2])  # products of one key below another
    values = torch.linalg.svdvals(stacked)
    tail = float(values[:, rank:].square().sum() / values.square().sum()) ** 0.5
    assert shared.error == pytest.approx(tail, abs=1e-7)
    assert _distance(shared, left, right) / float(wanted.norm()) == pytest.approx(tail, abs=1e-7)


@LAWS
@given(pairs(), st.integers(1, 6))
def test_cutting_the_product_is_never_worse_than_cutting_both_factors(pair: tuple[Tensor, Tensor], rank: int) -> None:
    left, right = pair
    rank = min(rank, most_rank(left, right))
    cut = [_cut(tensor, rank) for tensor in pair]
    apart = float((_products(left, right) - _products(*cut)).norm())
    assert _distance(joint_factors(left, right, rank), left, right) <= apart + 1e-9


def _cut(tensor: Tensor, rank: int) -> Tensor:
    """Each head's matrix at a lower rank."""
    u, values, vh = torch.linalg.svd(tensor, full_matrices=False)
    return u[:, :, :rank] * values[:, None, :rank] @ vh[:, :rank]


@LAWS
@given(pairs(), st.integers(1, 6))
def test_the_factors_have_the_shapes_and_the_type_of_the_operands(pair: tuple[Tensor, Tensor], rank: int) -> None:
    left, right = (tensor.float() for tensor in pair)
    rank = min(rank, most_rank(left, right))
    shared = joint_factors(left, right, rank)
    assert shared.left.shape == (left.shape[0], rank, left.shape[2])
    assert shared.right.shape == (right.shape[0], rank, right.shape[2])
    assert (shared.left.dtype, shared.right.dtype) == (torch.float32, torch.float32)
    assert shared.left.is_contiguous()
    assert shared.right.is_contiguous()


@LAWS
@given(st.integers(1, 5), st.integers(1, 3), st.integers(0, 1000))
def test_products_of_low_rank_are_told_and_kept_exactly(rank: int, group: int, seed: int) -> None:
    kv_heads, head, m, n = 2, 6, 8, 7
    thin = _randn(kv_heads, head, rank, seed=seed)
    right = thin @ _randn(kv_heads, rank, n, seed=seed + 1)
    left = _randn(kv_heads * group, head, m, seed=seed + 2)
    assert joint_rank(left, right, 1e-12) == rank
    shared = joint_factors(left, right, rank)
    assert shared.error < 1e-12
    torch.testing.assert_close(_products(shared.left, shared.right), _products(left, right))


def test_query_and_key_of_low_rank_have_a_product_of_the_lower_one() -> None:
    left = _randn(2, 6, 3, seed=0) @ _randn(2, 3, 8, seed=1)
    right = _randn(2, 6, 2, seed=2) @ _randn(2, 2, 7, seed=3)
    assert joint_rank(left, right, 1e-12) == 2


def test_the_rank_is_that_of_the_head_that_needs_most() -> None:
    left, right = _randn(2, 4, 5, seed=0), _randn(2, 4, 5, seed=1)
    right[0, 1:] = 0
    assert joint_rank(left, right, 1e-12) == 4
    assert joint_rank(left[:1], right[:1], 1e-12) == 1


def test_singular_values_up_to_the_tolerance_count_as_zero() -> None:
    left, right = torch.eye(3).double()[None], torch.diag(torch.tensor([1.0, 1e-3, 1e-6])).double()[None]
    assert [joint_rank(left, right, tolerance) for tolerance in (1e-9, 1e-5, 1e-2)] == [3, 2, 1]


def test_products_of_nothing_are_of_rank_one_without_error() -> None:
    left, right = torch.zeros(2, 3, 4), torch.zeros(1, 3, 5)
    assert joint_rank(left, right, 1e-12) == 1
    shared = joint_factors(left, right, 1)
    assert shared.error == 0.0
    assert not shared.left.any()


def test_both_factors_are_of_one_scale() -> None:
    left, right = 1e4 * _randn(1, 4, 6, seed=0), 1e-4 * _randn(1, 4, 6, seed=1)
    shared = joint_factors(left, right, 4)
    assert float(shared.left.norm()) == pytest.approx(float(shared.right.norm()))


@pytest.mark.parametrize("rank", [0, -1, 5])
def test_a_rank_out_of_range_is_refused(rank: int) -> None:
    with pytest.raises(ShapeError) as refused:
        joint_factors(torch.ones(2, 4, 6), torch.ones(2, 4, 7), rank)
    assert str(refused.value) == f"rank must be at least 1 and at most 4 for heads of 4; got {rank}"


def test_a_factor_narrower_than_a_head_bounds_the_rank() -> None:
    assert most_rank(torch.ones(2, 4, 3), torch.ones(2, 4, 7)) == 3
    assert most_rank(torch.ones(4, 4, 3), torch.ones(2, 4, 7)) == 4  # two query heads stand below each other
    assert most_rank(torch.ones(2, 4, 6), torch.ones(2, 4, 2)) == 2
    with pytest.raises(ShapeError, match="at most 3 for heads of 4; got 4"):
        joint_factors(torch.ones(2, 4, 3), torch.ones(2, 4, 7), 4)


@pytest.mark.parametrize(
    ("left", "right"), [((3, 4, 6), (2, 4, 6)), ((2, 4, 6), (2, 5, 6)), ((4, 6), (2, 4, 6)), ((2, 4, 6), (4, 6))]
)
def test_heads_that_do_not_fit_are_refused(left: tuple[int, ...], right: tuple[int, ...]) -> None:
    expected = f"rank space needs [heads, head, m] and [kv_heads, head, n]; got {list(left)} and {list(right)}"
    with pytest.raises(ShapeError) as refused:
        joint_factors(torch.ones(left), torch.ones(right), 1)
    assert str(refused.value) == expected
    with pytest.raises(ShapeError):
        joint_rank(torch.ones(left), torch.ones(right), 1e-12)


# Weighted by second moments


def _moment(extent: int, rows: int, seed: int) -> Tensor:
    """E[x xᵀ] of rows of very different scales; singular with fewer rows than extents."""
    x = _randn(rows, extent, seed=seed) * torch.logspace(0, -3, extent, dtype=torch.float64)
    return x.t() @ x / rows


def _on_data(shared: Shared, left: Tensor, right: Tensor, roots: tuple[Tensor, Tensor]) -> float:
    """The error of leftᵀ · right between the roots: of scores on pairs of such data."""
    difference = _products(left, right) - _products(shared.left, shared.right)
    return float((roots[0].t() @ difference @ roots[1]).norm())


@LAWS
@given(st.integers(1, 7), st.integers(1, 9), st.integers(0, 1000))
def test_a_root_times_itself_is_the_moment(extent: int, rows: int, seed: int) -> None:
    moment = _moment(extent, rows, seed)
    root = root_of(moment)
    torch.testing.assert_close(root @ root.t(), moment, rtol=1e-10, atol=1e-12)


@LAWS
@given(pairs(), st.integers(1, 6))
def test_with_identities_for_moments_the_cut_is_the_plain_one(pair: tuple[Tensor, Tensor], rank: int) -> None:
    left, right = pair
    rank = min(rank, most_rank(left, right))
    plain = joint_factors(left, right, rank)
    roots = [root_of(torch.eye(factor.shape[2], dtype=torch.float64)) for factor in pair]
    weighted = joint_factors(left, right, rank, *roots)
    torch.testing.assert_close(_products(weighted.left, weighted.right), _products(plain.left, plain.right))
    assert weighted.error == pytest.approx(plain.error, abs=1e-9)


@LAWS
@given(pairs(), st.integers(1, 6), st.integers(1, 12), st.integers(0, 1000))
def test_on_the_data_the_weighted_cut_is_the_best_and_what_it_says(
    pair: tuple[Tensor, Tensor], rank: int, rows: int, seed: int
) -> None:
    left, right = pair
    rank = min(rank, most_rank(left, right))
    roots = (root_of(_moment(left.shape[2], rows, seed)), root_of(_moment(right.shape[2], rows, seed + 1)))
    plain, weighted = joint_factors(left, right, rank), joint_factors(left, right, rank, *roots)
    lost = _on_data(weighted, left, right, roots)
    total = float((roots[0].t() @ _products(left, right) @ roots[1]).norm())
    assert lost <= _on_data(plain, left, right, roots) + 1e-7 * total
    assert weighted.error == pytest.approx(lost / total if total else 0.0, abs=1e-6)


@LAWS
@given(pairs(), st.integers(1, 3), st.integers(0, 1000))
def test_at_full_rank_a_moment_changes_nothing_even_one_that_is_singular(
    pair: tuple[Tensor, Tensor], rows: int, seed: int
) -> None:
    left, right = pair
    roots = [root_of(_moment(factor.shape[2], rows, seed)) for factor in pair]
    shared = joint_factors(left, right, most_rank(left, right), *roots)
    torch.testing.assert_close(_products(shared.left, shared.right), _products(left, right), rtol=1e-11, atol=1e-11)
    assert shared.error == 0.0


def test_one_side_alone_can_be_weighted() -> None:
    left, right, root = _randn(2, 5, 7, seed=0), _randn(2, 5, 6, seed=1), root_of(_moment(6, 40, 2))
    identity = torch.eye(7, dtype=torch.float64)
    one, both = joint_factors(left, right, 2, None, root), joint_factors(left, right, 2, identity, root)
    torch.testing.assert_close(_products(one.left, one.right), _products(both.left, both.right))
