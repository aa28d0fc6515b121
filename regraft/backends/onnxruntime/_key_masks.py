"""Masks that hide keys from all queries alike, found behind what spreads them over the queries.

Exporters write a padding mask as [batch, 1, queries, keys], made of the [batch, 1, 1, keys] that say all by an `And`
with booleans that are always true, or by an `Expand`. The small ones let ONNX Runtime's attention work without a buffer
of scores.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import onnx_ir as ir

from regraft.frontends.onnx import constant_of

_SAME_CONTENT: Final = frozenset({"Identity", "Unsqueeze", "Squeeze", "Reshape", "Expand", "Cast", "Transpose"})
"""Operators whose results have only elements of their first operand."""

_WIDE: Final = frozenset({ir.DataType.INT32, ir.DataType.INT64, ir.DataType.FLOAT, ir.DataType.DOUBLE})
"""Types to which a cast wraps no position."""


@dataclass
class KeyMasks:
    """Looks masks up, each once.

    Attributes:
        added: results of nodes added to the model, where the numbers of a mask are chosen behind the spreading.
    """

    added: list[ir.Value] = field(default_factory=list["ir.Value"])
    _found: dict[ir.Value, ir.Value | None] = field(default_factory=dict["ir.Value", "ir.Value | None"])

    def of(self, mask: ir.Value) -> ir.Value | None:
        """Return what hides the same keys from every query, [batch or 1, 1, 1, keys]; None when there is no such."""
        if is_key_mask(mask):
            return mask
        if mask not in self._found:
            self._found[mask] = self._behind(mask)
        return self._found[mask]

    def _behind(self, mask: ir.Value) -> ir.Value | None:
        node = mask.producer()
        if node is None or node.domain != "" or _rank(mask) != 4:
            return None
        if node.op_type in ("Identity", "Expand"):
            return self._kept(node.inputs[0])
        if node.op_type == "And":
            first, second = node.inputs
            return self._kept(second if _is_true(first) else first if _is_true(second) else None)
        return self._chosen(node, mask) if node.op_type == "Where" else None

    def _kept(self, value: ir.Value | None) -> ir.Value | None:
        return None if value is None else self.of(value)

    def _chosen(self, node: ir.Node, mask: ir.Value) -> ir.Value | None:
        """The same choice between the same two numbers, for each key instead of each pair."""
        condition, yes, no = node.inputs
        if condition is None or any(_numbers(value, np.size) != 1 for value in (yes, no)):
            return None
        keys = self.of(condition)
        if keys is None or not isinstance(node.graph, ir.Graph):
            return None
        chosen = ir.node("Where", [keys, yes, no], name=f"{node.name}_keys")
        (value,) = chosen.outputs
        value.name, value.type, value.shape = f"{mask.name}_keys", mask.type, keys.shape
        node.graph.insert_after(node, chosen)
        self.added.append(value)
        return value


def remove_unused(values: Iterable[ir.Value]) -> None:
    """Remove the nodes of values that nothing reads any more, and what only they read, constants too."""
    waiting = [node for value in values if (node := value.producer()) is not None]
    while waiting:
        node = waiting.pop()
        if node.graph is None or any(output.uses() or output.is_graph_output() for output in node.outputs):
            continue
        operands = [value for value in node.inputs if value is not None]
        node.graph.remove(node, safe=True)
        for value in dict.fromkeys(operands):
            producer = value.producer()
            if producer is not None:
                waiting.append(producer)
            elif constant_of(value) is not None and value.graph is not None and not value.uses():
                value.graph.initializers.pop(str(value.name))


def is_key_mask(value: ir.Value) -> bool:
    """Whether a mask is known to be [batch, 1, 1, keys]."""
    return _rank(value) == 4 and value.shape is not None and value.shape[1] == 1 and value.shape[2] == 1


def _rank(value: ir.Value) -> int | None:
    return None if value.shape is None else len(value.shape)


def _is_true(value: ir.Value | None) -> bool:
    """Whether booleans are true whatever the inputs are."""
    if value is None:
        return False
    known = _numbers(value, np.min)
    if known is not None:
        return bool(known)
    node = value.producer()
    if node is None or node.domain != "":
        return False
    if node.op_type == "And":
        return all(_is_true(item) for item in node.inputs)
    if node.op_type == "GreaterOrEqual":
        least, most = _least(node.inputs[0]), _numbers(node.inputs[1], np.max)
        return least is not None and most is not None and least >= most
    return node.op_type in _SAME_CONTENT and node.op_type != "Cast" and _is_true(node.inputs[0])


def _least(value: ir.Value | None) -> float | None:
    """A number that no element is below, where one is known."""
    if value is None:
        return None
    known = _numbers(value, np.min)
    if known is not None:
        return known
    node = value.producer()
    if node is None or node.domain != "":
        return None
    if node.op_type == "Range":
        step = _numbers(node.inputs[2], np.min)
        return _numbers(node.inputs[0], np.min) if step is not None and step > 0 else None
    if node.op_type == "Add":
        parts = [_least(item) for item in node.inputs]
        return None if None in parts else sum(part for part in parts if part is not None)
    kept = node.op_type in _SAME_CONTENT and (node.op_type != "Cast" or value.dtype in _WIDE)
    return _least(node.inputs[0]) if kept else None


def _numbers(value: ir.Value | None, measure: Callable[[np.ndarray], float]) -> float | None:
    """Return the measure of a constant; None for everything else."""
    tensor = None if value is None else constant_of(value)
    return None if tensor is None or not tensor.size else float(measure(tensor.numpy()))
