import pytest
import torch
from kernel_oracles import TOLERANCES, error_in_interpreter, operands, to_array

from regraft.backends.tvm._templates import interpret
from regraft.backends.tvm.kernels._kernel import Problem, Tiling
from regraft.backends.tvm.kernels.lowrank_linear import kernel

FUSED = {"rows": 32, "columns": 64, "depth": 32, "stages": 2, "threads": 128, "split": 2}
TWO = {name: value for name, value in FUSED.items() if name != "split"}
DECODE = {"rows": 2, "columns": 4, "depth": 128, "threads": 64}
TILINGS = {"fused": FUSED, "two": TWO, "decode": DECODE}


def problem_of(dtype: str, inner: int, rank: int, outer: int, bias: int = 1) -> Problem:
    return Problem(dtype, {"in_features": inner, "rank": rank, "out_features": outer}, {"bias": bias})


@pytest.mark.parametrize("dtype", kernel.dtypes)
@pytest.mark.parametrize("variant", TILINGS)
def test_every_variant_computes_the_op_in_every_dtype(variant, dtype):
    problem = problem_of(dtype, 67, 19, 131)
    rows = 5 if variant == "decode" else 37
    error = error_in_interpreter(kernel, problem, Tiling(variant, TILINGS[variant]), {"rows": rows})
    assert error < TOLERANCES[dtype]


@pytest.mark.parametrize(("rows", "inner", "rank", "outer"), [(1, 1, 1, 1), (1, 130, 33, 65), (33, 64, 16, 64)])
@pytest.mark.parametrize("variant", TILINGS)
def test_extents_need_not_be_multiples_of_tiles(variant, rows, inner, rank, outer):
    problem = problem_of("float32", inner, rank, outer, bias=0)
    assert error_in_interpreter(kernel, problem, Tiling(variant, TILINGS[variant]), {"rows": rows}) < 2e-5


def test_no_rows_give_no_rows():
    problem, tiling = problem_of("float16", 8, 4, 6), Tiling("fused", FUSED)
    arrays = {name: to_array(tensor) for name, tensor in operands(kernel, problem, tiling, {"rows": 0}).items()}
    assert interpret(kernel, problem, tiling, arrays)["y"].shape == (0, 6)


def test_the_bias_is_not_rounded_before_it_is_added():
    problem, tiling = problem_of("float16", 64, 16, 64), Tiling("fused", FUSED)
    tensors = operands(kernel, problem, tiling, {"rows": 3})
    arrays = {name: to_array(tensor) for name, tensor in tensors.items()}
    with_bias = interpret(kernel, problem, tiling, arrays)["y"]
    zeros = {**arrays, "bias": to_array(torch.zeros(64, dtype=torch.float16))}
    without = interpret(kernel, problem, tiling, zeros)["y"]
    assert abs(with_bias - without - arrays["bias"]).max() < 4e-3


def test_few_rows_take_the_memory_bound_variant_and_many_the_fused_one():
    sizes = {"in_features": 4096, "rank": 128, "out_features": 4096}
    variants = [kernel.default(Problem("float16", sizes, rows=rows), "sm_80").variant for rows in (1, 16, 17, 8192)]
    assert variants == ["decode", "decode", "fused", "fused"]


def test_a_rank_that_does_not_fit_on_chip_takes_two_kernels():
    sizes = {"in_features": 4096, "rank": 2048, "out_features": 4096}
    assert kernel.default(Problem("float16", sizes), "sm_80").variant == "two"


def test_columns_are_split_only_while_rows_leave_the_gpu_empty():
    sizes = {"in_features": 4096, "rank": 64, "out_features": 4096}
    splits = [kernel.default(Problem("float16", sizes, rows=rows), "sm_80").tiles["split"] for rows in (64, 512, 16384)]
    assert splits == [16, 16, 1]


@pytest.mark.parametrize("rows", [1, 7, 16, 64, 1000, 100_000])
@pytest.mark.parametrize("rank", [1, 64, 300, 3000])
@pytest.mark.parametrize("dtype", kernel.dtypes)
@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
def test_chosen_tiles_fit(arch, dtype, rank, rows):
    problem = Problem(dtype, {"in_features": 4096, "rank": rank, "out_features": 4096}, {"bias": 1}, rows)
    assert kernel.fits(problem, kernel.default(problem, arch), arch) is None
