import pytest
from kernel_builds import ARCHITECTURES, built, on_tensor_cores

from regraft.backends.tvm.kernels._kernel import Problem

pytestmark = [pytest.mark.kernels, pytest.mark.slow]
SIZES = {"in_features": 768, "out_features": 768}


@pytest.mark.parametrize("activations", [0, 2])
@pytest.mark.parametrize("terms", [1, 2])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_decoded_weights_meet_tensor_cores(arch, terms, activations):
    options = {"bias": 1, "terms": terms, "activations": activations}
    assert on_tensor_cores(built("shift_linear", Problem("float16", SIZES, options), arch))


@pytest.mark.parametrize("activations", [0, 2])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_few_rows_read_the_codes_in_vectors(arch, activations):
    problem = Problem("bfloat16", SIZES, {"terms": 1, "activations": activations}, rows=1)
    assert "vectors" in built("shift_linear", problem, arch).resources.instructions


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_single_precision_and_odd_extents_build(arch):
    odd = {"in_features": 67, "out_features": 131}
    found = built("shift_linear", Problem("float32", odd, {"bias": 1, "terms": 1}), arch).resources
    assert not {"mma.sync", "wgmma"} & set(found.instructions)
