"""The core operations on torch tensors: an op's eager meaning and, in float64, its oracle."""

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from regraft.errors import InputError, ShapeError
from regraft.ops._attend import attend
from regraft.ops._integer import linear_integer, matmul_integer
from regraft.ops._op import AttributeValue, Op


class TorchBuilder:
    """`Builder[Tensor]`: computes at once; every operation is differentiable where it can be."""

    def linear(self, x: Tensor, weight: Tensor) -> Tensor:
        return torch.nn.functional.linear(x, weight)

    def matmul(self, a: Tensor, b: Tensor) -> Tensor:
        return torch.matmul(a, b)

    def linear_integer(self, x: Tensor, weight: Tensor, zero_point: Tensor) -> Tensor:
        return linear_integer(x, weight, zero_point)

    def matmul_integer(self, a: Tensor, b: Tensor, zero_point: Tensor) -> Tensor:
        return matmul_integer(a, b, zero_point)

    def dynamic_quantize(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if x.numel() == 0:
            return x.to(torch.uint8), x.new_ones(()), torch.zeros((), dtype=torch.uint8, device=x.device)
        low, high = x.amin().clamp_max(0), x.amax().clamp_min(0)
        scale = (high - low) / 255
        # Nothing but zeros has no range; any scale represents it.
        scale = torch.where(scale == 0, torch.ones_like(scale), scale)
        zero_point = torch.round(-low / scale).clamp(0, 255)
        codes = (torch.round(x / scale) + zero_point).clamp(0, 255)
        return codes.to(torch.uint8), scale, zero_point.to(torch.uint8)

    def attention(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Tensor | None,
        bias: Tensor | None,
        *,
        heads: int,
        kv_heads: int,
        split: bool,
        scale: float,
        causal: bool,
    ) -> Tensor:
        if not split:
            return attend(q, k, v, mask, bias, scale=scale, causal=causal)
        q, k, v = (
            x.unflatten(-1, (count, -1)).transpose(1, 2) for x, count in ((q, heads), (k, kv_heads), (v, kv_heads))
        )
        return attend(q, k, v, mask, bias, scale=scale, causal=causal).transpose(1, 2).flatten(2)

    def linear_after(self, x: Tensor, weight: Tensor, bias: Tensor | None, earlier: Tensor | None) -> Tensor:
        del earlier  # torch computes in the order of the program
        return torch.nn.functional.linear(x, weight, bias)

    def accumulate(self, total: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        if not total.dtype == x.dtype == weight.dtype:  # under autocast
            return total + torch.nn.functional.linear(x, weight)
        if torch.is_grad_enabled():
            return torch.addmm(total, x, weight.t())  # which vmap knows
        return total.addmm_(x, weight.t())

    def add_to(self, total: Tensor, x: Tensor) -> Tensor:
        # A sum does not keep its result for the backward pass, so that it may be written over.
        return total.add_(x) if total.dtype == x.dtype else total + x

    def add(self, a: Tensor, b: Tensor) -> Tensor:
        return a + b

    def sub(self, a: Tensor, b: Tensor) -> Tensor:
        return a - b

    def mul(self, a: Tensor, b: Tensor) -> Tensor:
        return a * b

    def div(self, a: Tensor, b: Tensor) -> Tensor:
        return a / b

    def maximum(self, a: Tensor, b: Tensor) -> Tensor:
        return torch.maximum(a, b)

    def minimum(self, a: Tensor, b: Tensor) -> Tensor:
        return torch.minimum(a, b)

    def neg(self, x: Tensor) -> Tensor:
        return -x

    def abs(self, x: Tensor) -> Tensor:
        return x.abs()

    def sqrt(self, x: Tensor) -> Tensor:
        return x.sqrt()

    def exp(self, x: Tensor) -> Tensor:
        return x.exp()

    def erf(self, x: Tensor) -> Tensor:
        return torch.erf(x)

    def tanh(self, x: Tensor) -> Tensor:
        return torch.tanh(x)

    def sigmoid(self, x: Tensor) -> Tensor:
        return torch.sigmoid(x)

    def relu(self, x: Tensor) -> Tensor:
        return torch.relu(x)

    def gelu(self, x: Tensor, *, tanh: bool) -> Tensor:
        return torch.nn.functional.gelu(x, approximate="tanh" if tanh else "none")

    def silu(self, x: Tensor) -> Tensor:
        return torch.nn.functional.silu(x)

    def round(self, x: Tensor) -> Tensor:
        return torch.round(x)

    def floor_div(self, x: Tensor, divisor: int) -> Tensor:
        return torch.div(x, divisor, rounding_mode="floor")

    def modulo(self, x: Tensor, divisor: int) -> Tensor:
        return torch.remainder(x, divisor)

    def equal(self, a: Tensor, b: Tensor) -> Tensor:
        return a == b

    def where(self, condition: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return torch.where(condition, a, b)

    def cast(self, x: Tensor, dtype: str) -> Tensor:
        return x.to(getattr(torch, dtype))

    def cast_like(self, x: Tensor, like: Tensor) -> Tensor:
        return x.to(like.dtype)

    def widen(self, x: Tensor) -> Tensor:
        return x if x.dtype == torch.float64 else x.float()

    def straight_through(self, value: Tensor, smooth: Callable[[], Tensor]) -> Tensor:
        if not torch.is_grad_enabled():
            return value
        slope = smooth()
        return value.detach() + (slope - slope.detach())

    def scalar(self, value: float, like: Tensor) -> Tensor:
        return torch.full((), value, dtype=like.dtype, device=like.device)

    def table(self, values: Sequence[float], dtype: str) -> Tensor:
        return torch.tensor(list(values), dtype=getattr(torch, dtype))

    def reduce_sum(self, x: Tensor, axis: int) -> Tensor:
        return x.sum(dim=axis, keepdim=True)

    def reduce_max(self, x: Tensor, axis: int) -> Tensor:
        return _of_none(x, axis, -math.inf) if x.shape[axis] == 0 else x.amax(dim=axis, keepdim=True)

    def reduce_min(self, x: Tensor, axis: int) -> Tensor:
        return _of_none(x, axis, math.inf) if x.shape[axis] == 0 else x.amin(dim=axis, keepdim=True)

    def reduce_mean(self, x: Tensor, axis: int) -> Tensor:
        return x.mean(dim=axis, keepdim=True)

    def softmax(self, x: Tensor, axis: int) -> Tensor:
        return torch.softmax(x, dim=axis)

    def swap_last(self, x: Tensor) -> Tensor:
        return x.transpose(-1, -2)

    def permute(self, x: Tensor, order: Sequence[int]) -> Tensor:
        return x.permute(*order)

    def reshape(self, x: Tensor, shape: Sequence[int]) -> Tensor:
        return x.reshape([x.shape[place] if extent == 0 else extent for place, extent in enumerate(shape)])

    def lead(self, x: Tensor, count: int) -> Tensor:
        return x[(None,) * count] if count else x

    def as_rows(self, x: Tensor) -> Tensor:
        return x.reshape(-1, x.shape[-1])

    def like_rows_of(self, y: Tensor, x: Tensor) -> Tensor:
        return y.reshape(*x.shape[:-1], y.shape[-1])

    def concat(self, parts: Sequence[Tensor], axis: int) -> Tensor:
        return torch.cat(list(parts), dim=axis)

    def slice(self, x: Tensor, axis: int, start: int, stop: int) -> Tensor:
        return x.narrow(axis, start, stop - start)

    def split(self, x: Tensor, axis: int, count: int) -> Sequence[Tensor]:
        extent = x.shape[axis]
        parts = x.split(max(1, -(-extent // count)), dim=axis)
        if len(parts) != count:
            raise ShapeError(f"an extent of {extent} has no {count} parts of {-(-extent // count)}")
        return parts

    def pad_last(self, x: Tensor, count: int) -> Tensor:
        return torch.nn.functional.pad(x, (0, count))

    def gather(self, x: Tensor, indices: Tensor, axis: int) -> Tensor:
        return torch.index_select(x.to(indices.device), axis, indices)  # a table is made on the CPU

    def scatter(self, x: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
        return torch.scatter(x, -1, indices, updates)

    def top_k(self, x: Tensor, k: int) -> tuple[Tensor, Tensor]:
        values, places = torch.topk(x, k, dim=-1)
        return values, places


def _of_none(x: Tensor, axis: int, neutral: float) -> Tensor:
    """The extremum of no numbers, which torch refuses to name; ONNX has the neutral one, too."""
    shape = [1 if place == axis % x.dim() else extent for place, extent in enumerate(x.shape)]
    return x.new_full(shape, neutral)


def evaluate(op: Op, tensors: Mapping[str, Tensor | None], attributes: Mapping[str, AttributeValue]) -> Tensor:
    """Return the op's result on tensors by operand name; in float64 operands this is the oracle of every backend.

    Raises:
        InputError: when an operand is missing, or given under a name that the op does not have.
    """
    names = [operand.name for operand in op.operands]
    needed = {operand.name for operand in op.operands if not operand.optional}
    present = {name for name, tensor in tensors.items() if tensor is not None}
    if not (needed <= present and set(tensors) <= set(names)):
        given = ", ".join(sorted(present)) or "none"
        raise InputError(f"{op.name} takes the operands {_signature(op)}; got {given}")
    return op.decompose(TorchBuilder(), *(tensors.get(name) for name in names), **attributes)


def _signature(op: Op) -> str:
    return ", ".join(f"{operand.name} (optional)" if operand.optional else operand.name for operand in op.operands)
