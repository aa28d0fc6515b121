"""How ops are spelled for ONNX Runtime: its own operators where they are faster than the standard ones.

A file for any runtime has the bodies of standard operators. A session, and a file that is written for this runtime,
gets the same functions with other bodies.
"""

from typing import Final

import onnx_ir as ir

from regraft.frontends.onnx import (
    DOMAIN,
    AttentionBuilder,
    OnnxGraph,
    Sym,
    dtype_label,
    function_for,
    structured_op,
)
from regraft.passes import FuseAttention, Settings, run_passes

CONTRIB: Final = "com.microsoft"

USES: Final = frozenset({"multi_head_attention", "lowrank_attention"})
"""Ops whose bodies differ."""


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
        wide = None if offset is None else self._per_pair(offset, q, k, split)
        if kv_heads != heads:
            k, v = self._repeated(k, heads, kv_heads, split), self._repeated(v, heads, kv_heads, split)
        elif not split:
            k, v = self._merge_heads(k), self._merge_heads(v)
        packed = q if split else self._merge_heads(q)
        operands = [self._plain(x) for x in (packed, k, v)]
        offsets = [] if wide is None else [None, None, self._plain(wide)]
        value = self._node(
            "MultiHeadAttention", [*operands, *offsets], domain=CONTRIB, num_heads=heads, scale=float(scale)
        )
        y = Sym(value, q.dtype, q.is_fixed)
        if offset is not None and (mask is not None or bias is not None):
            y = self._unseen_is_zero(y, offset, heads, split=True)
        return y if split else self.permute(self.reshape(y, (0, 0, heads, -1)), (0, 2, 1, 3))

    def _repeated(self, x: Sym, heads: int, kv_heads: int, split: bool) -> Sym:
        """[batch, keys, heads · n] from fewer heads."""
        apart = self.permute(self.reshape(x, (0, 0, kv_heads, -1)), (0, 2, 1, 3)) if split else x
        return self._merge_heads(self._repeat_heads(apart, heads, kv_heads))


def for_this_runtime(graph: OnnxGraph) -> OnnxGraph:
    """Return the graph with attention fused, each fusion checked, and every op spelled for ONNX Runtime."""
    respelled = fused_attention(graph).copy()
    respell(respelled.model)
    return respelled


def fused_attention(graph: OnnxGraph) -> OnnxGraph:
    """Return the graph with every attention that is recognized as one node; each was checked."""
    fused, _ = run_passes(graph, [FuseAttention()], Settings(strict=False))
    assert isinstance(fused, OnnxGraph)
    return fused


def respell(model: ir.Model) -> None:
    """Give the functions of a model bodies that are fast in ONNX Runtime; what they compute stays the same."""
    opset = model.opset_imports[""]
    for node in model.graph.all_nodes():
        known = structured_op(node.op_type) if node.domain == DOMAIN else None
        if known is None or known[0].name not in USES or node.op_identifier() not in model.functions:
            continue
        op, absent = known
        names = [operand.name for operand in op.operands if operand.name not in absent]
        labels = {name: dtype_label(value.dtype) for name, value in zip(names, node.inputs, strict=True) if value}
        if labels[names[0]] != "float32":
            continue
        values = {name: node.attributes[name].value for name in op.attributes}
        present = frozenset(operand.name for operand in op.operands if operand.optional) - absent
        dtypes = {name: label for name, label in labels.items() if label is not None}
        body = function_for(op, present, opset, values, dtypes, OnnxRuntimeBuilder)
        if body.identifier() == node.op_identifier():
            model.functions[node.op_identifier()] = body
            model.opset_imports.setdefault(CONTRIB, 1)
