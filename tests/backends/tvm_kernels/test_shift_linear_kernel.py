import pytest
import torch
from kernel_oracles import TOLERANCES, operands, relative_error, to_array

from regraft.backends.tvm._templates import interpret
from regraft.backends.tvm.kernels._kernel import Problem, Tiling
from regraft.backends.tvm.kernels.shift_linear import kernel
from regraft.numerics.power_of_two import levels, nearest, pack
from regraft.ops import evaluate, get_op

TILINGS = {
    "rows": {"rows": 32, "columns": 64, "depth": 32, "stages": 2, "threads": 128},
    "decode": {"rows": 2, "columns": 4, "depth": 128, "threads": 64},
}


def error(variant, terms, activations=0, dtype="float32", rows=5, inner=67, outer=35, bias=1):
    options = {"bias": bias, "terms": terms, "activations": activations}
    problem, tiling = Problem(dtype, {"in_features": inner, "out_features": outer}, options), TILINGS[variant]
    tiling = Tiling(variant, tiling)
    assert kernel.fits(problem, tiling, "sm_80") is None
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(outer, inner, generator=generator) * int(levels(terms)[-1]) / 2
    values = nearest(weight, torch.ones(outer), terms)
    scale = torch.rand(outer, generator=generator) / 100 + 0.01
    tensors = operands(kernel, problem, tiling, {"rows": rows}) | {"codes": pack(values, terms), "scale": scale}
    result = interpret(kernel, problem, tiling, {name: to_array(tensor) for name, tensor in tensors.items()})["y"]
    given = {name: tensor if name == "codes" else tensor.double() for name, tensor in tensors.items()}
    attributes = {"terms": terms, "in_features": inner, "activations": activations}
    return relative_error(result, evaluate(get_op("shift_linear"), given, attributes))


@pytest.mark.parametrize("dtype", kernel.dtypes)
@pytest.mark.parametrize("terms", [1, 2])
@pytest.mark.parametrize("variant", TILINGS)
def test_it_computes_the_op_in_every_dtype(variant, terms, dtype):
    assert error(variant, terms, dtype=dtype) < TOLERANCES[dtype]


@pytest.mark.parametrize("terms", [1, 2])
@pytest.mark.parametrize("variant", TILINGS)
def test_rounded_activations_are_those_of_the_op(variant, terms):
    # A value halfway between two codes may go either way, since the op divides in another order.
    assert error(variant, terms, activations=2, rows=7) < 2e-3


@pytest.mark.parametrize("inner", [1, 2, 63, 64, 65, 130])
@pytest.mark.parametrize("terms", [1, 2])
@pytest.mark.parametrize("variant", TILINGS)
def test_halves_of_a_row_may_end_anywhere(variant, terms, inner):
    assert error(variant, terms, inner=inner, rows=3, bias=0) < 2e-5


def test_more_rows_than_a_tile():
    assert error("rows", 1, rows=37) < 2e-5


def test_one_step_for_all_rows_is_refused():
    problem = Problem("float16", {"in_features": 64, "out_features": 64}, {"activations": 1})
    assert kernel.wrong_problem(problem) == "activations must be one of 0, 2; got 1"


@pytest.mark.parametrize("rows", [1, 8, 16, 17, 8192])
@pytest.mark.parametrize("activations", [0, 2])
@pytest.mark.parametrize("terms", [1, 2])
@pytest.mark.parametrize("dtype", kernel.dtypes)
@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
def test_chosen_tiles_fit(arch, dtype, terms, activations, rows):
    options = {"terms": terms, "activations": activations}
    problem = Problem(dtype, {"in_features": 4096, "out_features": 4096}, options, rows)
    assert kernel.fits(problem, kernel.default(problem, arch), arch) is None
