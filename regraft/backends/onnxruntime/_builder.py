"""The core operations in ONNX Runtime's own operators, and in a form that holds no buffer of all scores."""

import math
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import onnx_ir as ir

from regraft.frontends.onnx import AttentionBuilder, Sym

CONTRIB: Final = "com.microsoft"

QUERIES: Final = 512
"""Up to so many queries attend at once; below, every block turns keys and values again for too little work."""

CAUSAL_QUERIES: Final = 256
"""The same where a block leaves out the keys behind it, which pays for that."""

LEAST: Final = -1e30
"""Numbers below it, added to scores, leave as little of them as it does."""

HIDDEN: Final = -1e34
"""In the place of -inf, which times zero would be no number: hidden also beside the lowest finite numbers."""

LEAST_SCALE: Final = 1e-3
"""Below it, 1 / scale times `HIDDEN` may overflow."""

_END: Final = 2**62


@dataclass(frozen=True)
class Operator:
    """What all calls of the operator have in common: [batch, keys, heads · n] and the numbers."""

    k: ir.Value
    v: ir.Value
    heads: int
    scale: float


class OnnxRuntimeBuilder(AttentionBuilder):
    """`Builder[Sym]` with `com.microsoft.MultiHeadAttention`: on CPUs it exists for single precision only."""

    def attention(
        self,
        q: Sym,
        k: Sym,
        v: Sym,
        mask: Sym | None,
        bias: Sym | None,
        *,
        heads: int,
        kv_heads: int,
        split: bool,
        scale: float,
        causal: bool,
    ) -> Sym:
        if q.dtype != "float32":
            return super().attention(
                q, k, v, mask, bias, heads=heads, kv_heads=kv_heads, split=split, scale=scale, causal=causal
            )
        offset = self._offset(q, k, mask, bias, causal=causal, split=split)
        if kv_heads != heads:
            k, v = self._repeated(k, heads, kv_heads, split), self._repeated(v, heads, kv_heads, split)
        elif not split:
            k, v = self._merge_heads(k), self._merge_heads(v)
        packed = q if split else self._merge_heads(q)
        y = self._own(packed, k, v, offset, heads, float(scale), causal=causal)
        if offset is not None and (mask is not None or bias is not None):
            y = self._unseen_is_zero(y, offset, heads, split=True)
        return y if split else self.permute(self.reshape(y, (0, 0, heads, -1)), (0, 2, 1, 3))

    def _own(self, q: Sym, k: Sym, v: Sym, offset: Sym | None, heads: int, scale: float, *, causal: bool) -> Sym:
        """The operator; with an offset it has a buffer of scores, so that many queries are walked by blocks."""
        operator = Operator(self._plain(k), self._plain(v), heads, scale)
        packed = self._plain(q)
        if offset is None:
            return Sym(self._call(operator, packed, None), q.dtype, q.is_fixed)
        wide = self._plain(self._per_pair(offset, q, k, split=True))
        block = CAUSAL_QUERIES if causal else QUERIES
        many = self._node("Greater", [self._shape(q, 1, 2), self._integers([block])])
        walked = self._body([], lambda: [self._walk(operator, packed, wide, block, causal=causal)])
        at_once = self._body([], lambda: [self._call(operator, packed, wide)])
        return Sym(self._node("If", [many], then_branch=walked, else_branch=at_once), q.dtype, q.is_fixed)

    def _call(self, operator: Operator, q: ir.Value, offset: ir.Value | None) -> ir.Value:
        operands = [q, operator.k, operator.v, *([] if offset is None else [None, None, offset])]
        attributes = {"num_heads": operator.heads, "scale": operator.scale}
        return self._node("MultiHeadAttention", operands, domain=CONTRIB, **attributes)

    def _walk(self, operator: Operator, q: ir.Value, offset: ir.Value, block: int, *, causal: bool) -> ir.Value:
        """Attention of more queries than a block has, a block at a time.

        All blocks are equally long, as a loop needs: the last one begins early, and of it only the end is used.
        """
        size, axis = self._integers([block]), self._integers([1])
        count = self._node("Shape", [q], start=1, end=2)
        blocks = self._node("Div", [self._node("Add", [count, self._integers([block - 1])]), size])
        trips = self._node("Squeeze", [blocks])
        last = self._node("Sub", [count, size])
        body = self._loop_body(operator, q, offset, size, last, causal=causal)
        found = self._node("Loop", [trips, self._constant(np.asarray(True))], body=body)
        rows = self._node("Transpose", [found], perm=[1, 0, 2, 3])  # [batch, blocks, block, width]
        width = self._node("Shape", [found], start=3, end=4)
        whole = self._node("Reshape", [rows, self._node("Concat", [self._integers([0, -1]), width], axis=0)])
        done = self._node("Mul", [self._node("Sub", [blocks, self._integers([1])]), size])
        first = self._node("Slice", [whole, self._integers([0]), done, axis])
        rest = self._node("Slice", [whole, self._node("Sub", [done, count]), self._integers([_END]), axis])
        return self._node("Concat", [first, rest], axis=1)

    def _loop_body(
        self, operator: Operator, q: ir.Value, offset: ir.Value, size: ir.Value, last: ir.Value, *, causal: bool
    ) -> ir.Graph:
        place = ir.Value(name=f"{self._prefix}place", type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape([]))
        go_on = ir.Value(name=f"{self._prefix}go_on", type=ir.TensorType(ir.DataType.BOOL), shape=ir.Shape([]))

        def steps() -> list[ir.Value]:
            zero, rows = self._integers([0]), self._integers([1])
            index = self._node("Reshape", [place, self._integers([1])])
            start = self._node("Min", [self._node("Mul", [index, size]), last])
            end = self._node("Add", [start, size])
            some = self._node("Slice", [q, start, end, rows])
            offsets = self._node("Slice", [offset, start, end, self._integers([2])])
            seen = operator
            if causal:  # no query of the block sees a key behind its end
                k, v = (self._node("Slice", [x, zero, end, rows]) for x in (operator.k, operator.v))
                seen = replace(operator, k=k, v=v)
                offsets = self._node("Slice", [offsets, zero, end, self._integers([3])])
            return [self._node("Identity", [go_on]), self._call(seen, some, offsets)]

        return self._body([place, go_on], steps)

    def _repeated(self, x: Sym, heads: int, kv_heads: int, split: bool) -> Sym:
        """[batch, keys, heads · n] from fewer heads."""
        apart = self.permute(self.reshape(x, (0, 0, kv_heads, -1)), (0, 2, 1, 3)) if split else x
        return self._merge_heads(self._repeat_heads(apart, heads, kv_heads))


class KeyMaskBuilder(OnnxRuntimeBuilder):
    """`OnnxRuntimeBuilder` for masks of [batch, 1, 1, keys]: they become one more feature of the heads.

    scale · [q, 1 / scale] · [k, offset]ᵀ = scale · q · kᵀ + offset, and the operator needs no buffer of scores.
    """

    def _own(self, q: Sym, k: Sym, v: Sym, offset: Sym | None, heads: int, scale: float, *, causal: bool) -> Sym:
        if offset is None or causal or abs(scale) < LEAST_SCALE:
            return super()._own(q, k, v, offset, heads, scale, causal=causal)
        hidden = self.equal(offset, self.scalar(-math.inf, offset))
        low = self.maximum(offset, self.scalar(LEAST, offset))
        finite = self.where(hidden, self.scalar(HIDDEN, offset), low)
        by_key = self._per_head(self._node("Reshape", [finite.value, self._integers([0, -1, 1, 1])]), k, heads)
        one = self._per_head(self.scalar(1 / scale, q).value, q, heads)
        return super()._own(
            self._with_feature(q, one, heads), self._with_feature(k, by_key, heads), v, None, heads, scale, causal=False
        )

    def _per_head(self, value: ir.Value, like: Sym, heads: int) -> ir.Value:
        """The value for each head of each row of [batch, rows, heads · n]: [batch, rows, heads, 1]."""
        shape = self._node("Concat", [self._shape(like, 0, 2), self._integers([heads, 1])], axis=0)
        return self._node("Expand", [value, shape])

    def _with_feature(self, x: Sym, feature: ir.Value, heads: int) -> Sym:
        apart = self.reshape(x, (0, 0, heads, -1))
        wider = self._node("Concat", [self._plain(apart), feature], axis=-1)
        return self.reshape(Sym(wider, x.dtype, x.is_fixed), (0, 0, -1))
