"""Merges copies of one constant: the exporter folds a transpose into a weight anew for each call of a layer."""

import hashlib
from collections.abc import Collection, Hashable

import onnx_ir as ir


def merge_copies(model: ir.Model, own: Collection[str]) -> None:
    """Let all nodes of the graph read the first of several initializers of equal content, and drop the others.

    Args:
        model: changed in place.
        own: names of the user's weights, which stay apart, equal or not.
    """
    alike: dict[Hashable, list[ir.Value]] = {}
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if tensor is not None and value.name not in own and not value.is_graph_input() and not value.is_graph_output():
            alike.setdefault((tensor.dtype, tuple(tensor.shape.numpy())), []).append(value)
    for values in alike.values():
        first: dict[bytes, ir.Value] = {}
        for value in values if len(values) > 1 else ():
            kept = first.setdefault(_digest(value), value)
            if kept is not value:
                value.replace_all_uses_with(kept)
                del model.graph.initializers[str(value.name)]


def _digest(value: ir.Value) -> bytes:
    assert value.const_value is not None, "only constants are merged"
    return hashlib.sha256(value.const_value.tobytes()).digest()
