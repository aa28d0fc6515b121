import pytest
from kernel_builds import ARCHITECTURES, built, on_tensor_cores

from regraft.backends.tvm.kernels._kernel import Problem

pytestmark = [pytest.mark.kernels, pytest.mark.slow]
SIZES = {"in_features": 768, "out_features": 768, "outliers": 7}
OPTIONS = {"bias": 1, "per_row": 1}


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_the_integer_product_runs_on_tensor_cores(arch, dtype):
    artefact = built("int8_outlier_linear", Problem(dtype, SIZES, OPTIONS), arch)
    assert on_tensor_cores(artefact)
    assert len(artefact.resources.kernels) == 2  # codes, and all the rest


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_few_rows_read_the_weights_in_vectors(arch):
    problem = Problem("float16", SIZES, OPTIONS, rows=1)
    assert "vectors" in built("int8_outlier_linear", problem, arch).resources.instructions
