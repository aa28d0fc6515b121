"""The op lowrank_linear: its formula, its types, its refusals and its cost."""

import pytest
import torch

from regraft.errors import ShapeError
from regraft.graph.symbols import bind, dim_expr
from regraft.graph.types import TensorType
from regraft.ops import Example, evaluate
from regraft.ops.lowrank_linear import cost, infer, op

DOWN, UP, BIAS = TensorType("float32", (3, 7)), TensorType("float32", (4, 3)), TensorType("float32", (4,))
X = TensorType("float32", ("batch", "seq", 7))


@pytest.mark.parametrize("example", op.examples, ids=lambda example: example.name)
def test_it_computes_its_formula(example: Example) -> None:
    tensors = example.tensors()
    weight = tensors["up"] @ tensors["down"]
    wanted = torch.einsum("...i,oi->...o", tensors["x"], weight)
    wanted = wanted + tensors["bias"] if "bias" in tensors else wanted
    torch.testing.assert_close(evaluate(op, tensors, {}), wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("example", op.examples, ids=lambda example: example.name)
def test_its_type_is_the_type_of_what_it_computes(example: Example) -> None:
    tensors = example.tensors(torch.float32)
    types = {name: TensorType("float32", tuple(tensor.shape)) for name, tensor in tensors.items()}
    result = evaluate(op, tensors, {})
    assert infer(**types) == TensorType("float32", tuple(result.shape))


def test_its_type_keeps_dynamic_dims_and_needs_no_shape_of_x() -> None:
    assert infer(X, DOWN, UP, BIAS) == TensorType("float32", ("batch", "seq", 4))
    assert infer(TensorType("bfloat16"), DOWN, UP) == TensorType("bfloat16")


REFUSALS = {
    "lowrank_linear: down and up must be 2-D; got float32[7] and float32[4, 3]": (X, TensorType("float32", (7,)), UP),
    "lowrank_linear: down and up must be 2-D; got float32[3, 7] and float32[?]": (X, DOWN, TensorType("float32")),
    "lowrank_linear: x must have at least one dim; got a scalar": (TensorType("float32", ()), DOWN, UP),
    "lowrank_linear: x ends in 8, down takes 7": (TensorType("float32", ("batch", 8)), DOWN, UP),
    "lowrank_linear: ranks differ: down 3, up 5": (X, DOWN, TensorType("float32", (4, 5))),
    "lowrank_linear: bias must be [4]; got float32[1, 4]": (X, DOWN, UP, TensorType("float32", (1, 4))),
    "lowrank_linear: bias must be [4]; got float32[7]": (TensorType(), DOWN, UP, TensorType("float32", (7,))),
}


@pytest.mark.parametrize("text", REFUSALS)
def test_operands_that_do_not_fit_are_refused_and_named(text: str) -> None:
    with pytest.raises(ShapeError) as caught:
        infer(*REFUSALS[text])
    assert str(caught.value) == text


def test_it_costs_rank_times_both_widths_a_row_and_a_thin_buffer() -> None:
    found = cost(X, DOWN, UP, BIAS)
    rows = dim_expr("batch*seq")
    assert found.macs == rows * 3 * (7 + 4)
    assert found.transient_bytes == rows * 3 * 4
    dims = {"batch": 2, "seq": 5}
    assert (bind(found.macs, dims), bind(found.transient_bytes, dims)) == (330, 120)


def test_the_thin_buffer_has_the_element_size_of_x() -> None:
    for dtype, size in (("float64", 8), ("bfloat16", 2), ("float8e4m3fn", 1)):
        assert cost(TensorType(dtype, (5, 7)), DOWN, UP).transient_bytes == 5 * 3 * size


def test_below_the_break_even_rank_it_is_cheaper_than_the_dense_layer_and_from_it_on_not() -> None:
    dense = 384 * 1536
    for rank, cheaper in ((307, True), (308, False)):
        down, up = TensorType("float32", (rank, 1536)), TensorType("float32", (384, rank))
        macs = bind(cost(TensorType("float32", (1, 1536)), down, up).macs, {})
        assert (macs < dense) == cheaper
