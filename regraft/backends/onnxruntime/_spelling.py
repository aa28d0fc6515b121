"""How ops are spelled for ONNX Runtime: its own operators where they are faster than the standard ones.

A file for any runtime has the bodies of standard operators. A session, and a file that is written for this runtime,
gets the same functions with other bodies.
"""

import math
from collections.abc import Mapping
from typing import Final

import onnx_ir as ir

from regraft.backends.onnxruntime._key_masks import KeyMasks, remove_unused
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

LEAST: Final = -1e30
"""Numbers below it, added to scores, leave as little of them as it does."""

HIDDEN: Final = -1e34
"""In the place of -inf, which times zero would be no number: hidden also beside the lowest finite numbers."""

LEAST_SCALE: Final = 1e-3
"""Below it, 1 / scale times `HIDDEN` may overflow."""

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
        """The operator itself, which has a buffer of all scores where an offset is given."""
        del causal
        wide = [] if offset is None else [None, None, self._plain(self._per_pair(offset, q, k, split=True))]
        operands = [self._plain(x) for x in (q, k, v)]
        value = self._node("MultiHeadAttention", [*operands, *wide], domain=CONTRIB, num_heads=heads, scale=scale)
        return Sym(value, q.dtype, q.is_fixed)

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
    calls: dict[ir.OperatorIdentifier, list[ir.Node]] = {}
    for node in model.graph.all_nodes():
        known = structured_op(node.op_type) if node.domain == DOMAIN else None
        if known is not None and known[0].name in USES and node.op_identifier() in model.functions:
            calls.setdefault(node.op_identifier(), []).append(node)
    masks = KeyMasks()
    for identifier, nodes in calls.items():
        _respell(model, identifier, nodes, masks)
    remove_unused(masks.added)


def _respell(model: ir.Model, identifier: ir.OperatorIdentifier, nodes: list[ir.Node], masks: KeyMasks) -> None:
    """Give one function another body, which all its calls share."""
    known = structured_op(nodes[0].op_type)
    assert known is not None
    op, absent = known
    names = [operand.name for operand in op.operands if operand.name not in absent]
    labels = {name: dtype_label(value.dtype) for name, value in zip(names, nodes[0].inputs, strict=True) if value}
    if labels[names[0]] != "float32":
        return
    values = {name: nodes[0].attributes[name].value for name in op.attributes}
    present = frozenset(operand.name for operand in op.operands if operand.optional) - absent
    dtypes = {name: label for name, label in labels.items() if label is not None}
    places = [place for place, name in enumerate(names) if name in ("mask", "bias")]
    builder = KeyMaskBuilder if _narrowed(nodes, places, masks) else OnnxRuntimeBuilder
    body = function_for(op, present, model.opset_imports[""], values, dtypes, builder)
    if body.identifier() == identifier:
        model.functions[identifier] = body
        model.opset_imports.setdefault(CONTRIB, 1)


def _narrowed(nodes: list[ir.Node], places: list[int], masks: KeyMasks) -> bool:
    """Whether all calls have masks that hide keys from every query alike; then they are given those."""
    found: dict[tuple[ir.Node, int], ir.Value] = {}
    for node in nodes:
        for place in places:
            given = node.inputs[place]
            mask = None if given is None else masks.of(given)
            if mask is None:
                return False
            found[node, place] = mask
    _replace(found)
    return bool(found)


def _replace(found: Mapping[tuple[ir.Node, int], ir.Value]) -> None:
    before = {value: None for node, place in found if (value := node.inputs[place]) is not None}
    for (node, place), mask in found.items():
        node.replace_input_with(place, mask)
    remove_unused(before)
