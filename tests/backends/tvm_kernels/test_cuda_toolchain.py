from pathlib import Path

import pytest

from regraft.backends.tvm import _toolchain
from regraft.errors import MissingExtraError


def test_what_builds_cuda_kernels_is_named(monkeypatch):
    monkeypatch.setattr(_toolchain, "find_nvcc", lambda: Path("nvcc"))
    monkeypatch.setattr(_toolchain, "nvcc_version", lambda path: "cuda_13.0")
    assert _toolchain.describe_cuda() == "tilelang 0.1.15, nvcc cuda_13.0"


@pytest.mark.parametrize("missing", ["check_tilelang", "find_nvcc"])
def test_what_is_missing_is_named(monkeypatch, missing):
    def absent():
        raise MissingExtraError("tvm backend: needs something that is not installed")

    monkeypatch.setattr(_toolchain, missing, absent)
    assert _toolchain.describe_cuda() == "needs something that is not installed"
