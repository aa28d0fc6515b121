import numpy as np
import pytest
import torch
from kernel_oracles import TOLERANCES, operands, relative_error, to_array

from regraft.backends.tvm._templates import interpret
from regraft.backends.tvm.kernels._kernel import Problem, Tiling
from regraft.backends.tvm.kernels.int8_linear import kernel
from regraft.ops import evaluate, get_op

TILINGS = {
    "rows": {"rows": 32, "columns": 64, "depth": 64, "stages": 2, "threads": 128},
    "decode": {"rows": 2, "columns": 4, "depth": 256, "threads": 64},
}


def drawn(variant, dtype="float32", rows=None, inner=67, outer=67, bias=1):
    rows = rows or (5 if variant == "decode" else 37)
    problem = Problem(dtype, {"in_features": inner, "out_features": outer}, {"bias": bias, "per_row": 1})
    tiling = Tiling(variant, TILINGS[variant])
    assert kernel.fits(problem, tiling, "sm_80") is None
    generator = torch.Generator().manual_seed(1)
    weight = torch.randint(-127, 128, (outer, inner), generator=generator, dtype=torch.int8)
    scale = torch.rand(outer, generator=generator) / 127 / inner**0.5 + 1e-4
    found = operands(kernel, problem, tiling, {"rows": rows}) | {"weight": weight, "scale": scale}
    return problem, tiling, found


def interpreted(problem, tiling, tensors):
    return interpret(kernel, problem, tiling, {name: to_array(tensor) for name, tensor in tensors.items()})["y"]


def exact(tensors):
    return {name: tensor if name == "weight" else tensor.double() for name, tensor in tensors.items()}


@pytest.mark.parametrize("dtype", kernel.dtypes)
@pytest.mark.parametrize("variant", TILINGS)
def test_where_rows_of_both_signs_span_the_range_it_is_the_op(variant, dtype):
    problem, tiling, tensors = drawn(variant, dtype)
    oracle = evaluate(get_op("int8_linear"), exact(tensors), {"per_row": 1})
    # A value halfway between two codes may go either way, since the op divides in another order.
    assert relative_error(interpreted(problem, tiling, tensors), oracle) < max(TOLERANCES[dtype], 2e-3)


@pytest.mark.parametrize("variant", TILINGS)
def test_it_is_its_own_formula_to_rounding(variant):
    problem, tiling, tensors = drawn(variant)
    x, weight = tensors["x"], tensors["weight"]
    size = torch.maximum(x.amax(1), -x.amin(1) * (127 / 128)).clamp_min(1e-30)[:, None]
    codes = torch.round(x / size * 127).clamp(-128, 127).double()
    y = codes @ weight.double().t() * (size.double() / 127) * tensors["scale"].double() + tensors["bias"].double()
    assert relative_error(interpreted(problem, tiling, tensors), y) < 1e-6


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("variant", TILINGS)
def test_rows_of_one_sign_are_within_the_announced_step(variant, sign):
    problem, tiling, tensors = drawn(variant)
    tensors["x"] = sign * tensors["x"].abs()
    weight = tensors["weight"].double() * tensors["scale"].double()[:, None]
    dense = tensors["x"].double() @ weight.t() + tensors["bias"].double()
    step = tensors["x"].abs().amax(1, keepdim=True) / 127
    bound = weight.abs().sum(1) * step.double() / 2
    error = (torch.from_numpy(interpreted(problem, tiling, tensors)).double() - dense).abs()
    assert bool((error <= bound * 1.02 + 1e-6).all())


@pytest.mark.parametrize("variant", TILINGS)
def test_a_row_of_zeros_gives_the_bias(variant):
    problem, tiling, tensors = drawn(variant, rows=3)
    tensors["x"][1] = 0
    assert np.array_equal(interpreted(problem, tiling, tensors)[1], tensors["bias"].numpy())


@pytest.mark.parametrize("variant", TILINGS)
def test_a_row_does_not_depend_on_the_others(variant):
    problem, tiling, tensors = drawn(variant, rows=5)
    alone = interpreted(problem, tiling, {**tensors, "x": tensors["x"][2:3]})
    assert np.array_equal(alone[0], interpreted(problem, tiling, tensors)[2])


@pytest.mark.parametrize("variant", TILINGS)
def test_extents_of_one(variant):
    problem, tiling, tensors = drawn(variant, rows=1, inner=1, outer=1, bias=0)
    oracle = evaluate(get_op("int8_linear"), exact(tensors), {"per_row": 1})
    assert relative_error(interpreted(problem, tiling, tensors), oracle) < 1e-2


def test_long_rows_are_read_in_parts():
    problem, tiling, tensors = drawn("rows", rows=3, inner=1100, outer=5)
    tensors["x"][0, 1099] = 50.0  # the largest number stands in the last part
    oracle = evaluate(get_op("int8_linear"), exact(tensors), {"per_row": 1})
    assert relative_error(interpreted(problem, tiling, tensors), oracle) < 2e-3


def test_one_step_for_all_rows_is_refused():
    problem = Problem("float16", {"in_features": 64, "out_features": 64}, {"per_row": 0})
    reason = kernel.fits(problem, kernel.default(problem, "sm_80"), "sm_80")
    assert reason == "computes one step a row (per_row=1), not one for all of x"


@pytest.mark.parametrize("rows", [1, 3, 16, 17, 512, 100_000])
@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
def test_chosen_tiles_fit(arch, rows):
    problem = Problem("float16", {"in_features": 4096, "out_features": 4096}, {"per_row": 1}, rows)
    assert kernel.fits(problem, kernel.default(problem, arch), arch) is None
