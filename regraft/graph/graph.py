"""The protocol that passes see: one small surface over torch.fx graphs and ONNX graphs."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Literal, Protocol

from torch import Tensor

from regraft.graph.snapshot import Snapshot
from regraft.graph.view import Attribute, Node, Value

Inputs = Tensor | Sequence[Any] | Mapping[str, Any]
"""Inputs of a whole model: one tensor, a tuple by position, or a mapping by name."""

Outputs = tuple[Tensor, ...]
"""Outputs of a whole model, flattened, in the order of `Graph.outputs()`."""

Tapped = Mapping[str, Tensor]
"""Contents of tapped values, by `Value.key`."""

Attributes = Mapping[str, Attribute]


class StructuredOp(Protocol):
    """What a graph needs to know of an op that it is asked to insert; `regraft.ops.Op` is one."""

    @property
    def name(self) -> str:
        """Name in snake case ("lowrank_linear")."""
        ...


class Replacement(Protocol):
    """What a graph needs to know of a site that it is asked to replace; every `Site` is one."""

    @property
    def name(self) -> str:
        """Name of the layer in the user's model; new weights are named after it."""
        ...

    @property
    def operands(self) -> Mapping[str, str]:
        """Keys of the activations that the new op reads, by operand name ("x")."""
        ...

    @property
    def output(self) -> str:
        """Key of the value that the new op takes over."""
        ...

    @property
    def nodes(self) -> Sequence[str]:
        """Keys of the nodes that the site covers; those that nothing else uses are removed."""
        ...

    @property
    def calls(self) -> "Sequence[Replacement]":
        """All places where the layer stands, in graph order; the site itself is the first."""
        ...


class Graph(Protocol):
    """A program being rewritten. Views are snapshots: they stay valid until the next `replace` of the same graph.

    Values and nodes are addressed by key. Keys are stable: a copy has the same ones, and the output of a replaced site
    keeps its key, so that a site found in one graph can be replaced in a copy of it, after other sites have been.
    """

    @property
    def kind(self) -> Literal["fx", "onnx"]:
        """The graph language underneath."""
        ...

    @property
    def name(self) -> str:
        """What the model calls itself; used in messages."""
        ...

    def inputs(self) -> Sequence[Value]:
        """Return the graph's inputs, in order."""
        ...

    def outputs(self) -> Sequence[Value]:
        """Return the graph's outputs, in order."""
        ...

    def constants(self) -> Sequence[Value]:
        """Return weights, buffers and other constants that some node reads, one entry a distinct tensor."""
        ...

    def nodes(self) -> Sequence[Node]:
        """Return all nodes in topological order; those of nested bodies come before the node that holds the body."""
        ...

    def value(self, key: str) -> Value:
        """Return the value of that key; raises GraphError when there is none."""
        ...

    def constant(self, value: Value) -> Tensor | None:
        """Return the content of a constant (loaded now, not copied where possible), or None when it is computed."""
        ...

    def replace(
        self,
        site: Replacement,
        op: StructuredOp,
        tensors: Mapping[str, Tensor | Value | None],
        attributes: Attributes | None = None,
    ) -> None:
        """Put `op` in the place of `site`, in all of its calls, which share the new weights.

        Args:
            site: what to replace. Its output keeps its key, name and type.
            op: what to insert; reads the site's operands and `tensors`.
            tensors: weights by operand name: a new tensor, a constant of this graph to share, or None when absent.
                Given in the layout of the op's file, whatever layout the graph language prefers.
            attributes: the op's attributes by name.

        Constants that nothing reads any more are dropped.

        Raises:
            GraphError: when the site is not in this graph (any more).
        """
        ...

    def insert(
        self, op: StructuredOp, operands: Mapping[str, str], attributes: Attributes, before: str, name: str
    ) -> str:
        """Put a node of `op` in front of the one that computes a value; return the key of its result.

        Where such a node of the same operands and attributes stands there already, that one is taken.

        Args:
            op: what to insert; all of its operands are activations.
            operands: their keys by operand name.
            attributes: of the op, all of them, by name.
            before: key of the value.
            name: of the new node, as far as it is free.

        Raises:
            GraphError: when a key is not in the graph, or an operand cannot be seen there.
        """
        ...

    def expanded(self, ops: Collection[str]) -> "Graph":
        """Return a copy in which nodes of these ops are written out as the linear layers that they are.

        Only ops that are chains of linear layers (`Op.chain`) are; the layers are named after their weights
        ("encoder.layer.0.output.dense.down"). The last one's output keeps its key.
        """
        ...

    def annotate(self, key: str, metadata: Mapping[str, str]) -> None:
        """Add metadata to the node that produces the value `key`."""
        ...

    def run(self, inputs: Inputs, taps: Sequence[str] = ()) -> tuple[Outputs, Tapped]:
        """Run the graph without gradients; also return the contents of the tapped values (top-level ones only).

        Raises:
            InputError: when the inputs do not fit.
        """
        ...

    def evaluate(self, outputs: Sequence[str], given: Mapping[str, Tensor]) -> Sequence[Tensor]:
        """Compute values from others: run only the nodes between `given` and `outputs`, and constants.

        Raises:
            GraphError: when an output depends on a graph input that is not given.
        """
        ...

    def prepared(self, outputs: Sequence[str], given: Mapping[str, Tensor]) -> Callable[[], Sequence[Tensor]]:
        """Return what computes values from others whenever it is called, to be timed; see `evaluate`."""
        ...

    def validate(self) -> None:
        """Check the native graph's invariants; raises GraphError that names what is broken."""
        ...

    def copy(self) -> "Graph":
        """Return a copy that can be rewritten on its own; weights are shared, not duplicated."""
        ...

    def snapshot(self) -> Snapshot:
        """Return the program as plain data, without weights."""
        ...
