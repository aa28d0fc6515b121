"""A captured PyTorch program in the core operators that are imported into TVM: structured ops by their meaning.

The integer product, for which torch has three forms, is one operator here, so that it stays one of integers.
"""

import warnings
from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor
from torch.export import ExportedProgram

from regraft.backends._again import export_again
from regraft.backends.tvm._calls import apply_calls, planned_calls, traced_call
from regraft.backends.tvm._maker import Maker
from regraft.frontends.torch import FxGraph
from regraft.frontends.torch.library import torch_op
from regraft.ops import AttributeValue, Op, TorchBuilder, all_ops

_LIBRARY: Final = torch.library.Library("regraft_tvm", "DEF")  # its operators vanish when it is collected
_LIBRARY.define("linear_integer(Tensor codes, Tensor weight, Tensor zero_point) -> Tensor")
_LIBRARY.define("matmul_integer(Tensor codes, Tensor weight, Tensor zero_point) -> Tensor")


def _linear_type(codes: Tensor, weight: Tensor, zero_point: Tensor) -> Tensor:
    del zero_point
    return codes.new_empty((*codes.shape[:-1], weight.shape[0]), dtype=torch.int32)


def _matmul_type(codes: Tensor, weight: Tensor, zero_point: Tensor) -> Tensor:
    del zero_point
    return codes.new_empty((*codes.shape[:-1], weight.shape[-1]), dtype=torch.int32)


_LIBRARY.impl("linear_integer", _linear_type, "Meta")
_LIBRARY.impl("matmul_integer", _matmul_type, "Meta")


class TvmBuilder(TorchBuilder):
    """`Builder[Tensor]` for tracing: integer products stay one operator."""

    def linear_integer(self, x: Tensor, weight: Tensor, zero_point: Tensor) -> Tensor:
        return torch.ops.regraft_tvm.linear_integer(x, weight, zero_point)

    def matmul_integer(self, a: Tensor, b: Tensor, zero_point: Tensor) -> Tensor:
        return torch.ops.regraft_tvm.matmul_integer(a, b, zero_point)


def meaning(op: Op) -> Callable[..., Tensor]:
    """Return the op as a function of torch tensors that is traced as its core operations."""
    builder = TvmBuilder()

    def compute(*operands: Tensor | None, **attributes: AttributeValue) -> Tensor:
        return op.decompose(builder, *operands, **attributes)

    return compute


def in_core_operators(program: ExportedProgram) -> ExportedProgram:
    """Return the program in core operators of ATen and the two integer products."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return program.run_decompositions()


def program_of(graph: FxGraph, maker: Maker) -> ExportedProgram:
    """Return a captured program in core operators and calls of kernels.

    Raises:
        ExportError: when torch cannot trace it again.
    """
    calls = planned_calls(graph, maker)
    instead: dict[Any, Callable[..., Tensor]] = {torch_op(name): meaning(op) for name, op in all_ops().items()}
    instead[torch.ops.regraft_kernels.run.default] = traced_call
    return in_core_operators(export_again(graph, instead, lambda module: apply_calls(module, calls)))
