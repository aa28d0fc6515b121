"""The core operations as nodes of an ONNX function: standard operators only, for every opset from 13 on.

Two things depend on the opset. Reductions take their axis as an attribute or as an operand. And before opset 15 there
is no CastLike: then a constant of "the type of that operand" is written in the element type that the operand has at the
call, so that the body holds for that type alone (`OnnxBuilder.is_typed` says so).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

import numpy as np
import onnx_ir as ir

from regraft.errors import DtypeError
from regraft.frontends.onnx._tensors import onnx_dtype
from regraft.ops import erf_gelu, tanh_gelu

CAST_LIKE_SINCE: Final = 15
_SPLIT_COUNT_SINCE: Final = 18
_SHAPE_RANGE_SINCE: Final = 15
_PAD_AXES_SINCE: Final = 18
_REDUCE_AXES_INPUT_SINCE: Final = 18


@dataclass(frozen=True, slots=True)
class Sym:
    """A value of the function's body.

    Attributes:
        value: the native value.
        dtype: its element type by name; None when unknown.
        is_fixed: whether it has that type at every call, and not only at the one that the function is made for.
        stored_transposed: whether it holds the transpose of what it stands for (the weight of a linear layer).
    """

    value: ir.Value
    dtype: str | None
    is_fixed: bool = False
    stored_transposed: bool = False


class OnnxBuilder:
    """`Builder[Sym]`: appends nodes to a list."""

    def __init__(self, opset: int) -> None:
        self.opset = opset
        self.nodes: list[ir.Node] = []
        self.is_typed = False
        self._prefix, self._bodies = "step", 0
        self._constants: dict[tuple[Any, ...], ir.Value] = {}

    def linear(self, x: Sym, weight: Sym) -> Sym:
        return self._result(x, "MatMul", [self._plain(x), self._right(weight)])

    def matmul(self, a: Sym, b: Sym) -> Sym:
        return self._like(a, "MatMul", a, b)

    def linear_integer(self, x: Sym, weight: Sym, zero_point: Sym) -> Sym:
        operands = [self._plain(x), self._right(weight), self._plain(zero_point)]
        return Sym(self._node("MatMulInteger", operands), "int32", is_fixed=True)

    def matmul_integer(self, a: Sym, b: Sym, zero_point: Sym) -> Sym:
        operands = [self._plain(operand) for operand in (a, b, zero_point)]
        return Sym(self._node("MatMulInteger", operands), "int32", is_fixed=True)

    def dynamic_quantize(self, x: Sym) -> tuple[Sym, Sym, Sym]:
        is_single = x.is_fixed and x.dtype == "float32"
        single = x if is_single else self.cast(x, "float32")  # the only type that the operator takes
        codes, scale, zero = self._nodes("DynamicQuantizeLinear", [self._plain(single)], 3)
        step = Sym(scale, "float32", is_fixed=True)
        step = step if is_single else self.cast_like(step, x)
        return Sym(codes, "uint8", is_fixed=True), step, Sym(zero, "uint8", is_fixed=True)

    def linear_after(self, x: Sym, weight: Sym, bias: Sym | None, earlier: Sym | None) -> Sym:
        if earlier is None:
            y = self.linear(x, weight)
            return y if bias is None else self.add(y, bias)
        # Nothing of what is earlier, behind the bias: a dependency that no runtime can fold, and that costs nothing.
        nothing = self._node("Slice", [earlier.value, *map(self._integers, ([0, 0], [0, 1], [0, 1]))])
        nothing = self._node("Squeeze", [nothing, self._integers([1])])
        term = self.reshape(self.scalar(0.0, x), [1]) if bias is None else bias
        term_value = self._node("Concat", [self._plain(term), nothing], axis=0)
        return self._result(x, "Gemm", [self._plain(x), self._right(weight), term_value])

    def accumulate(self, total: Sym, x: Sym, weight: Sym) -> Sym:
        return self._result(x, "Gemm", [self._plain(x), self._right(weight), self._plain(total)])

    def add_to(self, total: Sym, x: Sym) -> Sym:
        return self.add(total, x)

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

    def gelu(self, x: Sym, *, tanh: bool) -> Sym:
        # Spelled out: ONNX Runtime fuses this, and expands the operator Gelu (opset 20) to an Erf it lacks in double.
        return tanh_gelu(self, x) if tanh else erf_gelu(self, x)

    def silu(self, x: Sym) -> Sym:
        return self.mul(x, self.sigmoid(x))

    def round(self, x: Sym) -> Sym:
        return self._like(x, "Round", x)

    def floor_div(self, x: Sym, divisor: int) -> Sym:
        return self._like(x, "Div", x, self.scalar(divisor, x))

    def modulo(self, x: Sym, divisor: int) -> Sym:
        return self._like(x, "Mod", x, self.scalar(divisor, x))

    def equal(self, a: Sym, b: Sym) -> Sym:
        return Sym(self._node("Equal", [self._plain(a), self._plain(b)]), "bool", is_fixed=True)

    def where(self, condition: Sym, a: Sym, b: Sym) -> Sym:
        return self._like(a, "Where", condition, a, b)

    def cast(self, x: Sym, dtype: str) -> Sym:
        return Sym(self._node("Cast", [self._plain(x)], to=int(onnx_dtype(dtype))), dtype, is_fixed=True)

    def cast_like(self, x: Sym, like: Sym) -> Sym:
        if like.is_fixed and like.dtype is not None:
            return self.cast(x, like.dtype)
        if self.opset >= CAST_LIKE_SINCE:
            return self._result(like, "CastLike", [self._plain(x), like.value])
        return self.cast(x, self._typed(like))

    def widen(self, x: Sym) -> Sym:
        return x if x.is_fixed and x.dtype in ("float32", "float64") else self.cast(x, "float32")

    def straight_through(self, value: Sym, smooth: Callable[[], Sym]) -> Sym:
        del smooth  # for derivatives, which a file has not
        return value

    def scalar(self, value: float, like: Sym) -> Sym:
        if self.opset >= CAST_LIKE_SINCE and not like.is_fixed:
            # In double precision until the type is known, so that no digit is lost on the way to it.
            wide = self._constant(np.asarray(value, np.float64))
            return self._result(like, "CastLike", [wide, like.value])
        dtype = self._typed(like)
        content = np.asarray(value).astype(onnx_dtype(dtype).numpy())
        return Sym(self._constant(content), dtype, is_fixed=like.is_fixed)

    def table(self, values: Sequence[float], dtype: str) -> Sym:
        content = np.asarray(values).astype(onnx_dtype(dtype).numpy())
        return Sym(self._constant(content), dtype, is_fixed=True)

    def reduce_sum(self, x: Sym, axis: int) -> Sym:
        # The axis is an operand since opset 13.
        return self._result(x, "ReduceSum", [self._plain(x), self._integers([axis])], keepdims=1)

    def reduce_max(self, x: Sym, axis: int) -> Sym:
        return self._reduce("ReduceMax", x, axis)

    def reduce_min(self, x: Sym, axis: int) -> Sym:
        return self._reduce("ReduceMin", x, axis)

    def reduce_mean(self, x: Sym, axis: int) -> Sym:
        return self._reduce("ReduceMean", x, axis)

    def softmax(self, x: Sym, axis: int) -> Sym:
        return self._result(x, "Softmax", [self._plain(x)], axis=axis)

    def swap_last(self, x: Sym) -> Sym:
        if x.stored_transposed:
            return Sym(x.value, x.dtype, x.is_fixed)
        return self._result(x, "Transpose", [self._plain(x)], perm=[1, 0])

    def permute(self, x: Sym, order: Sequence[int]) -> Sym:
        rank = len(order)
        return self._result(x, "Transpose", [self._plain(x)], perm=[axis % rank for axis in order])

    def reshape(self, x: Sym, shape: Sequence[int]) -> Sym:
        return self._result(x, "Reshape", [self._plain(x), self._integers(shape)])

    def lead(self, x: Sym, count: int) -> Sym:
        if not count:
            return x
        return self._result(x, "Unsqueeze", [self._plain(x), self._integers(list(range(count)))])

    def as_rows(self, x: Sym) -> Sym:
        shape = self._node("Concat", [self._integers([-1]), self._shape(x, -1, None)], axis=0)
        return self._result(x, "Reshape", [self._plain(x), shape])

    def like_rows_of(self, y: Sym, x: Sym) -> Sym:
        shape = self._node("Concat", [self._shape(x, 0, -1), self._shape(y, -1, None)], axis=0)
        return self._result(y, "Reshape", [self._plain(y), shape])

    def concat(self, parts: Sequence[Sym], axis: int) -> Sym:
        return self._result(parts[0], "Concat", [self._plain(part) for part in parts], axis=axis)

    def slice(self, x: Sym, axis: int, start: int, stop: int) -> Sym:
        return Sym(self._slice(self._plain(x), start, stop, axis), x.dtype, x.is_fixed)

    def split(self, x: Sym, axis: int, count: int) -> Sequence[Sym]:
        if count == 1:
            return [x]
        axis = 1 - axis if x.stored_transposed else axis
        values = self._split(x.value, axis, count)
        return [Sym(value, x.dtype, x.is_fixed, x.stored_transposed) for value in values]

    def pad_last(self, x: Sym, count: int) -> Sym:
        if self.opset >= _PAD_AXES_SINCE:
            pads, axes = self._integers([0, count]), self._integers([-1])
            return self._result(x, "Pad", [self._plain(x), pads, None, axes])
        # Without axes, Pad needs the rank; zeros of the leading extents, appended, do not.
        shape = self._node("Concat", [self._shape(x, 0, -1), self._integers([count])], axis=0)
        zeros = self._node("Expand", [self.scalar(0.0, x).value, shape])
        return self._result(x, "Concat", [self._plain(x), zeros], axis=-1)

    def gather(self, x: Sym, indices: Sym, axis: int) -> Sym:
        return self._result(x, "Gather", [self._plain(x), self._plain(indices)], axis=axis)

    def scatter(self, x: Sym, indices: Sym, updates: Sym) -> Sym:
        operands = [self._plain(x), self._plain(indices), self._plain(updates)]
        return self._result(x, "ScatterElements", operands, axis=-1)

    def top_k(self, x: Sym, k: int) -> tuple[Sym, Sym]:
        values, places = self._nodes("TopK", [self._plain(x), self._integers([k])], 2, axis=-1)
        return Sym(values, x.dtype, x.is_fixed), Sym(places, "int64", is_fixed=True)

    def result(self, x: Sym) -> ir.Value:
        """Return the value that the function returns; an operand that comes back as it was goes through Identity."""
        return self._node("Identity", [self._plain(x)]) if x.value.producer() is None else x.value

    def _like(self, result_of: Sym, op_type: str, *operands: Sym) -> Sym:
        return self._result(result_of, op_type, [self._plain(operand) for operand in operands])

    def _result(self, like: Sym, op_type: str, inputs: Sequence[ir.Value | None], **attributes: Any) -> Sym:
        """The result of a node, of the same element type as `like`."""
        return Sym(self._node(op_type, inputs, **attributes), like.dtype, like.is_fixed)

    def _plain(self, x: Sym) -> ir.Value:
        """The operand as the op means it: a weight that is stored transposed is turned back."""
        return self._node("Transpose", [x.value], perm=[1, 0]) if x.stored_transposed else x.value

    def _right(self, weight: Sym) -> ir.Value:
        """The transpose of a weight: the right operand of a product."""
        return weight.value if weight.stored_transposed else self._node("Transpose", [weight.value], perm=[1, 0])

    def _typed(self, like: Sym) -> str:
        """The element type of an operand; the body then holds for that type alone."""
        self.is_typed |= not like.is_fixed
        if like.dtype is None:
            raise DtypeError(
                f"opset {self.opset} has no CastLike: the element type of {like.value.name} must be known",
                hint=f"convert the model to opset {CAST_LIKE_SINCE} or later",
            )
        return like.dtype

    def _reduce(self, op_type: str, x: Sym, axis: int) -> Sym:
        if self.opset >= _REDUCE_AXES_INPUT_SINCE:
            return self._result(x, op_type, [self._plain(x), self._integers([axis])], keepdims=1)
        return self._result(x, op_type, [self._plain(x)], axes=[axis], keepdims=1)

    def _shape(self, x: Sym, start: int, stop: int | None) -> ir.Value:
        """Extents start:stop of x, as a 1-D operand."""
        if self.opset >= _SHAPE_RANGE_SINCE:
            ends = {"start": start} if stop is None else {"start": start, "end": stop}
            return self._node("Shape", [self._plain(x)], **ends)
        last = np.iinfo(np.int64).max if stop is None else stop
        return self._slice(self._node("Shape", [self._plain(x)]), start, int(last), 0)

    def _slice(self, x: ir.Value, start: int, stop: int, axis: int) -> ir.Value:
        return self._node("Slice", [x, self._integers([start]), self._integers([stop]), self._integers([axis])])

    def _split(self, x: ir.Value, axis: int, count: int) -> Sequence[ir.Value]:
        if self.opset >= _SPLIT_COUNT_SINCE:
            return self._nodes("Split", [x], count, axis=axis, num_outputs=count)
        extent = self._slice(self._node("Shape", [x]), axis, axis + 1, 0)
        rounded = self._node("Add", [extent, self._integers([count - 1])])
        step = self._node("Div", [rounded, self._integers([count])])
        ends = [self._node("Mul", [step, self._integers([place])]) for place in range(count + 1)]
        return [self._node("Slice", [x, start, end, self._integers([axis])]) for start, end in pairwise(ends)]

    def _integers(self, values: Sequence[int]) -> ir.Value:
        return self._constant(np.asarray(values, np.int64))

    def _constant(self, array: np.ndarray) -> ir.Value:
        """The value of a Constant node; equal contents share one."""
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            self._constants[key] = self._node("Constant", [], value=ir.tensor(array))
        return self._constants[key]

    def _node(self, op_type: str, inputs: Sequence[ir.Value | None], **attributes: Any) -> ir.Value:
        return self._nodes(op_type, inputs, 1, **attributes)[0]

    def _nodes(
        self, op_type: str, inputs: Sequence[ir.Value | None], count: int, domain: str = "", **attributes: Any
    ) -> Sequence[ir.Value]:
        """Append a node; return its outputs."""
        place = len(self.nodes)
        name = f"{self._prefix}{place}"
        names = [name] if count == 1 else [f"{name}_{output}" for output in range(count)]
        outputs = [ir.Value(name=name) for name in names]
        label = f"n{name.removeprefix('step')}"
        node = ir.node(op_type, inputs, attributes or None, domain=domain, outputs=outputs, name=label)
        self.nodes.append(node)
        return outputs

    def _body(self, inputs: Sequence[ir.Value], build: Callable[[], Sequence[ir.Value]]) -> ir.Graph:
        """Return what is built as a nested body (of If, Loop or Scan), which may read all that was built before."""
        outer, constants, prefix = self.nodes, self._constants, self._prefix
        self._bodies += 1
        self.nodes, self._constants, self._prefix = [], dict(constants), f"{prefix}{len(outer)}b{self._bodies}_"
        outputs = build()
        body = ir.Graph(inputs, outputs, nodes=self.nodes, name=self._prefix.rstrip("_"))
        self.nodes, self._constants, self._prefix = outer, constants, prefix
        return body


def operand_syms(names: Sequence[str], dtypes: Mapping[str, str], transposed: Sequence[str]) -> list[Sym]:
    """Return one value an operand, to be inputs of a function."""
    return [Sym(ir.Value(name=name), dtypes.get(name), stored_transposed=name in transposed) for name in names]
