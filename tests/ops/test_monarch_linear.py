"""The op monarch_linear: its formula, its types, its refusals and its cost."""

from typing import Any

import pytest
import torch
from torch import Tensor

from regraft.errors import ShapeError
from regraft.graph.symbols import bind, dim_expr
from regraft.graph.types import TensorType
from regraft.numerics.monarch import Factors, project
from regraft.numerics.partition import Partition
from regraft.ops import Example, evaluate
from regraft.ops.monarch_linear import cost, infer, layer_attributes, op

CUT = Partition(15, 14, 3, 2)
ATTRIBUTES: dict[str, Any] = layer_attributes(CUT, 4)
X = TensorType("float32", ("batch", "seq", 15))
RIGHT, LEFT, BIAS = TensorType("float32", (3, 5, 8)), TensorType("float32", (2, 12, 7)), TensorType("float32", (14,))


def _partition(example: Example) -> Partition:
    values: dict[str, Any] = {**(example.attributes or {})}
    values.pop("block_rank")
    return Partition(**{**values, "in_strided": bool(values["in_strided"]), "out_strided": bool(values["out_strided"])})


def _formula(x: Tensor, cut: Partition, right: Tensor, left: Tensor) -> Tensor:
    """The layer of the op's file, one block after the other, feature by feature."""
    y = torch.zeros(*x.shape[:-1], cut.out_features, dtype=x.dtype)
    rank = right.shape[2] // cut.out_blocks
    inputs = [
        [f for f in range(cut.in_features) if (f % cut.in_blocks if cut.in_strided else f // cut.width) == a]
        for a in range(cut.in_blocks)
    ]
    for f in range(cut.out_features):
        b, s = (f % cut.out_blocks, f // cut.out_blocks) if cut.out_strided else divmod(f, cut.height)
        for a, features in enumerate(inputs):
            h = x[..., features] @ right[a, : len(features), b * rank : (b + 1) * rank]
            y[..., f] += h @ left[b, a * rank : (a + 1) * rank, s]
    return y


@pytest.mark.parametrize("example", op.examples, ids=lambda example: example.name)
def test_it_computes_its_formula(example: Example) -> None:
    tensors = example.tensors()
    wanted = _formula(tensors["x"], _partition(example), tensors["right"], tensors["left"])
    wanted = wanted + tensors["bias"] if "bias" in tensors else wanted
    found = evaluate(op, tensors, example.attributes or {})
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("example", op.examples, ids=lambda example: example.name)
def test_it_is_the_product_with_the_matrix_of_its_factors(example: Example) -> None:
    tensors, cut = example.tensors(), _partition(example)
    dense = Factors(cut, tensors["right"], tensors["left"], None, 0.0).dense()
    found = evaluate(op, {**tensors, "bias": None}, example.attributes or {})
    torch.testing.assert_close(found, tensors["x"] @ dense.t(), rtol=1e-12, atol=1e-12)


def test_the_published_layer_is_strided_results_with_intermediates_in_another_order() -> None:
    """Flat intermediate a·q + i belongs to group i mod l, slot i // l of that run; result s·l + b is result s of b."""
    k, l, p, s, rank = 3, 2, 5, 7, 2  # noqa: E741 - the formula's letters
    torch.manual_seed(0)
    x = torch.randn(4, k * p, dtype=torch.float64)
    w1 = torch.randn(k, l * rank, p, dtype=torch.float64)
    w2 = torch.randn(l, s, k * rank, dtype=torch.float64)
    flat = torch.einsum("tap,aqp->taq", x.reshape(4, k, p), w1).reshape(4, k * rank, l)
    wanted = torch.einsum("trb,bsr->tsb", flat, w2).reshape(4, s * l)
    right = w1.reshape(k, rank, l, p).permute(0, 3, 2, 1).reshape(k, p, l * rank)
    left = w2.permute(0, 2, 1)
    attributes = layer_attributes(Partition(k * p, l * s, k, l, False, True), rank)
    torch.testing.assert_close(evaluate(op, {"x": x, "right": right, "left": left}, attributes), wanted)


def test_a_fourier_transform_is_computed_by_rank_one_blocks() -> None:
    n, x = 64, torch.randn(5, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    transform = torch.view_as_real(torch.fft.fft(torch.eye(n, dtype=torch.float64))).permute(2, 0, 1).reshape(2 * n, n)
    factors = project(transform, Partition(n, 2 * n, 8, 8, True, True), 2)
    tensors = {"x": x, "right": factors.right, "left": factors.left}
    found = evaluate(op, tensors, layer_attributes(factors.partition, 2))
    wanted = torch.fft.fft(x)
    torch.testing.assert_close(found, torch.cat([wanted.real, wanted.imag], dim=-1), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("example", op.examples, ids=lambda example: example.name)
def test_its_type_is_the_type_of_what_it_computes(example: Example) -> None:
    tensors, attributes = example.tensors(torch.float32), example.attributes or {}
    types: dict[str, Any] = {name: TensorType("float32", tuple(tensor.shape)) for name, tensor in tensors.items()}
    result = evaluate(op, tensors, attributes)
    assert infer(**types, **attributes) == TensorType("float32", tuple(result.shape))


def test_no_rows_give_no_rows() -> None:
    tensors = {"right": torch.ones(3, 5, 8), "left": torch.ones(2, 12, 7), "bias": torch.ones(14)}
    assert evaluate(op, {"x": torch.ones(0, 3, 15), **tensors}, ATTRIBUTES).shape == (0, 3, 14)


def test_its_type_keeps_dynamic_dims_and_needs_no_shape_of_x() -> None:
    assert infer(X, RIGHT, LEFT, BIAS, **ATTRIBUTES) == TensorType("float32", ("batch", "seq", 14))
    assert infer(TensorType("bfloat16"), RIGHT, LEFT, **ATTRIBUTES) == TensorType("bfloat16")


OTHER = TensorType("float32", (3, 5, 7))
REFUSALS: dict[str, tuple[tuple[TensorType, ...], dict[str, int]]] = {
    "monarch_linear: right must be [3, 5, 8]; got float32[3, 5, 7]": ((X, OTHER, LEFT), {}),
    "monarch_linear: left must be [2, 12, 7]; got float32[3, 5, 7]": ((X, RIGHT, OTHER), {}),
    "monarch_linear: bias must be [14]; got float32[3, 5, 7]": ((X, RIGHT, LEFT, OTHER), {}),
    "monarch_linear: x must have at least one dim; got a scalar": ((TensorType("float32", ()), RIGHT, LEFT), {}),
    "monarch_linear: x ends in 7, the layer takes 15": ((OTHER, RIGHT, LEFT), {}),
    "monarch_linear: block_rank must be at least 1; got 0": ((X, RIGHT, LEFT), {"block_rank": 0}),
    "in_blocks must be at least 1 and at most the 15 input features; got 16": ((X, RIGHT, LEFT), {"in_blocks": 16}),
}


@pytest.mark.parametrize("text", REFUSALS)
def test_operands_that_do_not_fit_are_refused_and_named(text: str) -> None:
    types, changed = REFUSALS[text]
    with pytest.raises(ShapeError) as caught:
        infer(*types, **{**ATTRIBUTES, **changed})
    assert str(caught.value) == text


def test_it_costs_as_many_multiply_adds_a_row_as_it_has_parameters() -> None:
    found = cost(X, RIGHT, LEFT, BIAS, **ATTRIBUTES)
    rows = dim_expr("batch*seq")
    assert found.macs == rows * (3 * 5 * 8 + 2 * 12 * 7)
    assert found.transient_bytes == rows * 24 * 4  # 2 · 3 · 4 intermediates are more than 14 results
    assert bind(found.macs, {"batch": 2, "seq": 5}) == 10 * CUT.parameters(4)
    assert cost(TensorType("float32"), RIGHT, LEFT, **ATTRIBUTES).macs == 0


def test_the_buffer_of_results_counts_where_it_is_the_larger() -> None:
    cut = Partition(15, 140, 3, 2)
    right, left = TensorType("float16", (3, 5, 2)), TensorType("float16", (2, 3, 70))
    found = cost(TensorType("float16", (10, 15)), right, left, **layer_attributes(cut, 1))
    assert found.transient_bytes == 10 * 140 * 2
