import shutil

import pytest

from regraft.backends.tvm import _nvcc
from regraft.errors import BackendError, MissingExtraError

SAID = """ptxas info    : Compiling entry function 'main_kernel' for 'sm_80'
ptxas info    : Function properties for main_kernel
    8 bytes stack frame, 12 bytes spill stores, 16 bytes spill loads
ptxas info    : Used 168 registers, used 3 barriers, 1024 bytes smem, 388 bytes cmem[0]
ptxas info    : Compiling entry function 'main_kernel_1' for 'sm_80'
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 40 registers
"""


def test_registers_and_spills_are_read_for_each_kernel():
    found = _nvcc._resources("config.dynamicSmemBytes = 512;config.dynamicSmemBytes = 0;", "wgmma.mma_async x;", SAID)
    assert [kernel.registers for kernel in found.kernels] == [168, 40]
    assert [kernel.shared_bytes for kernel in found.kernels] == [1024, 0]
    assert found.spilled_bytes == 28
    assert found.dynamic_shared_bytes == (512, 0)
    assert found.instructions == ("wgmma",)
    assert _nvcc.Resources.from_json(found.as_json()) == found


def test_output_without_registers_is_refused():
    with pytest.raises(BackendError, match="nvcc does not say what the kernel main_kernel takes"):
        _nvcc._resources("", "", SAID.replace("Used 168 registers", ""))


def test_without_nvcc_the_error_says_where_it_was_looked_for(monkeypatch, tmp_path):
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(_nvcc, "_USUAL", tmp_path / "usual")
    with pytest.raises(MissingExtraError) as caught:
        _nvcc.find_nvcc()
    places = f"it is not in CUDA_HOME ({tmp_path}), on PATH or in {tmp_path}/usual"
    assert str(caught.value) == f"tvm backend: CUDA kernels need nvcc; {places}"
    assert caught.value.hint == "install the CUDA toolkit, or set CUDA_HOME to where it is"


def test_the_nvcc_of_cuda_home_comes_first(monkeypatch, tmp_path):
    own = tmp_path / "bin" / "nvcc"
    own.parent.mkdir()
    own.write_text("#!/bin/sh\necho 'kernel.cu(3): error: identifier \"x\" is undefined' >&2\nexit 2\n")
    own.chmod(0o755)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    assert _nvcc.find_nvcc() == own
    with pytest.raises(BackendError, match=r'nvcc refuses the kernel for sm_80: kernel.cu\(3\): error: identifier "x"'):
        _nvcc.compile_library("", "sm_80")
