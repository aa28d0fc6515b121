import pytest
from kernel_builds import ARCHITECTURES, built

from regraft.backends.tvm.kernels._kernel import Problem

pytestmark = [pytest.mark.kernels, pytest.mark.slow]
SIZES = {"in_features": 768, "out_features": 3072, "in_blocks": 4, "out_blocks": 4, "block_rank": 48}
PRODUCTS = {"sm_80": {"mma.sync", "ldmatrix", "cp.async"}, "sm_90a": {"wgmma", "tma"}}


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_products_of_blocks_run_on_tensor_cores(arch, dtype):
    found = built("monarch_linear", Problem(dtype, SIZES, {"bias": 1}), arch).resources
    assert set(found.instructions) >= PRODUCTS[arch]
    assert len(found.kernels) == 2


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_strided_features_build(arch):
    problem = Problem("float16", SIZES, {"bias": 1, "in_strided": 1, "out_strided": 1})
    assert {"mma.sync", "wgmma"} & set(built("monarch_linear", problem, arch).resources.instructions)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_few_rows_read_the_weights_in_vectors(arch):
    problem = Problem("float16", SIZES, {"bias": 1}, rows=1)
    assert "vectors" in built("monarch_linear", problem, arch).resources.instructions


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_single_precision_and_odd_extents_build(arch):
    odd = {"in_features": 97, "out_features": 83, "in_blocks": 4, "out_blocks": 3, "block_rank": 2}
    found = built("monarch_linear", Problem("float32", odd, {"bias": 1}), arch).resources
    assert not {"mma.sync", "wgmma"} & set(found.instructions)
