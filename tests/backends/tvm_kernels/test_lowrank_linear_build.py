import ctypes

import pytest
import torch
from kernel_builds import ARCHITECTURES, built, on_tensor_cores

from regraft.backends.tvm._build import build
from regraft.backends.tvm.kernels._kernel import Problem, Tiling
from regraft.errors import BackendError, UnknownNameError

pytestmark = pytest.mark.kernels
SIZES = {"in_features": 384, "rank": 96, "out_features": 384}


@pytest.fixture
def half():
    return built("lowrank_linear", Problem("float16", SIZES, {"bias": 1}), "sm_80")


def tensors(**changed):
    def empty(*shape):
        return torch.zeros(shape, dtype=torch.float16)

    found = {"x": empty(5, 384), "down": empty(96, 384), "up": empty(384, 96), "bias": empty(384), "y": empty(5, 384)}
    return list({**found, **changed}.values())


def test_it_is_one_kernel_on_tensor_cores_with_asynchronous_copies(half):
    assert half.tiling.variant == "fused"
    assert len(half.resources.kernels) == 1
    assert on_tensor_cores(half)


def test_on_hopper_it_has_warpgroup_products_and_tensor_copies():
    artefact = built("lowrank_linear", Problem("bfloat16", SIZES), "sm_90a")
    assert {"wgmma", "tma"} <= set(artefact.resources.instructions)


def test_a_second_build_is_the_first_one(half, monkeypatch):
    monkeypatch.setattr("regraft.backends.tvm._build.compile_library", None)
    assert build("lowrank_linear", half.problem, arch="sm_80") == half


def test_the_plain_entry_refuses_what_it_cannot_take(half):
    library = ctypes.CDLL(str(half.path))
    library.regraft_error.restype = ctypes.c_char_p
    extents = (ctypes.c_int64 * 1)(5)

    def said(addresses, count=5, extents=extents):
        assert library.regraft_launch((ctypes.c_void_p * len(addresses))(*addresses), count, extents, 1, None) == -1
        return library.regraft_error().decode()

    assert said([16] * 4, 4) == "takes 5 tensors and 1 extents; got 4 and 1"
    assert said([16, None, 16, 16, 16]) == "down is null"
    assert said([16, 16, 16, 8, 16]) == "bias must be aligned to 16 bytes"
    assert said([16] * 5, extents=(ctypes.c_int64 * 1)(-1)) == "extent 0 must be in [0, 2^31); got -1"
    assert library.regraft_launch((ctypes.c_void_p * 5)(), 5, (ctypes.c_int64 * 1)(0), 1, None) == 0  # no rows


@pytest.mark.parametrize(
    ("changed", "kind", "text"),
    [
        ({}, ValueError, "x must be on a CUDA device; got device type 1"),
        ({"y": 3}, TypeError, "y must be a tensor"),
        ({"x": torch.zeros(5, 384)}, TypeError, "x must be float16; got type code 2 of 32 bits"),
        ({"up": torch.zeros(383, 96).half()}, ValueError, r"up must be \[384, 96\]; got \[383, 96\]"),
        ({"x": torch.zeros(384).half()}, ValueError, r"x must be \[rows, 384\]; got \[384\]"),
        ({"y": torch.zeros(6, 384).half()}, ValueError, r"y must be \[5, 384\]; got \[6, 384\]"),
        ({"y": torch.zeros(384, 5).half().t()}, ValueError, r"y must be contiguous; its strides are \[1, 5\]"),
        ({"bias": torch.zeros(385).half()[1:]}, ValueError, "bias must be aligned to 16 bytes"),
    ],
)
def test_the_entry_of_tvm_ffi_checks_every_tensor(half, changed, kind, text):
    tvm_ffi = pytest.importorskip("tvm_ffi")
    function = tvm_ffi.load_module(str(half.path))["lowrank_linear"]
    with pytest.raises(kind, match=f"lowrank_linear: {text}"):
        function(*tensors(**changed))


def test_the_entry_of_tvm_ffi_counts_tensors(half):
    tvm_ffi = pytest.importorskip("tvm_ffi")
    with pytest.raises(TypeError, match=r"lowrank_linear: takes 5 tensors \(x, down, up, bias, y\); got 4"):
        tvm_ffi.load_module(str(half.path))["lowrank_linear"](*tensors()[:4])


def test_an_op_without_a_kernel_is_named_with_those_that_have_one():
    with pytest.raises(UnknownNameError, match=r"no CUDA kernel for 'topk'; there are: .*lowrank_linear"):
        build("topk", Problem("float16", SIZES))


@pytest.mark.parametrize(
    ("problem", "tiles", "arch", "text"),
    [
        (Problem("int4", SIZES), None, "sm_80", "dtype must be one of float16, bfloat16, float32, tf32; got 'int4'"),
        (Problem("float16", {"rank": 3}), None, "sm_80", "sizes must be in_features, rank, out_features; got rank"),
        (Problem("float16", {**SIZES, "rank": 0}), None, "sm_80", "sizes must be at least 1; got rank=0"),
        (Problem("float16", SIZES, {"gelu": 1}), None, "sm_80", "has no option 'gelu'; it has bias"),
        (Problem("float16", SIZES, {"bias": 2}), None, "sm_80", "bias must be one of 0, 1; got 2"),
        (Problem("float16", SIZES), None, "sm_75", "architecture must be one of sm_80, sm_90a; got 'sm_75'"),
        (Problem("float16", SIZES), {"rows": 48}, "sm_80", "rows must be one of 32, 64, 128; got 48"),
        (
            Problem("float16", SIZES),
            {"columns": 256, "rows": 128, "depth": 32, "stages": 1},
            "sm_80",
            "accumulators a thread; 200 fit",
        ),
        (Problem("float16", {**SIZES, "rank": 600}), {}, "sm_80", "KB of shared memory; a block on sm_80 has 163 KB"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_built(problem, tiles, arch, text):
    full = {"rows": 64, "columns": 128, "depth": 64, "stages": 2, "threads": 128, "split": 1}
    tiling = None if tiles is None else Tiling("fused", {**full, **tiles})
    with pytest.raises(BackendError) as caught:
        build("lowrank_linear", problem, tiling, arch)
    assert "tvm backend: the CUDA kernel of lowrank_linear: " in str(caught.value)
    assert text in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "tf32"])
@pytest.mark.parametrize("variant", ["fused", "two"])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_products_of_tiles_run_on_tensor_cores(arch, variant, dtype):
    problem = Problem(dtype, SIZES, {"bias": 1})
    tiles = {"rows": 64, "columns": 64, "depth": 32, "stages": 2, "threads": 128}
    tiling = Tiling(variant, tiles | ({"split": 2} if variant == "fused" else {}))
    assert on_tensor_cores(built("lowrank_linear", problem, arch, tiling))


@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_plain_single_precision_stays_off_tensor_cores(arch):
    found = built("lowrank_linear", Problem("float32", SIZES, {"bias": 1}), arch).resources
    assert not {"mma.sync", "wgmma"} & set(found.instructions)


@pytest.mark.slow
@pytest.mark.parametrize("rows", [1, 4, 8])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_few_rows_read_the_weights_in_vectors(arch, dtype, rows):
    artefact = built("lowrank_linear", Problem(dtype, SIZES, {"bias": 1}, rows=rows), arch)
    assert artefact.tiling.variant == "decode"
    assert "vectors" in artefact.resources.instructions


@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_odd_extents_build(arch):
    sizes = {"in_features": 67, "rank": 19, "out_features": 131}
    for rows in (1, 512):
        assert built("lowrank_linear", Problem("float16", sizes, {"bias": 1}, rows=rows), arch).resources.kernels
