import pytest
from kernel_builds import ARCHITECTURES, built

from regraft.backends.tvm.kernels._kernel import Problem

pytestmark = [pytest.mark.kernels, pytest.mark.slow]
SIZES = {"heads": 12, "kv_heads": 12, "head": 64, "value": 64}
OPTIONS = {"split": 1, "scale": 0.125}
PRODUCTS = {"sm_80": {"mma.sync", "ldmatrix"}, "sm_90a": {"wgmma", "tma"}}


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("rows", [256, 4096])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_it_is_one_kernel_on_tensor_cores(arch, rows, dtype):
    found = built("multi_head_attention", Problem(dtype, SIZES, {**OPTIONS, "mask": 1}, rows), arch).resources
    assert set(found.instructions) >= PRODUCTS[arch]
    assert len(found.kernels) == 1


@pytest.mark.parametrize("options", [{"causal": 1}, {"bias": 1, "bias_heads": 1, "bias_queries": 1}, {"split": 0}])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_option_builds(arch, options):
    problem = Problem("float16", SIZES, {**OPTIONS, **options})
    assert set(built("multi_head_attention", problem, arch).resources.instructions) >= PRODUCTS[arch]


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_a_rank_as_head_size_and_single_precision_build(arch):
    sizes = {"heads": 12, "kv_heads": 4, "head": 40, "value": 24}
    assert built("multi_head_attention", Problem("float16", sizes, OPTIONS), arch).resources.kernels
    found = built("multi_head_attention", Problem("float32", sizes, {**OPTIONS, "mask": 1}), arch).resources
    assert not {"mma.sync", "wgmma"} & set(found.instructions)
