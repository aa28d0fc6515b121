"""Low-rank factorizations held to their identities: tails, equivalences, orderings and edge cases."""

from dataclasses import dataclass
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from regraft.errors import ShapeError
from regraft.numerics.lowrank import (
    Factors,
    output_energies,
    output_error,
    output_projection,
    rank_for,
    rank_for_energy,
    sample_error,
    truncated_svd,
    weight_energies,
)
from regraft.numerics.moments import Moments

LAWS = settings(deadline=None, max_examples=60)


def _randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _moments(x: Tensor) -> Moments:
    moments = Moments(x.shape[-1])
    moments.update(x)
    return moments


def _measured(w: Tensor, bias: Tensor | None, factors: Factors, x: Tensor) -> float:
    """‖y - ŷ‖ / ‖W x‖ over the rows of x, computed row by row rather than from moments."""
    y = x @ w.t() + (0 if bias is None else bias)
    z = (x @ factors.down.double().t()) @ factors.up.double().t()
    z = z if factors.bias is None else z + factors.bias.double()
    total = float((x @ w.t()).norm())
    return float((y - z).norm()) / total if total > 0 else 0.0


@dataclass(frozen=True)
class Case:
    """A layer, a rank that it has, and calibration rows."""

    weight: Tensor
    bias: Tensor | None
    x: Tensor
    rank: int


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Layers of all shapes with inputs that are anisotropic, off-centre, and often of fewer rows than features."""
    out_features, in_features, rows = draw(st.integers(1, 9)), draw(st.integers(1, 9)), draw(st.integers(1, 24))
    seed = draw(st.integers(0, 2**20))
    scales = 10.0 ** _randn(in_features, seed=seed + 1)
    x = _randn(rows, in_features, seed=seed) * scales + draw(st.sampled_from([0.0, 1.0, 30.0])) * scales
    if draw(st.booleans()):
        x[:, draw(st.integers(0, in_features - 1))] = 0.0
    weight = _randn(out_features, in_features, seed=seed + 2)
    bias = _randn(out_features, seed=seed + 3) if draw(st.booleans()) else None
    return Case(weight, bias, x, draw(st.integers(1, min(out_features, in_features))))


# Exactness


@given(cases())
@LAWS
def test_full_rank_is_exact_in_float64_for_every_factorization(case: Case) -> None:
    full = min(case.weight.shape)
    moments = _moments(case.x)
    for factors in (
        truncated_svd(case.weight, full),
        output_projection(case.weight, full, moments, centred=False),
        output_projection(case.weight, full, moments, centred=True),
    ):
        assert float((factors.up @ factors.down - case.weight).norm() / case.weight.norm()) < 1e-12
        assert factors.error < 1e-7


@pytest.mark.parametrize("shape", [(12, 7), (7, 12), (8, 8)])
def test_full_rank_is_exact_in_float32_up_to_its_rounding(shape: tuple[int, int]) -> None:
    weight = _randn(*shape, seed=0).float()
    moments = _moments(_randn(40, shape[1], seed=1))
    for factors in (truncated_svd(weight, min(shape)), output_projection(weight, min(shape), moments)):
        assert factors.up.dtype == factors.down.dtype == torch.float32
        assert float((factors.up @ factors.down - weight).norm() / weight.norm()) < 1e-5


def test_a_weight_of_low_rank_is_found_exactly() -> None:
    weight = _randn(10, 3, seed=0) @ _randn(3, 8, seed=1)
    assert truncated_svd(weight, 3).error < 1e-12
    assert output_projection(weight, 3, _moments(_randn(30, 8, seed=2))).error < 1e-7


# Identities


@given(cases())
@LAWS
def test_the_error_of_the_svd_is_its_tail(case: Case) -> None:
    factors = truncated_svd(case.weight, case.rank)
    energies = torch.linalg.svdvals(case.weight).square()
    tail = float(energies[case.rank :].sum() / energies.sum()) ** 0.5
    difference = float((case.weight - factors.up @ factors.down).norm() / case.weight.norm())
    assert factors.error == pytest.approx(tail, abs=1e-12)
    assert difference == pytest.approx(tail, abs=1e-12)


def test_the_svd_splits_its_singular_values_evenly_between_the_factors() -> None:
    factors = truncated_svd(_randn(9, 6, seed=0) * 1e4, 4)
    torch.testing.assert_close(factors.up.norm(dim=0), factors.down.norm(dim=1))


@given(cases(), st.booleans())
@LAWS
def test_the_error_of_the_output_projection_is_its_tail_and_the_measured_one(case: Case, centred: bool) -> None:
    moments = _moments(case.x)
    factors = output_projection(case.weight, case.rank, moments, case.bias, centred=centred)
    mean = case.x.mean(0) if centred else torch.zeros(case.x.shape[1], dtype=torch.float64)
    rows = (case.x - mean) @ case.weight.t()
    eigenvalues = torch.linalg.svdvals(rows).square() / len(rows)
    total = float((case.x @ case.weight.t()).square().sum() / len(case.x))
    tail = (float(eigenvalues[case.rank :].sum()) / total) ** 0.5 if total > 0 else 0.0
    # A difference of moments leaves rounding of 1e-16 of the total, of which the error is the square root.
    assert factors.error == pytest.approx(tail, abs=1e-6)
    assert _measured(case.weight, case.bias, factors, case.x) == pytest.approx(tail, abs=1e-6)


@pytest.mark.parametrize("shape", [(9, 6), (6, 9)])
def test_the_output_projection_is_the_cholesky_whitened_svd(shape: tuple[int, int]) -> None:
    """LoRD, DRONE and SVD-LLM are one approximation: SVD-LLM truncates the SVD of W · L with G = L · Lᵀ."""
    weight = _randn(*shape, seed=0)
    moments = _moments(_randn(50, shape[1], seed=1) * torch.logspace(-1, 1, shape[1], dtype=torch.float64) + 0.5)
    lower = torch.linalg.cholesky(moments.gram)
    u, s, vt = torch.linalg.svd(weight @ lower, full_matrices=False)
    for rank in range(1, min(shape) + 1):
        svd_llm = (u[:, :rank] * s[:rank]) @ torch.linalg.solve_triangular(lower, vt[:rank], upper=False, left=False)
        ours = output_projection(weight, rank, moments, centred=False)
        torch.testing.assert_close(ours.up @ ours.down, svd_llm, rtol=1e-9, atol=1e-9)


@given(cases())
@LAWS
def test_isotropic_inputs_make_the_output_projection_the_plain_svd(case: Case) -> None:
    n = case.weight.shape[1]
    isotropic = Moments(n, rows=n, second=n * torch.eye(n, dtype=torch.float64), first=torch.zeros(n).double())
    ours = output_projection(case.weight, case.rank, isotropic)
    assert ours.error == pytest.approx(truncated_svd(case.weight, case.rank).error, abs=1e-9)


def test_factors_of_the_output_projection_have_orthonormal_columns_up() -> None:
    factors = output_projection(_randn(9, 4, seed=0), 3, _moments(_randn(2, 4, seed=1)))
    torch.testing.assert_close(factors.up.t() @ factors.up, torch.eye(3, dtype=torch.float64))


@given(cases(), st.sampled_from(["svd", "lord", "afm"]))
@LAWS
def test_errors_from_moments_and_from_a_sample_are_the_error_measured_on_the_rows(case: Case, method: str) -> None:
    moments = _moments(case.x)
    factors = _factorize(method, case, moments)
    measured = _measured(case.weight, case.bias, factors, case.x)
    assert output_error(case.weight, factors, moments, case.bias) == pytest.approx(measured, abs=1e-6)
    assert sample_error(case.weight, factors, case.x, case.bias) == pytest.approx(measured, abs=1e-12)


def test_the_error_from_moments_sees_a_bias_that_was_lost_or_changed() -> None:
    weight, bias, x = _randn(5, 4, seed=0), _randn(5, seed=1), _randn(20, 4, seed=2)
    exact = truncated_svd(weight, 4, bias)
    for other in (None, bias + 0.5):
        changed = Factors(exact.down, exact.up, other, 0.0)
        measured = _measured(weight, bias, changed, x)
        assert measured > 0.1
        assert output_error(weight, changed, _moments(x), bias) == pytest.approx(measured, rel=1e-9)
        assert sample_error(weight, changed, x, bias) == pytest.approx(measured, rel=1e-9)
    assert output_error(weight, exact, _moments(x)) > 0.1  # and one that the layer did not have


def _factorize(method: str, case: Case, moments: Moments) -> Factors:
    if method == "svd":
        return truncated_svd(case.weight, case.rank, case.bias)
    return output_projection(case.weight, case.rank, moments, case.bias, centred=method == "afm")


# Orderings


@given(cases())
@LAWS
def test_afm_is_never_worse_than_lord_and_lord_never_worse_than_the_svd(case: Case) -> None:
    moments = _moments(case.x)
    svd, lord, afm = (
        _measured(case.weight, case.bias, _factorize(method, case, moments), case.x)
        for method in ("svd", "lord", "afm")
    )
    assert afm <= lord + 1e-6
    assert lord <= svd + 1e-6


def test_calibration_helps_where_inputs_are_anisotropic() -> None:
    """The ordering above is not an equality: inputs with a few strong directions make it strict."""
    weight = _randn(16, 16, seed=0)
    x = _randn(200, 16, seed=1) * torch.logspace(0, -3, 16, dtype=torch.float64) + 2.0
    case = Case(weight, None, x, 3)
    svd, lord, afm = (
        _measured(weight, None, _factorize(method, case, _moments(x)), x) for method in ("svd", "lord", "afm")
    )
    assert lord < 0.5 * svd
    assert afm < 0.8 * lord


@given(cases(), st.sampled_from(["svd", "lord", "afm"]))
@LAWS
def test_the_error_falls_as_the_rank_grows(case: Case, method: str) -> None:
    moments = _moments(case.x)
    errors = [
        _factorize(method, Case(case.weight, case.bias, case.x, rank), moments).error
        for rank in range(1, min(case.weight.shape) + 1)
    ]
    assert all(later <= earlier + 1e-7 for earlier, later in pairwise(errors))


# Bias


@given(cases())
@LAWS
def test_the_new_bias_keeps_the_mean_output_exact(case: Case) -> None:
    factors = output_projection(case.weight, case.rank, _moments(case.x), case.bias)
    assert factors.bias is not None
    mean = case.x.mean(0)
    wanted = case.weight @ mean + (0 if case.bias is None else case.bias)
    got = factors.up @ (factors.down @ mean) + factors.bias
    torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-9 * float(1 + wanted.abs().max()))


@pytest.mark.parametrize("given_bias", [True, False])
def test_factors_that_do_not_mend_the_bias_pass_the_same_object_through(given_bias: bool) -> None:
    weight, bias = _randn(5, 4, seed=0), _randn(5, seed=1) if given_bias else None
    moments = _moments(_randn(9, 4, seed=2))
    assert truncated_svd(weight, 2, bias).bias is bias
    assert output_projection(weight, 2, moments, bias, centred=False).bias is bias


# Edge cases


@pytest.mark.parametrize("shape", [(4, 6), (6, 4)])
def test_a_zero_weight_has_factors_of_zero_error(shape: tuple[int, int]) -> None:
    weight = torch.zeros(shape)
    moments = _moments(_randn(5, shape[1], seed=0))
    for factors in (truncated_svd(weight, 2), output_projection(weight, 2, moments)):
        assert factors.error == 0.0
        assert torch.equal(factors.up @ factors.down, weight)
    assert output_error(weight, truncated_svd(weight, 2), moments) == 0.0


@pytest.mark.parametrize("shape", [(4, 6), (6, 4)])
def test_zero_inputs_give_finite_factors_of_zero_error(shape: tuple[int, int]) -> None:
    factors = output_projection(_randn(*shape, seed=0), 2, _moments(torch.zeros(5, shape[1])))
    assert factors.error == 0.0
    assert bool(torch.isfinite(factors.up).all() and torch.isfinite(factors.down).all())


@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (5, 1)])
def test_extents_of_one_are_exact_at_their_only_rank(shape: tuple[int, int]) -> None:
    weight = _randn(*shape, seed=0)
    for factors in (truncated_svd(weight, 1), output_projection(weight, 1, _moments(_randn(3, shape[1], seed=1)))):
        assert factors.rank == 1
        torch.testing.assert_close(factors.up @ factors.down, weight)


def test_one_calibration_row_is_reproduced_exactly_at_rank_one() -> None:
    weight, x = _randn(6, 5, seed=0), _randn(1, 5, seed=1)
    for centred in (True, False):
        factors = output_projection(weight, 1, _moments(x), centred=centred)
        assert _measured(weight, None, factors, x) < 1e-7


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_of_16_bits_are_factorized_in_float64(dtype: torch.dtype) -> None:
    weight = _randn(12, 10, seed=0).to(dtype)
    x = _randn(40, 10, seed=1)
    for ours, reference in (
        (truncated_svd(weight, 4), truncated_svd(weight.double(), 4)),
        (output_projection(weight, 4, _moments(x)), output_projection(weight.double(), 4, _moments(x))),
    ):
        assert ours.error == reference.error
        assert ours.up.dtype == ours.down.dtype == dtype
        assert torch.equal(ours.up, reference.up.to(dtype))
        assert torch.equal(ours.down, reference.down.to(dtype))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_weight_bias_and_moments_are_not_changed(dtype: torch.dtype) -> None:
    weight, bias = _randn(6, 5, seed=0).to(dtype), _randn(6, seed=1).to(dtype)
    moments = _moments(_randn(9, 5, seed=2))
    kept = [item.clone() for item in (weight, bias, moments.second, moments.first)]
    truncated_svd(weight, 2, bias)
    factors = output_projection(weight, 2, moments, bias, ridge=0.1)
    output_error(weight, factors, moments, bias)
    for now, before in zip((weight, bias, moments.second, moments.first), kept, strict=True):
        assert torch.equal(now, before)


def test_factors_do_not_share_memory_with_larger_tensors() -> None:
    weight = _randn(40, 30, seed=0)
    for factors in (truncated_svd(weight, 2), output_projection(weight, 2, _moments(_randn(50, 30, seed=1)))):
        assert factors.up.untyped_storage().nbytes() == factors.up.nbytes
        assert factors.down.untyped_storage().nbytes() == factors.down.nbytes


# Ridge


@given(cases())
@LAWS
def test_a_huge_ridge_is_the_plain_svd(case: Case) -> None:
    moments = _moments(case.x)
    if float(moments.covariance.diagonal().mean()) < 1e-12:
        return  # a share of no power at all adds nothing
    ours = output_projection(case.weight, case.rank, moments, ridge=1e12)
    difference = float((case.weight - ours.up @ ours.down).norm() / case.weight.norm())
    assert difference == pytest.approx(truncated_svd(case.weight, case.rank).error, abs=1e-5)


def test_a_ridge_costs_on_the_calibration_rows_and_pays_on_others() -> None:
    weight = _randn(24, 24, seed=0)
    population = _randn(2000, 24, seed=1) @ torch.diag(torch.logspace(0, -1, 24, dtype=torch.float64))
    seen, unseen = population[:16], population[16:]
    plain = output_projection(weight, 8, _moments(seen))
    ridged = output_projection(weight, 8, _moments(seen), ridge=0.1)
    assert plain.error <= ridged.error
    assert _measured(weight, None, ridged, unseen) < _measured(weight, None, plain, unseen)


@given(cases(), st.sampled_from([0.01, 0.1, 1.0]), st.booleans())
@LAWS
def test_with_a_ridge_the_error_is_still_the_one_on_the_calibration_rows(
    case: Case, ridge: float, centred: bool
) -> None:
    factors = output_projection(case.weight, case.rank, _moments(case.x), case.bias, centred=centred, ridge=ridge)
    assert factors.error == pytest.approx(_measured(case.weight, case.bias, factors, case.x), abs=1e-6)


# Ranks


@given(cases())
@LAWS
def test_energies_are_squared_singular_values_of_the_weight_or_of_the_outputs(case: Case) -> None:
    torch.testing.assert_close(weight_energies(case.weight), torch.linalg.svdvals(case.weight).square())
    y = case.x @ case.weight.t()
    for centred, rows in ((False, y), (True, y - y.mean(0))):
        energies = output_energies(case.weight, _moments(case.x), centred=centred)
        wanted = torch.zeros(min(case.weight.shape), dtype=torch.float64)
        squared = torch.linalg.svdvals(rows)[: len(wanted)].square() / len(rows)
        wanted[: len(squared)] = squared
        power = float(y.square().sum()) / len(y)
        torch.testing.assert_close(energies, wanted, rtol=1e-6, atol=1e-11 * power)


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=12), st.floats(0.001, 0.999))
@LAWS
def test_the_rank_for_an_energy_is_the_smallest_that_holds_it(energies: list[float], energy: float) -> None:
    ordered = torch.tensor(sorted(energies, reverse=True), dtype=torch.float64)
    rank = rank_for_energy(ordered, energy)
    total = float(ordered.sum())
    assert 1 <= rank <= len(ordered)
    assert float(ordered[:rank].sum()) >= (energy - 1e-9) * total
    assert rank == 1 or float(ordered[: rank - 1].sum()) < (energy + 1e-9) * total


def test_the_rank_for_an_energy_of_a_known_spectrum() -> None:
    spectrum = torch.tensor([8.0, 1.0, 1.0], dtype=torch.float64)
    assert [rank_for_energy(spectrum, energy) for energy in (0.5, 0.8, 0.85, 0.9, 0.95)] == [1, 1, 2, 2, 3]
    assert rank_for_energy(torch.zeros(4), 0.9) == 1


@given(st.integers(1, 4096), st.integers(1, 4096), st.floats(0.001, 0.999))
@LAWS
def test_the_rank_for_a_share_is_the_largest_that_keeps_it(out_features: int, in_features: int, keep: float) -> None:
    rank, width, dense = (
        rank_for(out_features, in_features, keep),
        out_features + in_features,
        out_features * in_features,
    )
    assert rank * width <= keep * dense * (1 + 1e-9)
    assert (rank + 1) * width > keep * dense * (1 - 1e-9)


@given(st.integers(1, 4096), st.integers(1, 4096), st.integers(1, 4096))
@LAWS
def test_the_share_of_a_rank_gives_that_rank_back(out_features: int, in_features: int, rank: int) -> None:
    keep = rank * (out_features + in_features) / (out_features * in_features)
    assert rank_for(out_features, in_features, keep) == rank


@pytest.mark.parametrize("rank", [0, -1, 5])
def test_a_rank_that_the_weight_does_not_have_is_refused_and_named(rank: int) -> None:
    wanted = f"rank must be at least 1 and at most 4 for a 6x4 weight; got {rank}"
    with pytest.raises(ShapeError) as caught:
        truncated_svd(torch.zeros(6, 4), rank)
    assert str(caught.value) == wanted
    with pytest.raises(ShapeError) as caught:
        output_projection(torch.zeros(6, 4), rank, _moments(torch.zeros(3, 4)))
    assert str(caught.value) == wanted


def test_a_weight_that_is_no_matrix_is_refused() -> None:
    with pytest.raises(ShapeError) as caught:
        truncated_svd(torch.zeros(2, 3, 4), 1)
    assert str(caught.value) == "a weight to factorize must be [out, in]; got [2, 3, 4]"


def test_moments_that_do_not_fit_the_weight_are_refused() -> None:
    with pytest.raises(ShapeError) as caught:
        output_projection(torch.zeros(6, 4), 1, _moments(torch.zeros(3, 5)))
    assert str(caught.value) == "moments of 3 rows of 5 features do not fit a weight with 4 inputs"
    with pytest.raises(ShapeError) as caught:
        output_projection(torch.zeros(6, 4), 1, Moments(4))
    assert str(caught.value) == "moments of 0 rows of 4 features do not fit a weight with 4 inputs"
