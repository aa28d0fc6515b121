"""Read-only views of a native graph: the same `Node` and `Value` for torch.fx and for ONNX."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from regraft.graph.types import TensorType

Attribute = bool | int | float | str | None | tuple["Attribute", ...]
"""An attribute of a node. Tensors and other opaque things are shown as a string."""

ValueRole = Literal["input", "constant", "computed"]


@dataclass(slots=True, eq=False)
class Value:
    """An edge of the graph: an input, a constant (weight) or the result of a node.

    Attributes:
        key: unique in the graph, and the same in every copy of it; survives the rewriting of its producer.
        name: what the user's model calls it (a weight's "encoder.layer.0.query.weight"), else the key.
        role: where its content comes from.
        producer: the node that computes it; None for inputs and constants.
        users: nodes that read it, in graph order; a node that reads it twice stands here once.
        is_output: whether the graph (or the subgraph it belongs to) returns it.
        nested: whether it lives in a nested body (If, Loop, Scan), where it cannot be tapped.
        has_default: whether it is an input for which the file has a content that a caller may override.
    """

    key: str
    name: str
    type: TensorType
    role: ValueRole = "computed"
    producer: "Node | None" = None
    users: "list[Node]" = field(default_factory=list["Node"])
    is_output: bool = False
    nested: bool = False
    has_default: bool = False

    def __repr__(self) -> str:
        return f"Value({self.key}: {self.type})"


@dataclass(slots=True, eq=False)
class Node:
    """One operation.

    Attributes:
        key: unique in the graph and stable across copies. Nodes of a nested body (If, Loop, Scan) have keys that begin
            with "<key of the outer node>/<body name>/".
        op: canonical name, the same for both kinds ("linear", "matmul", "attention"); the native name in lower case
            where there is no canonical one.
        native: the operator as its own language spells it ("aten.linear.default", "com.microsoft::Gelu", "MatMul").
        scope: name of the layer in the user's model ("encoder.layer.0.attention.self.query"); "" when unknown.
        inputs: operands in order; None for an optional one that is absent.
        attributes: everything that is not a tensor operand, by name.
        metadata: free text that travels with the node ("regraft.pass", "regraft.site").
    """

    key: str
    op: str
    native: str
    scope: str
    inputs: Sequence[Value | None]
    outputs: Sequence[Value]
    attributes: Mapping[str, Attribute] = field(default_factory=dict[str, Attribute])
    metadata: Mapping[str, str] = field(default_factory=dict[str, str])

    def __repr__(self) -> str:
        return f"Node({self.key} = {self.op})"
