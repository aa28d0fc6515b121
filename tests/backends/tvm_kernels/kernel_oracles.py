"""Runs kernel templates in the interpreter beside the float64 oracle of their op."""

from collections.abc import Mapping

import ml_dtypes
import numpy as np
import torch
from torch import Tensor

from regraft.backends.tvm._templates import interpret
from regraft.backends.tvm.kernels._kernel import Kernel, Problem, Tiling
from regraft.ops import evaluate, get_op

TOLERANCES = {"float16": 4e-3, "bfloat16": 3e-2, "float32": 2e-5, "tf32": 4e-3}
"""Of a result relative to the largest: a few roundings of inner results and one of the outer."""


def to_array(tensor: Tensor) -> np.ndarray:
    """Return a tensor as an array, bfloat16 included."""
    if tensor.dtype == torch.bfloat16:
        return tensor.contiguous().view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.contiguous().numpy()


def operands(kernel: Kernel, problem: Problem, tiling: Tiling, extents: Mapping[str, int], seed: int = 0):
    """Return floating-point inputs of a kernel by name, of a size that keeps sums near one."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for argument in kernel.arguments(problem, tiling):
        if argument.role == "in" and argument.present:
            shape = [extents[dim] if isinstance(dim, str) else dim for dim in argument.dims]
            if argument.dtype not in ("float16", "bfloat16", "float32"):
                continue  # integers are drawn by the test
            drawn = torch.randn(shape, generator=generator, dtype=torch.float64) / max(1, shape[-1]) ** 0.5
            found[argument.name] = drawn.to(getattr(torch, argument.dtype))
    return found


def relative_error(result: np.ndarray, oracle: Tensor) -> float:
    """Return the largest difference, relative to the largest number of the oracle."""
    given = torch.from_numpy(result.astype(np.float64))
    assert given.shape == oracle.shape
    return float((given - oracle).abs().max() / oracle.abs().max().clamp_min(1e-30))


def error_in_interpreter(kernel: Kernel, problem: Problem, tiling: Tiling, extents: Mapping[str, int], attributes=None):
    """Return the relative error of a template's result beside its op in float64."""
    assert kernel.fits(problem, tiling, "sm_90a") is None
    tensors = operands(kernel, problem, tiling, extents)
    result = interpret(kernel, problem, tiling, {name: to_array(tensor) for name, tensor in tensors.items()})
    oracle = evaluate(get_op(kernel.op), {name: tensor.double() for name, tensor in tensors.items()}, attributes or {})
    return relative_error(next(iter(result.values())), oracle)
