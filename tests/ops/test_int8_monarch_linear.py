"""The ops int8_monarch_linear and shift_monarch_linear: laws, bounds, derivatives, refusals and cost."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from regraft.errors import ShapeError
from regraft.graph.symbols import dim_expr
from regraft.graph.types import TensorType, type_of
from regraft.numerics.int8 import quantize_rows
from regraft.numerics.monarch import Factors
from regraft.numerics.partition import Partition
from regraft.numerics.power_of_two import pack
from regraft.numerics.power_of_two_fit import quantize_rows as quantize_powers
from regraft.ops import evaluate, get_op
from regraft.ops.monarch_linear import layer_attributes

INT8, SHIFT = get_op("int8_monarch_linear"), get_op("shift_monarch_linear")
MONARCH, DENSE = get_op("monarch_linear"), get_op("int8_linear")


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rows_of(stack: Tensor) -> Tensor:
    """A row for every column of every block."""
    return stack.transpose(1, 2).reshape(-1, stack.shape[1])


def quantized(right: Tensor, left: Tensor) -> dict[str, Tensor]:
    """Both stacks in 8 bits."""
    found: dict[str, Tensor] = {}
    for name, stack in (("right", right), ("left", left)):
        blocks, inputs, outputs = stack.shape
        codes = quantize_rows(rows_of(stack))
        found[name] = codes.codes.reshape(blocks, outputs, inputs).transpose(1, 2)
        found[f"{name}_scale"] = codes.scale.reshape(blocks, 1, outputs)
    return found


def factors(cut: Partition, rank: int, seed: int) -> tuple[Tensor, Tensor]:
    right = normal(cut.in_blocks, cut.width, cut.out_blocks * rank, seed=seed)
    return right, normal(cut.out_blocks, cut.in_blocks * rank, cut.height, seed=seed + 1)


def attributes(cut: Partition, rank: int, per_row: int) -> dict[str, Any]:
    return {"per_row": per_row, **layer_attributes(cut, rank)}


@st.composite
def layers(draw: st.DrawFn) -> tuple[Partition, int, Tensor, int]:
    """Layers of extents that are prime, one, or no multiple of anything, in any number of blocks; uneven inputs."""
    extents = st.sampled_from([1, 2, 3, 5, 7, 13, 17, 31, 33])
    inputs, outputs = draw(extents), draw(extents)
    counts = draw(st.integers(1, min(inputs, 4))), draw(st.integers(1, min(outputs, 4)))
    cut = Partition(inputs, outputs, *counts, draw(st.booleans()), draw(st.booleans()))
    rows, seed = draw(st.integers(1, 5)), draw(st.integers(0, 2**20))
    x = normal(rows, inputs, seed=seed) * 10.0 ** normal(rows, 1, seed=seed + 1)
    return cut, draw(st.integers(1, min(cut.full_rank, 3))), x, draw(st.sampled_from([0, 1]))


def by_runs(cut: Partition, x: Tensor) -> Tensor:
    return torch.stack([cut.runs(row).reshape(-1) for row in x])


def by_groups(cut: Partition, rank: int, right: Tensor) -> Tensor:
    """The first stack as one matrix, from inputs in order of runs to h in order of groups."""
    rows = torch.block_diag(*(block.t().double() for block in right))
    parts = rows.reshape(cut.in_blocks, cut.out_blocks, rank, -1)
    return parts.transpose(0, 1).reshape(-1, rows.shape[1])


def to_results(cut: Partition, left: Tensor) -> Tensor:
    """The second stack as one matrix, from h in order of groups to results."""
    rows = torch.block_diag(*(block.t().double() for block in left))
    parts = rows.reshape(cut.out_blocks, cut.height, -1)
    return (parts.transpose(0, 1) if cut.out_strided else parts).reshape(rows.shape)[: cut.out_features]


@given(layers())
@settings(deadline=None, max_examples=100)
def test_it_is_two_int8_layers_whose_weights_are_block_diagonal(layer: tuple[Partition, int, Tensor, int]) -> None:
    cut, rank, x, per_row = layer
    found = quantized(*factors(cut, rank, 1))
    matrices = by_groups(cut, rank, found["right"]), to_results(cut, found["left"])
    every = {name: found[f"{name}_scale"].expand_as(found[name]) for name in ("right", "left")}
    scales = by_groups(cut, rank, every["right"]), to_results(cut, every["left"])
    y = by_runs(cut, x)
    for matrix, scale in zip(matrices, scales, strict=True):
        given = {"x": y, "weight": matrix.to(torch.int8), "scale": scale.amax(1)}
        y = evaluate(DENSE, given, {"per_row": per_row})
    result = evaluate(INT8, {"x": x, **found}, attributes(cut, rank, per_row))
    torch.testing.assert_close(result, y, rtol=1e-9, atol=1e-9 * float(y.abs().max().clamp_min(1e-30)))


@given(layers())
@settings(deadline=None, max_examples=100)
def test_a_result_is_off_by_a_step_of_both_activations_at_most(layer: tuple[Partition, int, Tensor, int]) -> None:
    cut, rank, x, per_row = layer
    found = quantized(*factors(cut, rank, 1))
    right, left = (found[name].double() * found[f"{name}_scale"] for name in ("right", "left"))
    inner, outer = by_groups(cut, rank, right), to_results(cut, left)
    h = by_runs(cut, x) @ inner.t()
    off_h = step(x, per_row) * inner.abs().sum(1)
    allowed = (off_h + step(h.abs() + off_h, per_row)) @ outer.abs().t()
    off = (evaluate(INT8, {"x": x, **found}, attributes(cut, rank, per_row)) - h @ outer.t()).abs()
    assert bool((off <= allowed * (1 + 1e-9) + 1e-12).all())


def step(x: Tensor, per_row: int) -> Tensor:
    """The largest step of each row, or of all: of 255 that span both signs."""
    largest = x.abs().amax(1, keepdim=True)
    return (largest if per_row else largest.max()) / 127


@pytest.mark.parametrize("per_row", [0, 1])
@pytest.mark.parametrize("cut", [Partition(96, 128, 4, 4), Partition(67, 65, 3, 2)], ids=["divides", "primes"])
def test_on_ordinary_inputs_it_is_within_two_percent(cut: Partition, per_row: int) -> None:
    right, left = factors(cut, 8, 0)
    x = normal(64, cut.in_features, seed=5)
    wanted = evaluate(MONARCH, {"x": x, "right": right, "left": left}, layer_attributes(cut, 8))
    found = evaluate(INT8, {"x": x, **quantized(right, left)}, attributes(cut, 8, per_row))
    assert float((found - wanted).norm() / wanted.norm()) < 0.02


@pytest.mark.parametrize("per_row", [0, 1])
def test_with_every_column_an_outlier_it_is_the_matrix_of_the_blocks(per_row: int) -> None:
    cut = Partition(11, 13, 4, 3)
    right, left = factors(cut, 2, 0)
    dense, x, bias = Factors(cut, right, left, None, 0.0).dense(), normal(5, 11, seed=3), normal(13, seed=4)
    apart = {"inliers": torch.zeros(11, dtype=torch.bool), "outliers": torch.arange(11), "outlier_weight": dense}
    found = evaluate(INT8, {"x": x, **quantized(right, left), **apart, "bias": bias}, attributes(cut, 2, per_row))
    torch.testing.assert_close(found, x @ dense.t() + bias, rtol=1e-12, atol=1e-12)


def test_planted_outliers_cost_the_plain_layer_several_times_what_they_cost_the_decomposed_one() -> None:
    cut, loud = Partition(1024, 256, 4, 4), torch.tensor([5, 400, 1023])
    right, left = factors(cut, 16, 0)
    x = normal(64, 1024, seed=7)
    x[:, loud] *= 40
    dense = Factors(cut, right, left, None, 0.0).dense()
    wanted = x @ dense.t()
    kept = torch.ones(1024, dtype=torch.bool)
    kept[loud] = False
    masked = right * cut.runs(kept)[:, :, None]
    apart = {"inliers": kept, "outliers": loud, "outlier_weight": dense[:, loud]}
    plain = evaluate(INT8, {"x": x, **quantized(right, left)}, attributes(cut, 16, 1))
    split = evaluate(INT8, {"x": x, **quantized(masked, left), **apart}, attributes(cut, 16, 1))
    errors = [float((found - wanted).norm() / wanted.norm()) for found in (plain, split)]
    assert errors[1] < 0.008
    assert errors[0] > 5 * errors[1]


@pytest.mark.parametrize("per_row", [0, 1])
@pytest.mark.parametrize("rows", [0, 3])
def test_rows_of_zeros_give_the_bias_and_no_rows_give_no_rows(rows: int, per_row: int) -> None:
    cut = Partition(11, 13, 4, 3, True, True)
    bias = normal(13, seed=4)
    given = {"x": torch.zeros(rows, 11, dtype=torch.float64), **quantized(*factors(cut, 2, 0)), "bias": bias}
    assert torch.equal(evaluate(INT8, given, attributes(cut, 2, per_row)), bias.expand(rows, 13))


def test_gradients_are_those_of_the_layer_with_restored_blocks() -> None:
    cut = Partition(11, 13, 4, 3)
    found = quantized(*factors(cut, 2, 0))
    scales = {name: found[name].double().requires_grad_() for name in ("right_scale", "left_scale")}
    x = normal(5, 11, seed=3).requires_grad_()
    restored = {name: found[name].double() * scales[f"{name}_scale"] for name in ("right", "left")}
    wanted = evaluate(MONARCH, {"x": x, **restored}, layer_attributes(cut, 2))
    y = evaluate(INT8, {"x": x, **found, **scales}, attributes(cut, 2, 1))
    weights, operands = normal(5, 13, seed=4), [x, *scales.values()]
    for one, other in zip(
        torch.autograd.grad((y * weights).sum(), operands),
        torch.autograd.grad((wanted * weights).sum(), operands),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("terms", [1, 2])
@pytest.mark.parametrize("cut", [Partition(6, 20, 2, 4, False, True), Partition(11, 13, 4, 3)], ids=["even", "odd"])
def test_sums_of_powers_of_two_are_bit_exact_in_8_bits(cut: Partition, terms: int) -> None:
    x, given, unpacked = normal(5, cut.in_features, seed=3), {}, {}
    for name, stack in zip(("right", "left"), factors(cut, 2, 0), strict=True):
        blocks, inputs, outputs = stack.shape
        found = quantize_powers(rows_of(stack), terms)
        scale = {f"{name}_scale": found.scale.reshape(blocks, 1, outputs)}
        given |= {f"{name}_codes": pack(found.values, terms), **scale}
        unpacked |= {name: found.values.reshape(blocks, outputs, inputs).transpose(1, 2), **scale}
    for activations, per_row in ((2, 1), (1, 0)):
        shared = {"terms": terms, "activations": activations, **layer_attributes(cut, 2)}
        wanted = evaluate(INT8, {"x": x, **unpacked}, attributes(cut, 2, per_row))
        assert torch.equal(evaluate(SHIFT, {"x": x, **given}, shared), wanted)
    restored = {name: unpacked[name].double() * unpacked[f"{name}_scale"] for name in ("right", "left")}
    floating = {"terms": terms, "activations": 0, **layer_attributes(cut, 2)}
    wanted = evaluate(MONARCH, {"x": x, **restored}, layer_attributes(cut, 2))
    torch.testing.assert_close(evaluate(SHIFT, {"x": x, **given}, floating), wanted)


def _types(op_name: str, example: int = 0) -> tuple[dict[str, TensorType], dict[str, Any]]:
    op = get_op(op_name)
    tensors = op.examples[example].tensors(torch.float32)
    types = {name: type_of(tensor) for name, tensor in tensors.items()}
    return types, dict(op.examples[example].attributes or {})


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"right": TensorType("int8", (3, 5, 3))}, r"right must be [3, 5, 4]; got int8[3, 5, 3]"),
        ({"left_scale": TensorType("float32", (2, 7))}, r"left_scale must be [2, 1, 7]; got float32[2, 7]"),
        ({"right_scale": TensorType("float32", (3, 1, 2))}, r"right_scale must be [3, 1, 4]; got float32[3, 1, 2]"),
        ({"bias": TensorType("float32", (15,))}, r"bias must be [14]; got float32[15]"),
        ({"outliers": TensorType("int64", (2,))}, "inliers, outliers and outlier_weight go together; got 1 of them"),
        ({"x": TensorType("float32", (2, 14))}, "x ends in 14, the layer takes 15"),
    ],
)
def test_operands_that_do_not_fit_are_refused(change: dict[str, TensorType], text: str) -> None:
    types, values = _types("int8_monarch_linear")
    with pytest.raises(ShapeError) as caught:
        INT8.infer(**{**types, **change}, **values)
    assert str(caught.value) == f"int8_monarch_linear: {text}"


def test_codes_of_another_number_of_rows_are_refused() -> None:
    types, values = _types("shift_monarch_linear")
    types["left_codes"] = TensorType("uint8", (13, 3))
    with pytest.raises(ShapeError) as caught:
        SHIFT.infer(**types, **values)
    assert str(caught.value) == "shift_monarch_linear: left_codes must have 14 rows; got uint8[13, 3]"


def test_multiply_adds_are_those_of_the_layer_in_floating_point_and_of_the_columns_apart() -> None:
    for name in ("int8_monarch_linear", "shift_monarch_linear"):
        for place, example in enumerate(get_op(name).examples):
            types, values = _types(name, place)
            cut_values = {key: value for key, value in values.items() if key in MONARCH.attributes}
            plain = MONARCH.cost(types["x"], types["x"], types["x"], **cut_values)
            few = types["outlier_weight"].shape[1] if "outlier_weight" in types else 0  # type: ignore[index]
            rows = types["x"].shape[:-1] if types["x"].shape else ()
            columns = dim_expr(few) * values["out_features"]
            for extent in rows:
                columns = columns * extent
            assert get_op(name).cost(**types, **values).macs == plain.macs + columns, example.name


def test_shifts_and_additions_are_counted_for_each_term() -> None:
    types, values = _types("shift_monarch_linear", 1)
    found = SHIFT.cost(**types, **values)
    assert values["terms"] == 2
    assert found.arithmetic["shift int32"] == found.arithmetic["add int32"] == 2 * found.macs
    assert not SHIFT.cost(**types, **{**values, "activations": 0}).arithmetic
