"""Int8 layers held to their laws: bounds, limits, outliers, zero rows, straight-through slopes, awkward extents."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from regraft.errors import ShapeError
from regraft.graph.symbols import bind
from regraft.graph.types import TensorType, type_of
from regraft.numerics.int8 import quantize_rows
from regraft.ops import Example, Op, evaluate, int8_linear, int8_outlier_linear, int8_topk_linear

OPS = (int8_linear.op, int8_outlier_linear.op, int8_topk_linear.op)
EXAMPLES = [pytest.param(op, example, id=f"{op.name}-{example.name}") for op in OPS for example in op.examples]


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rounded(x: Tensor, per_row: int) -> tuple[Tensor, Tensor]:
    """x as the layer sees it, and the step of every row: the formulas of the op's page, written out."""
    rows = x.reshape(-1, x.shape[-1])
    size = torch.ones(len(rows), 1, dtype=x.dtype)
    if per_row:
        size = torch.maximum(rows.amax(1, keepdim=True), -rows.amin(1, keepdim=True) * 127 / 128)
        size = torch.where(size == 0, 1.0, size)
    even = rows / size
    low, high = min(float(even.min()), 0.0), max(float(even.max()), 0.0)
    step = (high - low) / 255 or 1.0
    zero = round(-low / step)
    codes = torch.clamp(torch.round(even / step) + zero, 0, 255)
    return ((codes - zero) * step * size).reshape(x.shape), step * size


def plain(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, per_row: int = 1) -> Tensor:
    found = quantize_rows(weight)
    tensors = {"x": x, "weight": found.codes, "scale": found.scale, "bias": bias}
    return evaluate(int8_linear.op, tensors, {"per_row": per_row})


def apart(x: Tensor, weight: Tensor, outliers: list[int], bias: Tensor | None = None, *, per_row: int = 1) -> Tensor:
    """The layer with these columns in floating point."""
    places = torch.tensor(outliers)
    inliers = torch.ones(x.shape[-1], dtype=torch.bool)
    inliers[places] = False
    found = quantize_rows(weight, places)
    tensors = {"x": x, "weight": found.codes, "scale": found.scale, "bias": bias}
    tensors |= {"inliers": inliers, "outliers": places, "outlier_weight": weight[:, places]}
    return evaluate(int8_outlier_linear.op, tensors, {"per_row": per_row})


def largest(x: Tensor, weight: Tensor, columns: int, threshold: float, *, per_row: int = 1) -> Tensor:
    found = quantize_rows(weight)
    attributes = {"columns": columns, "threshold": threshold, "per_row": per_row}
    return evaluate(int8_topk_linear.op, {"x": x, "weight": found.codes, "scale": found.scale}, attributes)


def relative(found: Tensor, wanted: Tensor) -> float:
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())


# Formulas and bounds


@st.composite
def layers(draw: st.DrawFn) -> tuple[Tensor, Tensor, int]:
    """Layers of extents that are prime, one, or no multiple of anything; inputs of uneven sizes and signs."""
    extents = st.sampled_from([1, 2, 3, 5, 7, 13, 17, 31, 33, 65])
    rows, inputs, outputs, seed = draw(st.integers(1, 7)), draw(extents), draw(extents), draw(st.integers(0, 2**20))
    x = normal(rows, inputs, seed=seed) * 10.0 ** normal(rows, 1, seed=seed + 1)
    x = {"any": x, "positive": x.abs(), "negative": -x.abs()}[draw(st.sampled_from(["any", "positive", "negative"]))]
    if draw(st.booleans()):
        x[draw(st.integers(0, rows - 1))] = 0
    return x, normal(outputs, inputs, seed=seed + 2), draw(st.sampled_from([0, 1]))


@given(layers())
@settings(deadline=None, max_examples=150)
def test_it_computes_its_formula_for_any_extents(layer: tuple[Tensor, Tensor, int]) -> None:
    x, weight, per_row = layer
    wanted = rounded(x, per_row)[0] @ quantize_rows(weight).dequantize().t()
    scale = float(wanted.abs().max()) or 1.0
    torch.testing.assert_close(plain(x, weight, per_row=per_row), wanted, rtol=1e-9, atol=1e-9 * scale)


@given(layers())
@settings(deadline=None, max_examples=150)
def test_a_result_is_within_a_step_of_the_activations_and_half_a_step_of_the_weights(
    layer: tuple[Tensor, Tensor, int],
) -> None:
    x, weight, per_row = layer
    found = quantize_rows(weight)
    _, step = rounded(x, per_row)
    of_x = step * found.dequantize().abs().sum(1)
    of_weight = found.scale / 2 * x.abs().sum(1, keepdim=True)
    off = (plain(x, weight, per_row=per_row) - x @ weight.t()).abs()
    assert bool((off <= (of_x + of_weight) * (1 + 1e-9) + 1e-12).all())


def test_rows_that_reach_both_ends_of_the_range_are_within_half_a_step() -> None:
    x = normal(64, 33, seed=0)
    seen, step = rounded(x, 1)
    assert bool(((seen - x).abs() <= step * (0.5 + 1e-9)).all())


@pytest.mark.parametrize("per_row", [0, 1])
def test_the_mean_square_error_is_that_of_uniform_rounding(per_row: int) -> None:
    x, weight = normal(128, 768, seed=0), normal(192, 768, seed=1)
    found = quantize_rows(weight)
    _, step = rounded(x, per_row)
    variance = step.square() * weight.square().sum(1) / 12 + found.scale.square() * x.square().sum(1, keepdim=True) / 12
    measured = (plain(x, weight, per_row=per_row) - x @ weight.t()).square()
    assert float(measured.mean().sqrt()) == pytest.approx(float(variance.mean().sqrt()), rel=0.05)


def test_one_step_a_row_is_finer_where_rows_differ_in_size() -> None:
    x = normal(64, 96, seed=0) * torch.logspace(-2, 2, 64, dtype=torch.float64)[:, None]
    weight = normal(32, 96, seed=1)
    wanted = x @ weight.t()
    worst = [
        float(((plain(x, weight, per_row=per_row) - wanted).norm(dim=1) / wanted.norm(dim=1)).max())
        for per_row in (0, 1)
    ]
    assert worst[1] < 0.03
    assert worst[0] > 0.5


def test_scaling_rows_by_powers_of_two_scales_their_results() -> None:
    x, weight = normal(5, 17, seed=0), normal(9, 17, seed=1)
    factors = 2.0 ** torch.tensor([[-9.0], [0.0], [3.0], [14.0], [-2.0]], dtype=torch.float64)
    assert torch.equal(plain(x * factors, weight), plain(x, weight) * factors)


def test_of_a_single_row_both_kinds_of_steps_are_the_same() -> None:
    x, weight = normal(1, 65, seed=0), normal(7, 65, seed=1)
    torch.testing.assert_close(plain(x, weight, per_row=1), plain(x, weight, per_row=0), rtol=1e-12, atol=1e-12)


# Limits


@pytest.mark.parametrize("per_row", [0, 1])
@pytest.mark.parametrize("extents", [(5, 7, 4), (3, 1, 1), (1, 65, 31), (4, 130, 67)])
def test_with_every_column_an_outlier_it_is_the_dense_layer(extents: tuple[int, int, int], per_row: int) -> None:
    rows, inputs, outputs = extents
    x, weight, bias = normal(rows, inputs, seed=0), normal(outputs, inputs, seed=1), normal(outputs, seed=2)
    found = apart(x, weight, list(range(inputs)), bias, per_row=per_row)
    torch.testing.assert_close(found, x @ weight.t() + bias, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("per_row", [0, 1])
def test_when_no_column_reaches_the_threshold_it_is_the_plain_layer(per_row: int) -> None:
    x, weight = normal(6, 33, seed=0), normal(9, 33, seed=1)
    assert torch.equal(largest(x, weight, 4, 1e6, per_row=per_row), plain(x, weight, per_row=per_row))


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
@pytest.mark.parametrize("per_row", [0, 1])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_a_row_of_zeros_gives_the_bias(op: Op, per_row: int, dtype: torch.dtype) -> None:
    (example,) = (item for item in op.examples if item.name in ("row by row", "some reach it"))
    tensors = example.tensors(dtype)
    tensors["x"][1, 2] = 0
    attributes = {**(example.attributes or {}), "per_row": per_row}
    assert torch.equal(evaluate(op, tensors, attributes)[1, 2], tensors["bias"])
    found = evaluate(op, {**tensors, "x": torch.zeros_like(tensors["x"])}, attributes)
    assert torch.equal(found, tensors["bias"].expand_as(found))


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_no_rows_give_no_rows(op: Op) -> None:
    for example in op.examples:
        tensors = example.tensors()
        tensors["x"] = tensors["x"][:0]
        found = evaluate(op, tensors, example.attributes or {})
        assert found.shape == (0, *tensors["x"].shape[1:-1], tensors["weight"].shape[0])


# Outliers


def planted() -> tuple[Tensor, Tensor]:
    """The methods page's regression test: 3 of 1024 columns are 40 times as large as the others."""
    x = normal(64, 1024, seed=0)
    x[:, [17, 400, 1000]] *= 40
    return x, normal(256, 1024, seed=1)


def test_planted_outliers_cost_the_plain_layer_ten_times_what_they_cost_the_decomposed_one() -> None:
    x, weight = planted()
    wanted = x @ weight.t()
    assert relative(plain(x, weight), wanted) == pytest.approx(0.056, rel=0.1)
    assert relative(apart(x, weight, [17, 400, 1000]), wanted) < 0.006
    assert relative(largest(x, weight, 8, 6.0), wanted) < 0.0095  # 0.0089 with weights restored from int8


def test_outliers_that_fit_are_those_of_the_published_method() -> None:
    x, weight = planted()
    quantized = quantize_rows(weight).dequantize()
    reaches = (x.abs() >= 6.0).any(dim=0)
    assert reaches.sum() == 3
    wanted = rounded(x * ~reaches, 1)[0] @ quantized.t() + x[:, reaches] @ quantized[:, reaches].t()
    for columns in (3, 4, 32):
        torch.testing.assert_close(largest(x, weight, columns, 6.0), wanted, rtol=1e-10, atol=1e-10)


def test_of_more_outliers_than_fit_the_largest_are_taken() -> None:
    x, weight = planted()
    x[:, 400] *= 2
    wanted = x @ weight.t()
    errors = [relative(largest(x, weight, columns, 6.0), wanted) for columns in (1, 2, 3)]
    assert errors[0] > errors[1] > 3 * errors[2]
    quantized = quantize_rows(weight).dequantize()
    rest = x.clone()
    rest[:, 400] = 0
    wanted = rounded(rest, 1)[0] @ quantized.t() + x[:, 400:401] @ quantized[:, 400:401].t()
    torch.testing.assert_close(largest(x, weight, 1, 6.0), wanted, rtol=1e-10, atol=1e-10)


def test_a_threshold_counts_as_reached_and_zero_always_takes_the_largest() -> None:
    x, weight = normal(6, 33, seed=0), normal(9, 33, seed=1)
    top = float(x.abs().max())
    assert not torch.equal(largest(x, weight, 1, top), plain(x, weight))
    assert torch.equal(largest(x, weight, 1, top * 1.0001), plain(x, weight))
    assert torch.equal(largest(x, weight, 1, 0.0), largest(x, weight, 1, top))


# Types and derivatives


@pytest.mark.parametrize(("op", "example"), EXAMPLES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float16, 1e-3), (torch.bfloat16, 6e-3)])
def test_shorter_types_add_their_own_rounding_only(
    op: Op, example: Example, dtype: torch.dtype, tolerance: float
) -> None:
    tensors = example.tensors(dtype)
    exact = {name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    found = evaluate(op, tensors, example.attributes or {})
    assert found.dtype == dtype
    assert relative(found, evaluate(op, exact, example.attributes or {})) < tolerance


def test_sums_that_half_precision_cannot_hold_do_not_overflow() -> None:
    x, weight = torch.full((2, 700), 0.25, dtype=torch.float16), torch.full((3, 700), 0.25)
    found = plain(x, weight.half())
    torch.testing.assert_close(found.float(), torch.full((2, 3), 700 / 16), rtol=1e-2, atol=0)


@pytest.mark.parametrize("per_row", [0, 1])
def test_gradients_are_those_of_the_layer_with_restored_weights(per_row: int) -> None:
    x, weight, slope = normal(5, 17, seed=0), normal(9, 17, seed=1), normal(5, 9, seed=2)
    found = quantize_rows(weight)
    x.requires_grad_()
    found.scale.requires_grad_()
    tensors = {"x": x, "weight": found.codes, "scale": found.scale, "bias": None}
    (evaluate(int8_linear.op, tensors, {"per_row": per_row}) * slope).sum().backward()
    torch.testing.assert_close(x.grad, slope @ found.dequantize().detach())
    torch.testing.assert_close(found.scale.grad, (slope * (x.detach() @ found.codes.double().t())).sum(0))


def test_gradients_reach_outliers_and_their_weights() -> None:
    x, weight, slope = normal(5, 17, seed=0), normal(9, 17, seed=1), normal(5, 9, seed=2)
    places = torch.tensor([3, 11])
    inliers = torch.ones(17, dtype=torch.bool)
    inliers[places] = False
    found, kept = quantize_rows(weight, places), weight[:, places].clone().requires_grad_()
    x.requires_grad_()
    tensors = {"x": x, "weight": found.codes, "scale": found.scale, "bias": None}
    tensors |= {"inliers": inliers, "outliers": places, "outlier_weight": kept}
    (evaluate(int8_outlier_linear.op, tensors, {"per_row": 1}) * slope).sum().backward()
    restored = found.dequantize()
    restored[:, places] = weight[:, places]
    torch.testing.assert_close(x.grad, slope @ restored)
    torch.testing.assert_close(kept.grad, slope.t() @ x.detach()[:, places])


def test_gradients_reach_columns_that_were_found_in_the_call() -> None:
    x, weight, slope = normal(5, 17, seed=0), normal(9, 17, seed=1), normal(5, 9, seed=2)
    x[:, 4] *= 50
    x.requires_grad_()
    (largest(x, weight, 2, 6.0) * slope).sum().backward()
    torch.testing.assert_close(x.grad, slope @ quantize_rows(weight).dequantize())


def test_values_are_the_same_with_and_without_gradients() -> None:
    x, weight = normal(5, 17, seed=0), normal(9, 17, seed=1)
    with torch.no_grad():
        without = plain(x, weight)
    assert torch.equal(plain(x.requires_grad_(), weight).detach(), without)


# Declarations


X, W, S, B = (TensorType("float32", shape) for shape in (("batch", 7), (4, 7), (4,), (4,)))
MASK, FEW, KEPT = TensorType("bool", (7,)), TensorType("int64", (2,)), TensorType("float32", (4, 2))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"weight": TensorType("int8", (7,))}, "int8_linear: weight must be 2-D; got int8[7]"),
        ({"scale": TensorType("float32", (7,))}, "int8_linear: scale must be [4]; got float32[7]"),
        ({"bias": TensorType("float32", (1, 4))}, "int8_linear: bias must be [4]; got float32[1, 4]"),
        ({"x": TensorType("float32", ())}, "int8_linear: x must have at least one dim; got a scalar"),
        ({"x": TensorType("float32", (2, 6))}, "int8_linear: x ends in 6, weight takes 7"),
        (
            {"weight": TensorType("int8", (4, 70000)), "x": TensorType("float32")},
            "int8_linear: weight must have at most 66311 columns; got 70000",
        ),
    ],
)
def test_operands_that_do_not_fit_are_refused(change: dict[str, TensorType], text: str) -> None:
    with pytest.raises(ShapeError) as caught:
        int8_linear.infer(**{"x": X, "weight": W, "scale": S, "bias": B, **change}, per_row=1)
    assert str(caught.value) == text


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"inliers": FEW}, "int8_outlier_linear: inliers must be [7]; got int64[2]"),
        ({"outliers": KEPT}, "int8_outlier_linear: outliers must be 1-D; got float32[4, 2]"),
        ({"outlier_weight": W}, "int8_outlier_linear: outlier_weight must be [4, 2]; got float32[4, 7]"),
        ({"scale": FEW}, "int8_outlier_linear: scale must be [4]; got int64[2]"),
    ],
)
def test_outliers_that_do_not_fit_are_refused(change: dict[str, TensorType], text: str) -> None:
    operands = {"x": X, "weight": W, "scale": S, "inliers": MASK, "outliers": FEW, "outlier_weight": KEPT, **change}
    with pytest.raises(ShapeError) as caught:
        int8_outlier_linear.infer(**operands, per_row=1)
    assert str(caught.value) == text


@pytest.mark.parametrize("columns", [0, 8])
def test_a_number_of_columns_out_of_range_is_refused(columns: int) -> None:
    with pytest.raises(ShapeError) as caught:
        int8_topk_linear.infer(X, W, S, columns=columns, threshold=6.0, per_row=1)
    assert str(caught.value) == f"int8_topk_linear: columns must be at least 1 and at most 7; got {columns}"


def test_costs_are_those_of_the_dense_layer_and_of_the_columns_apart() -> None:
    x, weight = TensorType("float32", ("rows", 384)), TensorType("int8", (1536, 384))
    scale = TensorType("float32", (1536,))
    dense = 384 * 1536
    assert bind(int8_linear.cost(x, weight, scale, per_row=1).macs, {"rows": 10}) == 10 * dense
    assert bind(int8_linear.cost(x, weight, scale, per_row=1).transient_bytes, {"rows": 10}) == 10 * 1536 * 4
    kept = TensorType("float32", (1536, 4))
    found = int8_outlier_linear.cost(x, weight, scale, MASK, FEW, kept, per_row=1)
    assert bind(found.macs, {"rows": 10}) == 10 * (dense + 4 * 1536)
    found = int8_topk_linear.cost(x, weight, scale, columns=8, threshold=6.0, per_row=1)
    assert bind(found.macs, {"rows": 10}) == 10 * (dense + 8 * 1536)


@pytest.mark.parametrize(("op", "example"), EXAMPLES)
def test_the_inferred_type_is_that_of_the_result(op: Op, example: Example) -> None:
    tensors, attributes = example.tensors(torch.float32), example.attributes or {}
    types = {name: type_of(tensor) for name, tensor in tensors.items()}
    assert op.infer(**types, **attributes) == type_of(evaluate(op, tensors, attributes))
