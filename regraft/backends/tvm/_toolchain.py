"""What is there to build CUDA kernels with, in words: for `regraft doctor`."""

from regraft.backends.tvm._compat import TILELANG, check_tilelang
from regraft.backends.tvm._nvcc import find_nvcc, nvcc_version
from regraft.errors import BackendError, MissingExtraError


def describe_cuda() -> str:
    """Return what builds CUDA kernels here, or what is missing, as one phrase; nothing is built."""
    try:
        check_tilelang()
        return f"tilelang {TILELANG['tilelang']}, nvcc {nvcc_version(find_nvcc())}"
    except (MissingExtraError, BackendError) as error:
        return str(error).removeprefix("tvm backend: ")
