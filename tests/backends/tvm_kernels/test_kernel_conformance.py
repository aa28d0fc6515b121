"""Every example of every op that has a CUDA kernel, through its template, beside the op in float64."""

import pytest
import torch
from kernel_oracles import relative_error, to_array

from regraft.backends.tvm._templates import interpret
from regraft.backends.tvm.kernels._registry import all_kernels
from regraft.ops import evaluate, get_op

CASES = [(name, example) for name in all_kernels() for example in get_op(name).examples]


def given(kernel, problem, tiling, tensors):
    """Return the operands in the layout and the dtypes of the kernel's arguments."""
    found = {}
    for argument in kernel.arguments(problem, tiling):
        if argument.role == "in" and argument.present:
            tensor, dims = tensors[argument.name], argument.dims
            if tensor.dim() != len(dims) or argument.name == "residual":
                fixed = [dim for dim in dims if isinstance(dim, int)]  # rows, or batch and queries, come first
                leading = [-1] if len(dims) - len(fixed) == 1 else list(tensor.shape[: len(dims) - len(fixed)])
                tensor = tensor.reshape(*leading, *fixed)
            found[argument.name] = to_array(tensor.to(getattr(torch, argument.dtype)))
    return found


@pytest.mark.parametrize(("name", "example"), CASES, ids=[f"{name}: {example.name}" for name, example in CASES])
def test_every_example_is_computed_or_refused_with_a_reason(name, example):
    kernel, op = all_kernels()[name], get_op(name)
    tensors, attributes = example.tensors(), example.attributes or {}
    shapes = {operand: tuple(tensor.shape) for operand, tensor in tensors.items()}
    problem = kernel.problem(shapes, attributes, "float32")
    tiling = kernel.default(problem, "sm_80")
    reason = kernel.fits(problem, tiling, "sm_80")
    if attributes.get("per_row") == 0 or attributes.get("activations") == 1:
        assert reason is not None  # one step for all rows, where the kernels have one for each
        return
    assert reason is None
    result = interpret(kernel, problem, tiling, given(kernel, problem, tiling, tensors))["y"]
    oracle = evaluate(op, tensors, attributes)
    rounds = name.startswith("int8") or attributes.get("activations", 0) != 0
    assert relative_error(result.reshape(oracle.shape), oracle) < (2e-2 if rounds else 2e-5)
