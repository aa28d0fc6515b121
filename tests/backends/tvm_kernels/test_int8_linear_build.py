import pytest
from kernel_builds import ARCHITECTURES, built, on_tensor_cores

from regraft.backends.tvm.kernels._kernel import Problem

pytestmark = [pytest.mark.kernels, pytest.mark.slow]
OPTIONS = {"bias": 1, "per_row": 1}


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_the_integer_product_runs_on_tensor_cores(arch, dtype):
    problem = Problem(dtype, {"in_features": 768, "out_features": 768}, OPTIONS)
    assert on_tensor_cores(built("int8_linear", problem, arch))


@pytest.mark.parametrize("rows", [1, 8])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_few_rows_read_the_weights_in_vectors(arch, rows):
    problem = Problem("float16", {"in_features": 768, "out_features": 768}, OPTIONS, rows)
    assert "vectors" in built("int8_linear", problem, arch).resources.instructions


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_odd_extents_build(arch):
    problem = Problem("bfloat16", {"in_features": 67, "out_features": 131}, OPTIONS)
    assert built("int8_linear", problem, arch).resources.kernels
