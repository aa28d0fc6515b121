"""Calibrated Monarch factors: never worse than the projection on the inputs they were made for, whatever the inputs."""

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from regraft.errors import ShapeError
from regraft.numerics import lowrank
from regraft.numerics.moments import Moments
from regraft.numerics.monarch import Factors, project
from regraft.numerics.monarch_refit import fit_outputs, sample_error
from regraft.numerics.partition import Partition

LAWS = settings(max_examples=60)


def _randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _moments(x: Tensor) -> Moments:
    moments = Moments(x.shape[-1])
    moments.update(x)
    return moments


def _measured(weight: Tensor, bias: Tensor | None, factors: Factors, x: Tensor) -> float:
    """‖y - ŷ‖ / ‖W x‖ over the rows of x, computed row by row rather than from moments."""
    y = x @ weight.t() + (0 if bias is None else bias)
    z = x @ factors.dense().t() + (0 if factors.bias is None else factors.bias.double())
    total = float((x @ weight.t()).norm())
    return float((y - z).norm()) / total if total > 0 else 0.0


@dataclass(frozen=True)
class Case:
    weight: Tensor
    bias: Tensor | None
    x: Tensor
    cut: Partition
    rank: int


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Layers of all shapes with inputs that are correlated, off-centre, and often of fewer rows than features."""
    in_features, out_features, rows = draw(st.integers(1, 12)), draw(st.integers(1, 12)), draw(st.integers(1, 30))
    in_blocks, out_blocks = draw(st.integers(1, in_features)), draw(st.integers(1, out_features))
    cut = Partition(in_features, out_features, in_blocks, out_blocks, draw(st.booleans()), draw(st.booleans()))
    seed = draw(st.integers(0, 2**20))
    mix = _randn(in_features, in_features, seed=seed + 1) * 10.0 ** _randn(in_features, seed=seed + 4).clamp(-1, 1)
    x = _randn(rows, in_features, seed=seed) @ mix + draw(st.sampled_from([0.0, 1.0, 10.0]))
    bias = _randn(out_features, seed=seed + 3) if draw(st.booleans()) else None
    weight = _randn(out_features, in_features, seed=seed + 2)
    return Case(weight, bias, x, cut, draw(st.integers(1, cut.full_rank)))


@given(case=cases(), ridge=st.sampled_from([0.0, 1e-3, 0.1, 3.0]), centred=st.booleans())
@LAWS
def test_it_is_never_worse_than_the_projection_on_its_own_inputs(case: Case, ridge: float, centred: bool) -> None:
    options = {"ridge": ridge, "centred": centred}
    fitted = fit_outputs(case.weight, case.cut, case.rank, _moments(case.x), case.bias, **options)
    projected = project(case.weight, case.cut, case.rank, case.bias)
    if centred:  # the projection, given the bias that suits it best
        shift = (case.weight - projected.dense()) @ case.x.mean(dim=0)
        bias = shift if case.bias is None else case.bias + shift
        projected = Factors(case.cut, projected.right, projected.left, bias, projected.error)
    worse = _measured(case.weight, case.bias, projected, case.x)
    assert _measured(case.weight, case.bias, fitted, case.x) <= worse * (1 + 1e-6) + 1e-6


def _apart(case: Case) -> float:
    """Error of blocks that are fitted each to its own inputs, for which the best answer is known (LoRD)."""
    cut = case.cut
    inputs = torch.nn.functional.pad(case.x, (0, cut.in_padding))
    shape = (-1, cut.width, cut.in_blocks) if cut.in_strided else (-1, cut.in_blocks, cut.width)
    runs = inputs.reshape(shape).mT if cut.in_strided else inputs.reshape(shape)
    blocks = cut.cut(case.weight).clone()
    for a, row in enumerate(blocks):
        for b, block in enumerate(row):
            own = lowrank.output_projection(block, case.rank, _moments(runs[:, a]), centred=False)
            blocks[a, b] = own.up @ own.down
    total = float((case.x @ case.weight.t()).norm())
    return float((case.x @ (case.weight - cut.join(blocks)).t()).norm()) / total if total > 0 else 0.0


@given(case=cases())
@LAWS
def test_it_is_never_worse_than_blocks_fitted_each_to_its_own_inputs(case: Case) -> None:
    fitted = fit_outputs(case.weight, case.cut, case.rank, _moments(case.x), ridge=0.0, centred=False)
    assert fitted.error <= _apart(case) * (1 + 1e-6) + 1e-6


@pytest.mark.parametrize("seed", range(4))
def test_that_holds_where_it_is_hard_to_beat_for_independent_inputs_of_unlike_scales(seed: int) -> None:
    x = _randn(500, 32, seed=seed + 1) * 10 ** (1.5 * _randn(32, seed=seed + 2))
    case = Case(_randn(32, 32, seed=seed), None, x, Partition(32, 32, 4, 4), 2)
    fitted = fit_outputs(case.weight, case.cut, case.rank, _moments(x), ridge=0.0, centred=False)
    assert fitted.error <= _apart(case)


def test_blocks_make_up_for_what_the_others_leave_over() -> None:
    """Two runs of the same inputs: what counts is the sum of their blocks, which needs less rank than they do."""
    half = _randn(200, 16)
    both = _randn(24, 6, seed=1) @ _randn(6, 16, seed=2)
    first = _randn(24, 16, seed=3)
    weight, x, cut = torch.cat([first, both - first], dim=1), torch.cat([half, half], dim=1), Partition(32, 24, 2, 2)
    projected = project(weight, cut, 3)
    assert fit_outputs(weight, cut, 3, _moments(x)).error < 0.15
    assert _measured(weight, None, projected, x) > 0.4


@given(case=cases(), ridge=st.sampled_from([0.0, 0.1]), centred=st.booleans())
@LAWS
def test_the_error_it_states_is_the_error_that_it_has(case: Case, ridge: float, centred: bool) -> None:
    options = {"ridge": ridge, "centred": centred}
    fitted = fit_outputs(case.weight, case.cut, case.rank, _moments(case.x), case.bias, **options)
    assert fitted.error == pytest.approx(_measured(case.weight, case.bias, fitted, case.x), abs=1e-6)
    assert sample_error(case.weight, fitted, case.x, case.bias) == pytest.approx(fitted.error, abs=1e-6)


@given(case=cases())
@LAWS
def test_blocks_of_full_rank_stay_exact(case: Case) -> None:
    fitted = fit_outputs(case.weight, case.cut, case.cut.full_rank, _moments(case.x), case.bias)
    assert _measured(case.weight, case.bias, fitted, case.x) < 1e-6


@given(case=cases())
@LAWS
def test_the_mean_output_is_kept_when_centred(case: Case) -> None:
    fitted = fit_outputs(case.weight, case.cut, case.rank, _moments(case.x), case.bias)
    assert fitted.bias is not None
    mean = case.x.mean(dim=0)
    wanted = case.weight @ mean + (0 if case.bias is None else case.bias)
    torch.testing.assert_close(fitted.dense() @ mean + fitted.bias, wanted, rtol=1e-7, atol=1e-7)


@given(case=cases())
@LAWS
def test_a_bias_that_is_not_mended_is_passed_through(case: Case) -> None:
    assert fit_outputs(case.weight, case.cut, case.rank, _moments(case.x), case.bias, centred=False).bias is case.bias


@given(case=cases(), seed=st.integers(0, 2**16))
@LAWS
def test_no_other_second_factor_does_better(case: Case, seed: int) -> None:
    """Least squares: from where it stopped, every change of the second factor makes things worse."""
    fitted = fit_outputs(case.weight, case.cut, case.rank, _moments(case.x), case.bias, ridge=0.0, centred=False)
    best = _measured(case.weight, case.bias, fitted, case.x)
    for size in (1e-3, 1e-1):
        left = fitted.left + size * _randn(*fitted.left.shape, seed=seed)
        other = Factors(case.cut, fitted.right, left, fitted.bias, 0.0)
        assert _measured(case.weight, case.bias, other, case.x) >= best - 1e-7


def test_one_block_is_the_calibrated_low_rank_layer() -> None:
    """With one block there is nothing to descend over, and the best answer is known: LoRD."""
    weight, x = _randn(9, 7), _randn(40, 7, seed=1) @ _randn(7, 7, seed=2)
    for centred in (False, True):
        known = lowrank.output_projection(weight, 3, _moments(x), centred=centred)
        fitted = fit_outputs(weight, Partition(7, 9, 1, 1), 3, _moments(x), centred=centred, ridge=0.0)
        assert fitted.error == pytest.approx(known.error, abs=1e-9)


def test_correlated_inputs_make_it_much_better_than_the_projection() -> None:
    weight, cut = _randn(32, 32), Partition(32, 32, 4, 4)
    x = _randn(500, 6, seed=1) @ _randn(6, 32, seed=2) + 0.05 * _randn(500, 32, seed=3)
    unseen = _randn(500, 6, seed=4) @ _randn(6, 32, seed=2) + 0.05 * _randn(500, 32, seed=5)
    fitted, projected = fit_outputs(weight, cut, 2, _moments(x)), project(weight, cut, 2)
    assert _measured(weight, None, fitted, unseen) < 0.4 * _measured(weight, None, projected, unseen)


def test_a_ridge_pulls_towards_the_weight() -> None:
    """With one row of calibration, the weight is all that is known of other inputs."""
    weight, cut, x = _randn(16, 16), Partition(16, 16, 2, 2), _randn(1, 16, seed=1)
    distances = [
        float((weight - fit_outputs(weight, cut, 3, _moments(x), centred=False, ridge=ridge).dense()).norm())
        for ridge in (1e-6, 0.1, 10.0)
    ]
    assert distances == sorted(distances, reverse=True)
    closest = float((weight - project(weight, cut, 3).dense()).norm())
    assert closest <= distances[-1] < 1.02 * closest


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_results_have_the_dtype_of_the_weight(dtype: torch.dtype) -> None:
    weight, bias = _randn(10, 11).to(dtype), _randn(10, seed=2).to(dtype)
    fitted = fit_outputs(weight, Partition(11, 10, 3, 4), 2, _moments(_randn(30, 11, seed=1)), bias)
    assert fitted.bias is not None
    assert {fitted.right.dtype, fitted.left.dtype, fitted.bias.dtype} == {dtype}


def test_moments_that_do_not_fit_are_refused() -> None:
    text = "moments of 4 rows of 5 features do not fit a weight with 6 inputs"
    with pytest.raises(ShapeError, match=text):
        fit_outputs(_randn(8, 6), Partition(6, 8, 2, 2), 1, _moments(_randn(4, 5)))
    with pytest.raises(ShapeError, match="moments of 0 rows of 6 features do not fit"):
        fit_outputs(_randn(8, 6), Partition(6, 8, 2, 2), 1, Moments(6))
    with pytest.raises(ShapeError, match="rank must be at least 1 and at most 3 for 4x3 blocks; got 4"):
        fit_outputs(_randn(8, 6), Partition(6, 8, 2, 2), 4, _moments(_randn(4, 6)))
