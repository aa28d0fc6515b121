"""The core operations as nodes of an ONNX function: standard operators only, for every opset from 13 on.

Two things depend on the opset. Reductions take their axis as an attribute or as an operand. And before opset 15 there
is no CastLike: then a constant of "the type of that operand" is written in the element type that the operand has at the
call, so that the body holds for that type alone (`OnnxBuilder.is_typed` says so).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import onnx_ir as ir

from regraft.errors import DtypeError
from regraft.frontends.onnx._tensors import onnx_dtype

_CAST_LIKE_SINCE: Final = 15
_SHAPE_RANGE_SINCE: Final = 15
_PAD_AXES_SINCE: Final = 18
_REDUCE_AXES_INPUT_SINCE: Final = 18


@dataclass(frozen=True, slots=True)
class Sym:
    """A value of the function's body.

    Attributes:
        value: the native value.
        dtype: its element type by name at this call; None when unknown.
        stored_transposed: whether it holds the transpose of what it stands for (the weight of a linear layer).
    """

    value: ir.Value
    dtype: str | None
    stored_transposed: bool = False


class OnnxBuilder:
    """`Builder[Sym]`: appends nodes to a list."""

    def __init__(self, opset: int) -> None:
        self.opset = opset
        self.nodes: list[ir.Node] = []
        self.is_typed = False
        self._constants: dict[tuple[Any, ...], ir.Value] = {}

    def linear(self, x: Sym, weight: Sym) -> Sym:
        turned = weight.value if weight.stored_transposed else self._node("Transpose", [weight.value], perm=[1, 0])
        return self._like(x, "MatMul", x, Sym(turned, weight.dtype))

    def matmul(self, a: Sym, b: Sym) -> Sym:
        return self._like(a, "MatMul", a, b)

    def matmul_integer(self, a: Sym, b: Sym, a_zero_point: int) -> Sym:
        zero = self._constant(np.asarray(a_zero_point, np.uint8))
        return Sym(self._node("MatMulInteger", [self._plain(a), self._plain(b), zero]), "int32")

    def add(self, a: Sym, b: Sym) -> Sym:
        return self._like(a, "Add", a, b)

    def sub(self, a: Sym, b: Sym) -> Sym:
        return self._like(a, "Sub", a, b)

    def mul(self, a: Sym, b: Sym) -> Sym:
        return self._like(a, "Mul", a, b)

    def div(self, a: Sym, b: Sym) -> Sym:
        return self._like(a, "Div", a, b)

    def maximum(self, a: Sym, b: Sym) -> Sym:
        return self._like(a, "Max", a, b)

    def minimum(self, a: Sym, b: Sym) -> Sym:
        return self._like(a, "Min", a, b)

    def neg(self, x: Sym) -> Sym:
        return self._like(x, "Neg", x)

    def abs(self, x: Sym) -> Sym:
        return self._like(x, "Abs", x)

    def sqrt(self, x: Sym) -> Sym:
        return self._like(x, "Sqrt", x)

    def exp(self, x: Sym) -> Sym:
        return self._like(x, "Exp", x)

    def erf(self, x: Sym) -> Sym:
        return self._like(x, "Erf", x)

    def tanh(self, x: Sym) -> Sym:
        return self._like(x, "Tanh", x)

    def sigmoid(self, x: Sym) -> Sym:
        return self._like(x, "Sigmoid", x)

    def relu(self, x: Sym) -> Sym:
        return self._like(x, "Relu", x)

    def round(self, x: Sym) -> Sym:
        return self._like(x, "Round", x)

    def equal(self, a: Sym, b: Sym) -> Sym:
        return Sym(self._node("Equal", [self._plain(a), self._plain(b)]), "bool")

    def where(self, condition: Sym, a: Sym, b: Sym) -> Sym:
        return self._like(a, "Where", condition, a, b)

    def cast(self, x: Sym, dtype: str) -> Sym:
        return Sym(self._node("Cast", [self._plain(x)], to=int(onnx_dtype(dtype))), dtype)

    def cast_like(self, x: Sym, like: Sym) -> Sym:
        if self.opset >= _CAST_LIKE_SINCE:
            return Sym(self._node("CastLike", [self._plain(x), like.value]), like.dtype)
        return self.cast(x, self._typed(like))

    def scalar(self, value: float, like: Sym) -> Sym:
        if self.opset >= _CAST_LIKE_SINCE:
            # In double precision until the type is known, so that no digit is lost on the way to it.
            wide = self._constant(np.asarray(value, np.float64))
            return Sym(self._node("CastLike", [wide, like.value]), like.dtype)
        dtype = self._typed(like)
        return Sym(self._constant(np.asarray(value).astype(onnx_dtype(dtype).numpy())), dtype)

    def reduce_sum(self, x: Sym, axis: int) -> Sym:
        axes = self._integers([axis])  # an operand since opset 13
        return Sym(self._node("ReduceSum", [self._plain(x), axes], keepdims=1), x.dtype)

    def reduce_max(self, x: Sym, axis: int) -> Sym:
        return self._reduce("ReduceMax", x, axis)

    def reduce_mean(self, x: Sym, axis: int) -> Sym:
        return self._reduce("ReduceMean", x, axis)

    def softmax(self, x: Sym, axis: int) -> Sym:
        return Sym(self._node("Softmax", [self._plain(x)], axis=axis), x.dtype)

    def swap_last(self, x: Sym) -> Sym:
        return Sym(self._node("Transpose", [self._plain(x)], perm=[1, 0]), x.dtype)

    def permute(self, x: Sym, order: Sequence[int]) -> Sym:
        rank = len(order)
        return Sym(self._node("Transpose", [self._plain(x)], perm=[axis % rank for axis in order]), x.dtype)

    def reshape(self, x: Sym, shape: Sequence[int]) -> Sym:
        return Sym(self._node("Reshape", [self._plain(x), self._integers(shape)]), x.dtype)

    def as_rows(self, x: Sym) -> Sym:
        shape = self._node("Concat", [self._integers([-1]), self._shape(x, -1, None)], axis=0)
        return Sym(self._node("Reshape", [self._plain(x), shape]), x.dtype)

    def like_rows_of(self, y: Sym, x: Sym) -> Sym:
        shape = self._node("Concat", [self._shape(x, 0, -1), self._shape(y, -1, None)], axis=0)
        return Sym(self._node("Reshape", [self._plain(y), shape]), y.dtype)

    def concat(self, parts: Sequence[Sym], axis: int) -> Sym:
        return Sym(self._node("Concat", [self._plain(part) for part in parts], axis=axis), parts[0].dtype)

    def slice(self, x: Sym, axis: int, start: int, stop: int) -> Sym:
        return Sym(self._slice(self._plain(x), start, stop, axis), x.dtype)

    def pad_last(self, x: Sym, count: int) -> Sym:
        if self.opset >= _PAD_AXES_SINCE:
            pads, axes = self._integers([0, count]), self._integers([-1])
            return Sym(self._node("Pad", [self._plain(x), pads, None, axes]), x.dtype)
        # Without axes, Pad needs the rank; zeros of the leading extents, appended, do not.
        shape = self._node("Concat", [self._shape(x, 0, -1), self._integers([count])], axis=0)
        zeros = self._node("Expand", [self.scalar(0.0, x).value, shape])
        return Sym(self._node("Concat", [self._plain(x), zeros], axis=-1), x.dtype)

    def gather(self, x: Sym, indices: Sym, axis: int) -> Sym:
        return Sym(self._node("Gather", [self._plain(x), indices.value], axis=axis), x.dtype)

    def result(self, x: Sym) -> ir.Value:
        """Return the value that the function returns; an operand that comes back as it was goes through Identity."""
        return self._node("Identity", [self._plain(x)]) if x.value.producer() is None else x.value

    def _like(self, result_of: Sym, op_type: str, *operands: Sym) -> Sym:
        return Sym(self._node(op_type, [self._plain(operand) for operand in operands]), result_of.dtype)

    def _plain(self, x: Sym) -> ir.Value:
        """The operand as the op means it: a weight that is stored transposed is turned back."""
        return self._node("Transpose", [x.value], perm=[1, 0]) if x.stored_transposed else x.value

    def _typed(self, like: Sym) -> str:
        self.is_typed = True
        if like.dtype is None:
            raise DtypeError(
                f"opset {self.opset} has no CastLike: the element type of {like.value.name} must be known",
                hint=f"convert the model to opset {_CAST_LIKE_SINCE} or later",
            )
        return like.dtype

    def _reduce(self, op_type: str, x: Sym, axis: int) -> Sym:
        if self.opset >= _REDUCE_AXES_INPUT_SINCE:
            return Sym(self._node(op_type, [self._plain(x), self._integers([axis])], keepdims=1), x.dtype)
        return Sym(self._node(op_type, [self._plain(x)], axes=[axis], keepdims=1), x.dtype)

    def _shape(self, x: Sym, start: int, stop: int | None) -> ir.Value:
        """Extents start:stop of x, as a 1-D operand."""
        if self.opset >= _SHAPE_RANGE_SINCE:
            ends = {"start": start} if stop is None else {"start": start, "end": stop}
            return self._node("Shape", [self._plain(x)], **ends)
        last = np.iinfo(np.int64).max if stop is None else stop
        return self._slice(self._node("Shape", [self._plain(x)]), start, int(last), 0)

    def _slice(self, x: ir.Value, start: int, stop: int, axis: int) -> ir.Value:
        return self._node("Slice", [x, self._integers([start]), self._integers([stop]), self._integers([axis])])

    def _integers(self, values: Sequence[int]) -> ir.Value:
        return self._constant(np.asarray(values, np.int64))

    def _constant(self, array: np.ndarray) -> ir.Value:
        """The value of a Constant node; equal contents share one."""
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            self._constants[key] = self._node("Constant", [], value=ir.tensor(array))
        return self._constants[key]

    def _node(self, op_type: str, inputs: Sequence[ir.Value | None], **attributes: Any) -> ir.Value:
        output = ir.Value(name=f"step{len(self.nodes)}")
        self.nodes.append(ir.node(op_type, inputs, attributes or None, outputs=[output], name=f"n{len(self.nodes)}"))
        return output


def operand_syms(names: Sequence[str], dtypes: Mapping[str, str], transposed: Sequence[str]) -> list[Sym]:
    """Return one value an operand, to be inputs of a function."""
    return [Sym(ir.Value(name=name), dtypes.get(name), name in transposed) for name in names]
