import pytest
from kernel_oracles import TOLERANCES, error_in_interpreter

from regraft.backends.tvm.kernels._kernel import Problem, Tiling
from regraft.backends.tvm.kernels.monarch_linear import kernel

TILINGS = {
    "rows": {"rows": 32, "columns": 32, "depth": 32, "stages": 2, "threads": 128},
    "decode": {"rows": 2, "columns": 64, "depth": 4, "threads": 64},
}
NAMES = ("in_features", "out_features", "in_blocks", "out_blocks", "block_rank")


def error(variant, sizes, dtype="float32", rows=5, bias=1, **strided):
    extents = dict(zip(NAMES, sizes, strict=True))
    problem = Problem(dtype, extents, {"bias": bias, **strided})
    return error_in_interpreter(kernel, problem, Tiling(variant, TILINGS[variant]), {"rows": rows}, extents | strided)


@pytest.mark.parametrize("dtype", kernel.dtypes)
@pytest.mark.parametrize("variant", TILINGS)
def test_it_computes_the_op_in_every_dtype(variant, dtype):
    assert error(variant, (96, 80, 3, 4, 5), dtype) < TOLERANCES[dtype]


@pytest.mark.parametrize("strides", [(0, 1), (1, 0), (1, 1)])
@pytest.mark.parametrize("variant", TILINGS)
def test_strided_runs_and_groups(variant, strides):
    options = {"in_strided": strides[0], "out_strided": strides[1]}
    assert error(variant, (96, 80, 3, 4, 5), **options) < 2e-5
    assert error(variant, (97, 83, 4, 3, 2), **options) < 2e-5


@pytest.mark.parametrize(
    "sizes", [(97, 83, 4, 3, 2), (70, 75, 1, 1, 40), (5, 7, 5, 7, 1), (1, 1, 1, 1, 1), (141, 90, 2, 2, 33)]
)
@pytest.mark.parametrize("variant", TILINGS)
def test_counts_need_divide_nothing(variant, sizes):
    assert error(variant, sizes, rows=3, bias=0) < 2e-5


def test_more_rows_than_a_tile():
    assert error("rows", (64, 64, 4, 4, 2), rows=37) < 2e-5


def test_more_blocks_than_features_are_refused():
    problem = Problem("float16", dict(zip(NAMES, (4, 8, 5, 2, 1), strict=True)))
    reason = kernel.fits(problem, Tiling("rows", TILINGS["rows"]), "sm_80")
    assert reason == "in_blocks must be at least 1 and at most the 4 input features; got 5"


@pytest.mark.parametrize("rows", [1, 8, 16, 17, 8192])
@pytest.mark.parametrize("dtype", kernel.dtypes)
@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
def test_chosen_tiles_fit(arch, dtype, rows):
    problem = Problem(dtype, dict(zip(NAMES, (4096, 4096, 4, 4, 256), strict=True)), {"bias": 1}, rows)
    assert kernel.fits(problem, kernel.default(problem, arch), arch) is None
