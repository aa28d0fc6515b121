"""A GPU that is none: kernels are not compiled, and run in the interpreter of templates, on tensors of the CPU."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from kernel_oracles import to_array
from torch import Tensor

from regraft.backends.tvm._build import Artefact
from regraft.backends.tvm._cuda import Gpu
from regraft.backends.tvm._entry import C_ENTRY, dynamic_names
from regraft.backends.tvm._nvcc import Resources
from regraft.backends.tvm._templates import interpret
from regraft.backends.tvm.kernels._kernel import Problem, Tiling
from regraft.backends.tvm.kernels._registry import get_kernel


def fake_build(op: str, problem: Problem, tiling: Tiling, arch: str) -> Artefact:
    """Return what a build would tell."""
    kernel = get_kernel(op)
    reason = kernel.fits(problem, tiling, arch)
    assert reason is None, reason
    arguments = kernel.arguments(problem, tiling)
    nowhere = Path("nowhere")
    extents = tuple(dynamic_names(arguments))
    resources = Resources((), (), ())
    return Artefact(op, nowhere, nowhere, C_ENTRY, op, arguments, extents, problem, tiling, arch, resources)


class FakeGpu:
    """Remembers what was launched."""

    def __init__(self) -> None:
        self.launched: list[tuple[str, str, int]] = []

    def launch(self, artefact: Artefact, tensors: Sequence[Tensor | None], extents: Sequence[int]) -> None:
        """Check the arguments as the entry of a built library does, and run the template."""
        by_name = dict(zip(artefact.extents, extents, strict=True))
        arrays, result = {}, None
        for argument, tensor in zip(artefact.arguments, tensors, strict=True):
            assert (tensor is not None) == argument.present
            if tensor is None:
                continue
            assert list(tensor.shape) == [by_name.get(dim, dim) for dim in argument.dims] or argument.role == "out"
            assert tensor.is_contiguous()
            assert tensor.dtype == getattr(torch, argument.dtype)
            assert tensor.data_ptr() % argument.alignment == 0
            if argument.role == "out":
                result = tensor
            elif argument.role == "in":
                arrays[argument.name] = to_array(tensor)
        found = interpret(get_kernel(artefact.op), artefact.problem, artefact.tiling, arrays)["y"]
        assert result is not None
        result.copy_(torch.from_numpy(found.astype(np.float32)).reshape(result.shape))
        self.launched.append((artefact.op, artefact.tiling.variant, by_name.get("rows", by_name.get("queries", 0))))

    def gpu(self, arch: str = "sm_80") -> Gpu:
        """Return it as what makes kernels."""
        return Gpu(torch.device("cpu"), arch, fake_build, self.launch)
