"""Builds kernels in a folder of their own, for the tests that need nvcc."""

import pytest

from regraft.backends.tvm._build import Artefact, build
from regraft.backends.tvm._nvcc import find_nvcc
from regraft.backends.tvm.kernels._kernel import Problem, Tiling
from regraft.errors import MissingExtraError

ARCHITECTURES = ("sm_80", "sm_90a")
TENSOR_CORES = {"sm_80": {"mma.sync", "ldmatrix", "cp.async"}, "sm_90a": {"wgmma", "tma"}}
"""Instructions of a product of tiles."""


def on_tensor_cores(artefact: Artefact) -> bool:
    """Return whether the products of a kernel run on tensor cores, fed by the copies of the architecture."""
    used = set(artefact.resources.instructions)
    if artefact.problem.dtype == "tf32" and artefact.arch == "sm_90a":  # TileLang has no wgmma for it
        return used >= {"mma.sync", "tma"}
    return used >= TENSOR_CORES[artefact.arch]


def built(op: str, problem: Problem, arch: str, tiling: Tiling | None = None) -> Artefact:
    """Return a compiled kernel, or skip where there is no compiler; it must not spill."""
    try:
        find_nvcc()
    except MissingExtraError as error:
        pytest.skip(str(error))
    artefact = build(op, problem, tiling, arch)
    assert artefact.resources.spilled_bytes == 0, artefact.resources
    return artefact
