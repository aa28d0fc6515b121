import pytest
import torch
from kernel_oracles import TOLERANCES, operands, relative_error, to_array

from regraft.backends.tvm._templates import interpret
from regraft.backends.tvm.kernels._kernel import Problem, Tiling
from regraft.backends.tvm.kernels.int8_outlier_linear import kernel
from regraft.errors import BackendError
from regraft.ops import evaluate, get_op

TILINGS = {
    "rows": {"rows": 32, "columns": 64, "depth": 64, "stages": 2, "threads": 128},
    "decode": {"rows": 2, "columns": 4, "depth": 256, "threads": 64},
}


def drawn(variant, dtype="float32", rows=5, inner=67, outer=35, few=3, bias=1):
    sizes = {"in_features": inner, "out_features": outer, "outliers": few}
    problem, tiling = Problem(dtype, sizes, {"bias": bias, "per_row": 1}), Tiling(variant, TILINGS[variant])
    assert kernel.fits(problem, tiling, "sm_80") is None
    generator = torch.Generator().manual_seed(4)
    places = torch.randperm(inner, generator=generator)[:few]
    tensors = operands(kernel, problem, tiling, {"rows": rows})
    tensors["x"][:, places] *= 100  # what the columns are kept apart for
    tensors |= {
        "weight": torch.randint(-127, 128, (outer, inner), generator=generator, dtype=torch.int8),
        "scale": torch.rand(outer, generator=generator) / 127 / inner**0.5 + 1e-4,
        "inliers": torch.ones(inner, dtype=torch.bool).index_fill(0, places, False),
        "outliers": places,
    }
    return problem, tiling, tensors


def error(*args, **kwargs):
    problem, tiling, tensors = drawn(*args, **kwargs)
    result = interpret(kernel, problem, tiling, {name: to_array(tensor) for name, tensor in tensors.items()})["y"]
    given = {name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    return relative_error(result, evaluate(get_op("int8_outlier_linear"), given, {"per_row": 1}))


@pytest.mark.parametrize("dtype", kernel.dtypes)
@pytest.mark.parametrize("variant", TILINGS)
def test_it_computes_the_op_in_every_dtype(variant, dtype):
    assert error(variant, dtype) < max(TOLERANCES[dtype], 1e-3)


@pytest.mark.parametrize("few", [1, 32, 40, 67])
@pytest.mark.parametrize("variant", TILINGS)
def test_any_number_of_columns_may_stay_in_floating_point(variant, few):
    assert error(variant, few=few, bias=0) < 1e-3


def test_a_column_that_does_not_exist_is_an_access_outside():
    problem, tiling, tensors = drawn("rows")
    tensors["outliers"][0] = 67
    with pytest.raises(BackendError, match="IndexError: reads x at 67 of axis 1, whose extent is 67"):
        interpret(kernel, problem, tiling, {name: to_array(tensor) for name, tensor in tensors.items()})
