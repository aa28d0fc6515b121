import pytest
from kernel_builds import ARCHITECTURES, built, on_tensor_cores

from regraft.backends.tvm.kernels._kernel import Problem

pytestmark = [pytest.mark.kernels, pytest.mark.slow]
SIZES = {"in_features": 768, "in_rank": 96, "gate_rank": 96, "hidden": 3072, "out_rank": 96, "out_features": 768}
ALL = {"activation": "gelu", "in_bias": 1, "out_bias": 1, "residual": 1}


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "tf32"])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_it_is_one_kernel_on_tensor_cores(arch, dtype):
    artefact = built("lowrank_mlp", Problem(dtype, SIZES, ALL), arch)
    assert on_tensor_cores(artefact)
    assert len(artefact.resources.kernels) == 1


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_a_gate_builds(arch):
    options = {"activation": "silu", "gate": 1, "gate_bias": 1}
    assert on_tensor_cores(built("lowrank_mlp", Problem("float16", SIZES, options), arch))


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_dense_layers_in_build(arch):
    sizes = {**SIZES, "in_rank": 768}
    assert on_tensor_cores(built("lowrank_mlp", Problem("float16", sizes, {**ALL, "dense_in": 1}), arch))


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_single_precision_and_odd_extents_build(arch):
    odd = {"in_features": 67, "in_rank": 19, "gate_rank": 21, "hidden": 133, "out_rank": 18, "out_features": 70}
    found = built("lowrank_mlp", Problem("float32", odd, ALL), arch).resources
    assert not {"mma.sync", "wgmma"} & set(found.instructions)
    assert built("lowrank_mlp", Problem("float16", odd, ALL, rows=8), arch).resources.kernels
