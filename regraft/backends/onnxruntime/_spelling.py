"""How ops are spelled for ONNX Runtime: its own operators where they are faster than the standard ones.

A file for any runtime has the bodies of standard operators. A session, and a file that is written for this runtime,
gets the same functions with other bodies.
"""

from collections.abc import Mapping
from typing import Final

import onnx_ir as ir

from regraft.backends.onnxruntime._builder import CONTRIB, KeyMaskBuilder, OnnxRuntimeBuilder
from regraft.backends.onnxruntime._key_masks import KeyMasks, remove_unused
from regraft.frontends.onnx import DOMAIN, OnnxGraph, dtype_label, function_for, structured_op
from regraft.passes import FuseAttention, Settings, run_passes

USES: Final = frozenset({"multi_head_attention", "lowrank_attention"})
"""Ops whose bodies differ."""


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
