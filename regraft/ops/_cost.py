"""What programs with structured ops cost: every op's own `cost`, as a formula for `regraft.graph.cost`."""

from collections.abc import Mapping, Sequence
from typing import Literal

from regraft.errors import ShapeError
from regraft.graph.cost import Cost, Formula, estimate
from regraft.graph.cost_types import OpCost
from regraft.graph.snapshot import Snapshot, SnapshotNode
from regraft.graph.types import TensorType
from regraft.ops._op import Op
from regraft.ops._registry import all_ops


def formulas(kind: Literal["fx", "onnx"]) -> Mapping[str, Formula]:
    """Return the cost formula of every structured op by name.

    Args:
        kind: graph language; ONNX graphs hold the weights in `linear_weights` transposed.
    """
    return {name: _formula(op, kind) for name, op in all_ops().items()}


def cost(snapshot: Snapshot) -> Cost:
    """Return what a program costs, structured ops included."""
    return estimate(snapshot, formulas(snapshot.kind))


def _formula(op: Op, kind: Literal["fx", "onnx"]) -> Formula:
    def formula(node: SnapshotNode, types: Sequence[TensorType | None]) -> OpCost:
        operands: dict[str, TensorType | None] = {}
        for place, operand in enumerate(op.operands):
            found = types[place] if place < len(types) else None
            if found is None and not operand.optional:
                raise ShapeError(f"{op.name}: operand {operand.name} is missing")
            turned = kind == "onnx" and operand.name in op.linear_weights
            operands[operand.name] = _turned(found) if turned else found
        missing = [name for name in op.attributes if name not in node.attributes]
        if missing:
            raise ShapeError(f"{op.name}: attribute {missing[0]} is missing")
        attributes = {name: node.attributes[name] for name in op.attributes}
        try:
            return op.cost(**operands, **attributes)
        except IndexError as error:  # formulas index dims that a malformed node does not have
            raise ShapeError(f"{op.name}: an operand has too few dims") from error

    return formula


def _turned(type_: TensorType | None) -> TensorType | None:
    """The type of a matrix, or of a batch of them, transposed."""
    if type_ is None or type_.shape is None or len(type_.shape) < 2:
        return type_
    *batch, rows, columns = type_.shape
    return TensorType(type_.dtype, (*batch, columns, rows))
