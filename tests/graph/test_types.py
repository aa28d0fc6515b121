"""Types of values: how they print, what is known of them, and how large their elements are."""

import pytest
import torch

from regraft.graph.types import TensorType, dtype_bits, dtype_name, torch_dtype, type_of

HANDLED = ("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool", "complex64")


def test_a_type_prints_as_element_type_and_dims() -> None:
    assert str(TensorType("float32", ("batch", "2*seq", 384))) == "float32[batch, 2*seq, 384]"
    assert str(TensorType("int64", ())) == "int64[]"
    assert str(TensorType("int64")) == "int64[?]"
    assert str(TensorType()) == "?[?]"


def test_the_rank_of_a_scalar_is_zero_and_of_an_unknown_shape_unknown() -> None:
    assert [TensorType("int64", shape).rank for shape in ((), (2, "n"), None)] == [0, 2, None]


def test_floating_types_are_those_of_real_numbers() -> None:
    names = ("float32", "bfloat16", "float8e4m3fn", "int8", "bool", "complex64", None)
    assert [TensorType(name).is_floating for name in names] == [True, True, True, False, False, False, False]


@pytest.mark.parametrize("name", HANDLED)
def test_names_and_torch_types_convert_into_each_other(name: str) -> None:
    dtype = torch_dtype(name)
    assert dtype is not None
    assert dtype_name(dtype) == name
    assert dtype_bits(name) == dtype.itemsize * 8


def test_a_name_that_torch_does_not_have_has_no_torch_type() -> None:
    assert torch_dtype("uint4") is None
    assert torch_dtype("__class__") is None


@pytest.mark.parametrize(
    ("name", "bits"),
    [
        ("int4", 4), ("uint2", 2), ("float4e2m1", 4), ("float8e5m2", 8), ("float8_e4m3fn", 8), ("uint16", 16),
        ("uint64", 64), ("complex128", 128), ("string", 32), (None, 32),
    ],
)  # fmt: skip
def test_sizes_are_known_for_types_that_torch_does_not_have(name: str | None, bits: int) -> None:
    assert dtype_bits(name) == bits


def test_the_type_of_a_tensor_is_its_element_type_and_extents() -> None:
    assert type_of(torch.zeros(2, 3, dtype=torch.bfloat16)) == TensorType("bfloat16", (2, 3))
    assert type_of(torch.zeros((), dtype=torch.bool)) == TensorType("bool", ())
