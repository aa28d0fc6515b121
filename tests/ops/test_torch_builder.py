"""The core operations on torch tensors, where their meaning is more than one torch call: integers, rows, layouts."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from regraft.errors import ShapeError
from regraft.ops import TorchBuilder

b = TorchBuilder()


@given(
    values=st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=20),
    scale=st.sampled_from([1.0, 1e-3]),
)
@settings(deadline=None, max_examples=80)
def test_dynamic_quantization_is_exact_to_a_step_and_keeps_zero(values: list[float], scale: float) -> None:
    x = torch.tensor(values, dtype=torch.float64) * scale
    codes, step, zero = b.dynamic_quantize(x)
    assert (codes.dtype, zero.dtype, step.dtype) == (torch.uint8, torch.uint8, x.dtype)
    restored = (codes.double() - zero.double()) * step
    # Half a step from rounding x, and as much again from rounding the zero point, at the two ends of the range.
    assert float((restored - x).abs().max()) <= float(step) * 1.001
    assert bool((restored[x == 0] == 0).all())


def test_dynamic_quantization_of_zeros_gives_zeros() -> None:
    codes, step, zero = b.dynamic_quantize(torch.zeros(3))
    assert codes.tolist() == [0, 0, 0]
    assert (float(step), int(zero)) == (1.0, 0)


def test_integer_products_are_exact_in_int32() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (2, 5, 300), generator=generator).to(torch.uint8)
    weight = torch.randint(-128, 128, (7, 300), generator=generator).to(torch.int8)
    y = b.linear_integer(x, weight, torch.tensor(131, dtype=torch.uint8))
    assert y.dtype == torch.int32
    assert torch.equal(y.long(), (x.long() - 131) @ weight.long().t())


@pytest.mark.parametrize(
    ("shape", "wanted"), [((0, -1), (2, 12)), ((0, 0, 2, 2), (2, 3, 2, 2)), ((-1,), (24,)), ((6, 0, -1), (6, 3, 4))]
)
def test_a_zero_in_a_new_shape_keeps_the_extent_at_its_place(shape: tuple[int, ...], wanted: tuple[int, ...]) -> None:
    x = torch.arange(24).reshape(2, 3, 4) if shape[0] != 6 else torch.arange(72).reshape(2, 3, 12)
    assert b.reshape(x, shape).shape == wanted
    assert torch.equal(b.reshape(x, shape).flatten(), x.flatten())


@given(st.lists(st.integers(0, 3), max_size=3))
@settings(deadline=None, max_examples=30)
def test_rows_go_back_to_the_leading_dims_that_they_came_from(lead: list[int]) -> None:
    x = torch.randn(*lead, 5)
    rows = b.as_rows(x)
    assert rows.shape == (torch.Size(lead).numel(), 5)
    assert torch.equal(b.like_rows_of(rows, x), x)
    assert b.like_rows_of(rows[:, :2], x).shape == (*lead, 2)


def test_reductions_keep_the_reduced_dim() -> None:
    x = torch.randn(2, 3, 4)
    for reduce in (b.reduce_sum, b.reduce_mean, b.reduce_max, b.reduce_min):
        assert reduce(x, -1).shape == (2, 3, 1)
        assert reduce(x, 0).shape == (1, 3, 4)


def test_slices_take_axes_from_the_end_and_leave_out_their_stop() -> None:
    x = torch.arange(12).reshape(3, 4)
    assert torch.equal(b.slice(x, -1, 1, 3), x[:, 1:3])
    assert torch.equal(b.slice(x, 0, 2, 3), x[2:3])


def test_the_largest_come_in_descending_order_with_their_places() -> None:
    values, places = b.top_k(torch.tensor([[1.0, 9.0, 4.0], [7.0, 2.0, 8.0]]), 2)
    assert values.tolist() == [[9.0, 4.0], [8.0, 7.0]]
    assert places.tolist() == [[1, 2], [2, 0]]


def test_halves_round_to_the_even_neighbour() -> None:
    assert b.round(torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5])).tolist() == [0.0, 2.0, 2.0, -0.0, -2.0]


def test_padding_appends_zeros_and_gathering_picks_along_an_axis() -> None:
    x = torch.arange(6.0).reshape(2, 3)
    assert b.pad_last(x, 2).tolist() == [[0, 1, 2, 0, 0], [3, 4, 5, 0, 0]]
    assert b.gather(x, torch.tensor([2, 0]), 1).tolist() == [[2, 0], [5, 3]]


def test_constants_have_the_type_that_is_asked_for() -> None:
    assert b.scalar(0.1, torch.zeros(2, dtype=torch.float64)).item() == 0.1
    assert b.scalar(2.0, torch.zeros(2, dtype=torch.bfloat16)).dtype == torch.bfloat16
    assert b.table([1, 2], "int64").tolist() == [1, 2]
    assert b.cast(torch.tensor([1.9, -1.9]), "int32").tolist() == [1, -1]


def test_no_numbers_have_no_codes_and_any_step() -> None:
    codes, step, zero = b.dynamic_quantize(torch.zeros(0, 3))
    assert (codes.shape, codes.dtype, float(step), int(zero)) == ((0, 3), torch.uint8, 1.0, 0)


def test_widening_leaves_single_and_double_precision_as_they_are() -> None:
    wide = {torch.float16: torch.float32, torch.bfloat16: torch.float32}
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        assert b.widen(torch.ones(2, dtype=dtype)).dtype == wide.get(dtype, dtype)


def test_straight_through_has_the_value_of_one_and_the_slope_of_the_other() -> None:
    x = torch.tensor([0.4, 1.6], requires_grad=True)
    y = b.straight_through(b.round(x), lambda: 3 * x)
    y.sum().backward()
    assert y.tolist() == [0.0, 2.0]
    assert x.grad is not None
    assert x.grad.tolist() == [3.0, 3.0]


def test_without_gradients_the_smooth_form_is_not_even_computed() -> None:
    def fail() -> torch.Tensor:
        raise AssertionError("not needed")

    with torch.no_grad():
        assert b.straight_through(torch.ones(1), fail).tolist() == [1.0]


def test_scattering_writes_at_places_of_the_last_dim_and_leaves_its_operand() -> None:
    x = torch.zeros(2, 4)
    found = b.scatter(x, torch.tensor([[3, 0], [1, 2]]), torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    assert found.tolist() == [[2, 0, 0, 1], [0, 3, 4, 0]]
    assert not x.any()


def test_the_extremum_of_no_numbers_is_the_neutral_one() -> None:
    x = torch.zeros(2, 0, 3)
    assert b.reduce_max(x, 1).tolist() == [[[-torch.inf] * 3]] * 2
    assert b.reduce_min(x, -2).tolist() == [[[torch.inf] * 3]] * 2


def test_a_sum_that_is_given_up_is_written_over_and_keeps_its_derivatives() -> None:
    operands = [torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in ((3, 5), (4, 5), (4,))]

    def program(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        total = b.linear(x, weight)
        return b.add_to(b.accumulate(total, b.tanh(x), weight), bias)

    x, weight, bias = operands
    torch.testing.assert_close(program(x, weight, bias), (x + x.tanh()) @ weight.t() + bias)
    assert torch.autograd.gradcheck(program, operands)
    with torch.no_grad():
        total = b.linear(x, weight)
        assert b.accumulate(total, x, weight) is total
        assert b.add_to(total, bias) is total


def test_sums_of_mixed_types_are_made_anew() -> None:
    total, x, weight = torch.ones(3, 4, dtype=torch.bfloat16), torch.ones(3, 5), torch.ones(4, 5)
    assert torch.equal(b.accumulate(total, x, weight), torch.full((3, 4), 6.0))
    assert torch.equal(b.add_to(total, torch.ones(3, 4)), torch.full((3, 4), 2.0))
    assert torch.equal(total, torch.ones(3, 4, dtype=torch.bfloat16))


@pytest.mark.parametrize(("extent", "count", "parts"), [(7, 3, [3, 3, 1]), (6, 3, [2, 2, 2]), (5, 1, [5]), (1, 1, [1])])
def test_parts_are_of_one_extent_but_the_last(extent: int, count: int, parts: list[int]) -> None:
    pieces = b.split(torch.arange(2 * extent).reshape(2, extent), 1, count)
    assert [piece.shape[1] for piece in pieces] == parts
    assert torch.equal(torch.cat(list(pieces), 1), torch.arange(2 * extent).reshape(2, extent))


def test_more_parts_than_an_extent_has_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"^an extent of 5 has no 4 parts of 2$"):
        b.split(torch.zeros(5), 0, 4)
