"""Attention as nodes of an ONNX function: the operator where the opset has it, else its two products.

Whatever the spelling, a query that sees no key gives 0: its row of scores is -inf throughout, which softmax turns into
NaN, so that its result is replaced. That costs a look at the mask, which is small, and none at the scores.
"""

import math
from typing import Final

import onnx_ir as ir

from regraft.frontends.onnx._builder import OnnxBuilder, Sym

ATTENTION_SINCE: Final = 23


class AttentionBuilder(OnnxBuilder):
    """`Builder[Sym]`, complete."""

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
        alone = causal and mask is None and bias is None
        offset = self._offset(q, k, mask, bias, causal=causal and not (alone and self._has_causal), split=split)
        y = self._attend(
            q, k, v, offset, heads=heads, kv_heads=kv_heads, split=split, scale=scale, causal=offset is None and causal
        )
        return y if offset is None or alone else self._unseen_is_zero(y, offset, heads, split)

    @property
    def _has_causal(self) -> bool:
        """Whether the spelling takes the causal mask as an attribute."""
        return self.opset >= ATTENTION_SINCE

    def _attend(
        self,
        q: Sym,
        k: Sym,
        v: Sym,
        offset: Sym | None,
        *,
        heads: int,
        kv_heads: int,
        split: bool,
        scale: float,
        causal: bool,
    ) -> Sym:
        if self.opset < ATTENTION_SINCE:
            return self._products(q, k, v, offset, heads=heads, kv_heads=kv_heads, split=split, scale=scale)
        wide = None if offset is None else self._per_pair(offset, q, k, split)
        counts = {"q_num_heads": heads, "kv_num_heads": kv_heads} if split else {}
        operands = [self._plain(q), self._plain(k), self._plain(v), None if wide is None else wide.value]
        return self._result(q, "Attention", operands, scale=float(scale), is_causal=int(causal), **counts)

    def _products(
        self, q: Sym, k: Sym, v: Sym, offset: Sym | None, *, heads: int, kv_heads: int, split: bool, scale: float
    ) -> Sym:
        if split:
            q, k, v = (
                self.permute(self.reshape(x, (0, 0, count, -1)), (0, 2, 1, 3))
                for x, count in ((q, heads), (k, kv_heads), (v, kv_heads))
            )
        if heads != kv_heads:
            k, v = self._repeat_heads(k, heads, kv_heads), self._repeat_heads(v, heads, kv_heads)
        scaled = q if scale == 1.0 else self.mul(q, self.scalar(scale, q))
        scores = self.matmul(scaled, self.permute(k, (0, 1, 3, 2)))
        y = self.matmul(self.softmax(scores if offset is None else self.add(scores, offset), -1), v)
        return self._merge_heads(y) if split else y

    def _merge_heads(self, y: Sym) -> Sym:
        """[batch, heads, rows, n] to [batch, rows, heads · n]."""
        return self.reshape(self.permute(y, (0, 2, 1, 3)), (0, 0, -1))

    def _repeat_heads(self, x: Sym, heads: int, kv_heads: int) -> Sym:
        """[batch, kv_heads, keys, n] to [batch, heads, keys, n], each head as often as queries read it."""
        times = self._integers([1, 1, heads // kv_heads, 1, 1])
        apart = self._node("Unsqueeze", [self._plain(x), self._integers([2])])
        repeated = self._node("Expand", [apart, times])
        shape = [self._shape(x, 0, 1), self._integers([heads]), self._shape(x, 2, None)]
        return self._result(x, "Reshape", [repeated, self._node("Concat", shape, axis=0)])

    def _offset(self, q: Sym, k: Sym, mask: Sym | None, bias: Sym | None, *, causal: bool, split: bool) -> Sym | None:
        """What is added to the scores: the bias, and -inf where a query must not look."""
        if causal:
            earlier = self._earlier(q, k, split)
            mask = (
                earlier if mask is None else Sym(self._node("And", [mask.value, earlier.value]), "bool", is_fixed=True)
            )
        if mask is None:
            return None if bias is None else self.cast_like(bias, q)
        hidden = self.where(mask, self.scalar(0.0, q), self.scalar(-math.inf, q))
        hidden = Sym(hidden.value, q.dtype, q.is_fixed)
        return hidden if bias is None else self.add(hidden, self.cast_like(bias, q))

    def _earlier(self, q: Sym, k: Sym, split: bool) -> Sym:
        """[1, 1, queries, keys] booleans: whether the key is not later than the query."""
        axis = 1 if split else 2
        rows, columns = (
            self._node(
                "Range", [self._scalar_of(0), self._node("Squeeze", [self._shape_at(x, axis)]), self._scalar_of(1)]
            )
            for x in (q, k)
        )
        rows = self._node("Reshape", [rows, self._integers([1, 1, -1, 1])])
        return Sym(self._node("GreaterOrEqual", [rows, columns]), "bool", is_fixed=True)

    def _shape_at(self, x: Sym, axis: int) -> ir.Value:
        return self._shape(x, axis, axis + 1)

    def _scalar_of(self, value: int) -> ir.Value:
        return self._node("Squeeze", [self._integers([value])])

    def _per_pair(self, offset: Sym, q: Sym, k: Sym, split: bool) -> Sym:
        """The offset with an entry for every pair of a query and a key, as runtimes ask for."""
        axis = 1 if split else 2
        shape = [self._integers([1, 1]), self._shape_at(q, axis), self._shape_at(k, axis)]
        return self._result(offset, "Expand", [self._plain(offset), self._node("Concat", shape, axis=0)])

    def _unseen_is_zero(self, y: Sym, offset: Sym, heads: int, split: bool) -> Sym:
        most = self.reduce_max(offset, -1)  # [batch, heads, queries, 1]
        unseen = self.equal(most, self.scalar(-math.inf, offset))
        zero = self.scalar(0.0, y)
        if not split:
            return Sym(self.where(unseen, zero, y).value, y.dtype, y.is_fixed)
        apart = self.reshape(y, (0, 0, heads, -1))
        kept = self.where(self.permute(unseen, (0, 2, 1, 3)), zero, apart)
        return self.reshape(Sym(kept.value, y.dtype, y.is_fixed), (0, 0, -1))
