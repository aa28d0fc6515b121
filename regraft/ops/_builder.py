"""The core operations that every structured op is written in, once.

A `Builder` is an interpreter of those operations: over torch tensors (eager, the float64 oracle), over the body of an
ONNX function, over a TVM program. Extents are static numbers or taken from operands; nothing depends on data.
"""

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

V = TypeVar("V")


class Builder(Protocol[V]):
    """About forty operations. Axes may be negative. Element types follow torch's promotion only where stated."""

    # Products
    def linear(self, x: V, weight: V) -> V:
        """x · weightᵀ; x [..., in], weight [out, in]. The one operation whose weight a backend may store transposed."""
        ...

    def matmul(self, a: V, b: V) -> V:
        """a · b over the last two dims, batched over the others with broadcasting."""
        ...

    def linear_integer(self, x: V, weight: V, zero_point: V) -> V:
        """(x - zero_point) · weightᵀ in int32; x uint8 [..., in], weight int8 [out, in], zero_point uint8 of rank 0.

        Like `linear`, its weight may be stored transposed.
        """
        ...

    def matmul_integer(self, a: V, b: V, zero_point: V) -> V:
        """(a - zero_point) · b in int32, block by block; a uint8 [blocks, rows, in], b int8 [blocks, in, out].

        The zero point is uint8 of rank 0.
        """
        ...

    def dynamic_quantize(self, x: V) -> tuple[V, V, V]:
        """One scale for the whole operand, as ONNX DynamicQuantizeLinear.

        Returns:
            codes uint8 like x, scale (type of x, rank 0) and zero point (uint8, rank 0), so that
            x ≈ (codes - zero_point) · scale. The range always includes 0.
        """
        ...

    def attention(
        self,
        q: V,
        k: V,
        v: V,
        mask: V | None,
        bias: V | None,
        *,
        heads: int,
        kv_heads: int,
        split: bool,
        scale: float,
        causal: bool,
    ) -> V:
        """softmax(scale · q · kᵀ + bias, masked) · v; see `regraft.ops.multi_head_attention`."""
        ...

    def linear_after(self, x: V, weight: V, bias: V | None, earlier: V | None) -> V:
        """x · weightᵀ + bias, computed when `earlier` is there; x [rows, in], `earlier` [rows, any] or None.

        The result does not depend on `earlier`: it keeps a runtime that is free to order operations from computing
        the blocks of a sum side by side, each with a buffer of its own.
        """
        ...

    def accumulate(self, total: V, x: V, weight: V) -> V:
        """total + x · weightᵀ; x [rows, in]. `total` is given up: its buffer may become that of the result."""
        ...

    def add_to(self, total: V, x: V) -> V:
        """total + x, of the shape of `total`, which is given up as in `accumulate`."""
        ...

    # Element by element, with broadcasting; both operands of one type
    def add(self, a: V, b: V) -> V: ...
    def sub(self, a: V, b: V) -> V: ...
    def mul(self, a: V, b: V) -> V: ...
    def div(self, a: V, b: V) -> V: ...
    def maximum(self, a: V, b: V) -> V: ...
    def minimum(self, a: V, b: V) -> V: ...
    def neg(self, x: V) -> V: ...
    def abs(self, x: V) -> V: ...
    def sqrt(self, x: V) -> V: ...
    def exp(self, x: V) -> V: ...
    def erf(self, x: V) -> V: ...
    def tanh(self, x: V) -> V: ...
    def sigmoid(self, x: V) -> V: ...
    def relu(self, x: V) -> V: ...
    def gelu(self, x: V, *, tanh: bool) -> V:
        """x · Φ(x), or its approximation by a hyperbolic tangent.

        Source: Hendrycks & Gimpel 2016, arXiv:1606.08415.
        """
        ...

    def silu(self, x: V) -> V:
        """x · sigmoid(x)."""
        ...

    def round(self, x: V) -> V:
        """Nearest integer, halves to even."""
        ...

    def floor_div(self, x: V, divisor: int) -> V:
        """Whole quotient of non-negative integers."""
        ...

    def modulo(self, x: V, divisor: int) -> V:
        """Remainder of non-negative integers."""
        ...

    def equal(self, a: V, b: V) -> V:
        """Booleans."""
        ...

    def where(self, condition: V, a: V, b: V) -> V: ...
    def cast(self, x: V, dtype: str) -> V:
        """Convert to the element type of that name; floating point to integer truncates and must be in range."""
        ...

    def cast_like(self, x: V, like: V) -> V:
        """Convert to the element type of another operand."""
        ...

    def widen(self, x: V) -> V:
        """Convert to single precision, for steps that half precision cannot hold; double precision may stay."""
        ...

    def straight_through(self, value: V, smooth: Callable[[], V]) -> V:
        """`value` as it is, with the derivative of `smooth`, which is called only where derivatives are taken.

        For steps that round, whose own derivative is zero almost everywhere.
        Source: Bengio et al. 2013, arXiv:1308.3432.
        """
        ...

    def scalar(self, value: float, like: V) -> V:
        """A constant of rank 0 with the element type of `like`."""
        ...

    def table(self, values: Sequence[float], dtype: str) -> V:
        """A constant of rank 1."""
        ...

    # Reductions, kept dims
    def reduce_sum(self, x: V, axis: int) -> V: ...
    def reduce_max(self, x: V, axis: int) -> V: ...
    def reduce_min(self, x: V, axis: int) -> V: ...
    def reduce_mean(self, x: V, axis: int) -> V: ...
    def softmax(self, x: V, axis: int) -> V: ...

    # Layout
    def swap_last(self, x: V) -> V:
        """Exchange the last two dims of a 2-D operand."""
        ...

    def permute(self, x: V, order: Sequence[int]) -> V:
        """Reorder dims; `order` has one entry a dim, so the rank is known."""
        ...

    def reshape(self, x: V, shape: Sequence[int]) -> V:
        """New shape; 0 keeps the extent at that place, one -1 is computed from the rest."""
        ...

    def lead(self, x: V, count: int) -> V:
        """`count` dims of extent 1 in front."""
        ...

    def as_rows(self, x: V) -> V:
        """[..., n] to [rows, n]."""
        ...

    def like_rows_of(self, y: V, x: V) -> V:
        """[rows, m] to [..., m], with the leading dims of x [..., n]."""
        ...

    def concat(self, parts: Sequence[V], axis: int) -> V: ...
    def slice(self, x: V, axis: int, start: int, stop: int) -> V: ...
    def split(self, x: V, axis: int, count: int) -> Sequence[V]:
        """`count` parts along an axis, each ceil(extent / count) long but the last, which has the rest.

        The parts of a weight of `linear` are weights of `linear`.
        """
        ...

    def pad_last(self, x: V, count: int) -> V:
        """Append `count` zeros along the last dim."""
        ...

    def gather(self, x: V, indices: V, axis: int) -> V:
        """Pick along an axis by a 1-D int64 operand."""
        ...

    def scatter(self, x: V, indices: V, updates: V) -> V:
        """x with `updates` written at the int64 places `indices` along the last dim; the places must differ.

        Both have one shape; their leading dims are those of x.
        """
        ...

    def top_k(self, x: V, k: int) -> tuple[V, V]:
        """The k largest along the last dim, in descending order, and their int64 places."""
        ...
