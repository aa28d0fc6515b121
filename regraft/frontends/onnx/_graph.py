"""`OnnxGraph`: an ONNX model seen and rewritten through the `Graph` protocol."""

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Literal

import onnx_ir as ir
from torch import Tensor

from regraft.errors import GraphError
from regraft.frontends.onnx._calls import Opened, close_calls
from regraft.frontends.onnx._canonical import DOMAIN
from regraft.frontends.onnx._check import check_model
from regraft.frontends.onnx._evaluate import prepared
from regraft.frontends.onnx._functions import Values
from regraft.frontends.onnx._index import Index
from regraft.frontends.onnx._inline import inline_functions
from regraft.frontends.onnx._opset import default_opset
from regraft.frontends.onnx._replace import MadeFunctions, SmallConstants, Surgeon
from regraft.frontends.onnx._run import Runner
from regraft.frontends.onnx._tensors import raw_bytes, to_torch, value_type
from regraft.frontends.onnx._views import Views, constant_of
from regraft.graph.graph import Attributes, Inputs, Outputs, Replacement, StructuredOp, Tapped
from regraft.graph.snapshot import Snapshot, snapshot_of
from regraft.graph.types import TensorType
from regraft.graph.view import Node, Value
from regraft.ops import Op, get_op


class OnnxGraph:
    """An ONNX model as a `Graph`.

    Weights of a structured op that are named in its `Op.linear_weights` appear as the file stores them: transposed,
    [in, out]. `replace` takes them in the layout of the op's file.

    Attributes:
        model: the native model, the user's functions that multiply by weights inlined. It is the graph's own: change it
            only through the graph, and hand `closed()` out.
        path: file that it was loaded from; None for one that came from memory.
        notes: what loading changed or left out, one line each; empty for most models.
    """

    def __init__(
        self,
        model: ir.Model,
        *,
        name: str,
        path: Path | None = None,
        notes: Sequence[str] = (),
        inferred: Mapping[str, TensorType] | None = None,
        index: Index | None = None,
        opened: Opened | None = None,
    ) -> None:
        self.model = model
        self.path = path
        self.notes = tuple(notes)
        self._name = name
        self._inferred = inferred or {}
        self._index = index or Index.of(model.graph)
        self._opened = opened
        self._closed: ir.Model | None = None
        self._made: MadeFunctions = {}
        self._small: SmallConstants = {}
        self._views: Views | None = None
        self._runner: Runner | None = None

    @property
    def kind(self) -> Literal["onnx"]:
        """The graph language underneath."""
        return "onnx"

    @property
    def name(self) -> str:
        """The file's name, else the graph's; used in messages."""
        return self._name

    @property
    def opset(self) -> int:
        """Version of the default domain."""
        return default_opset(self.model)

    def inputs(self) -> Sequence[Value]:
        """Return the graph's inputs, in order; those with a default in the file too."""
        return [self._seen().value(value) for value in self.model.graph.inputs]

    def outputs(self) -> Sequence[Value]:
        """Return the graph's outputs, in order."""
        return [self._seen().value(value) for value in self.model.graph.outputs]

    def constants(self) -> Sequence[Value]:
        """Return the initializers and Constants, nested ones too, that some node reads; one entry a tensor."""
        read = (operand for node in self.nodes() for operand in node.inputs)
        return list(dict.fromkeys(value for value in read if value is not None and value.role == "constant"))

    def nodes(self) -> Sequence[Node]:
        """Return all nodes but Constants, in topological order; those of a body come before the node that holds it."""
        return list(self._seen().all_nodes())

    def value(self, key: str) -> Value:
        """Return the value of that key; raises GraphError when there is none."""
        return self._seen().value(self._native(key))

    def constant(self, value: Value) -> Tensor | None:
        """Return a constant's content, mapped from the file where it can be; it must not be written to.

        Returns:
            None when the value is computed, given by the caller, or of an element type that torch has not.
        """
        tensor = constant_of(self._native(value.key))
        return None if tensor is None else to_torch(tensor)

    def constant_bytes(self, value: Value) -> bytes:
        """Return a constant's content as a file holds it, also of an element type that torch has not; else nothing."""
        tensor = constant_of(self._native(value.key))
        return b"" if tensor is None else raw_bytes(tensor)

    def replace(
        self,
        site: Replacement,
        op: StructuredOp,
        tensors: Mapping[str, Tensor | Value | None],
        attributes: Attributes | None = None,
    ) -> None:
        """Put one node `regraft::<Op>` in the place of `site`, and its meaning beside it as a model-local function.

        The new node keeps the metadata of the old output's node; new initializers are called "<site>.<operand>" and
        stand in the top-level graph. See `Graph.replace`.
        """
        known = op if isinstance(op, Op) else get_op(op.name)
        values = _values(known, attributes or {})
        self._views = self._runner = self._closed = None
        self._surgeon().replace(site, known, tensors, values)

    def insert(
        self, op: StructuredOp, operands: Mapping[str, str], attributes: Attributes, before: str, name: str
    ) -> str:
        """Put one node `regraft::<Op>` in front of the node of `before`; see `Graph.insert`."""
        known = op if isinstance(op, Op) else get_op(op.name)
        values = _values(known, attributes)
        self._views = self._runner = self._closed = None
        return self._surgeon().insert(known, operands, values, before, name)

    def expanded(self, ops: Collection[str]) -> "OnnxGraph":
        """Return a copy in which these ops are written out as products; see `Graph.expanded`."""
        model = self.model.clone()
        stems = tuple(get_op(name).onnx_name for name in ops if get_op(name).chain)
        inline_functions(model, lambda identifier: identifier[0] == DOMAIN and identifier[1].startswith(stems))
        return OnnxGraph(
            model,
            name=self._name,
            path=self.path,
            notes=self.notes,
            inferred=self._inferred,
            opened=self._opened,
        )

    def annotate(self, key: str, metadata: Mapping[str, str]) -> None:
        """Add metadata to the node that produces the value `key`."""
        producer = self._native(key).producer()
        if producer is None:
            raise GraphError(f"{self.name}: {key!r} is computed by no node and cannot be annotated")
        self._closed = None
        producer.metadata_props.update(metadata)

    def run(self, inputs: Inputs, taps: Sequence[str] = ()) -> tuple[Outputs, Tapped]:
        """Run the model in ONNX Runtime on the CPU; sessions are kept until the next rewrite.

        Args:
            inputs: torch or numpy arrays by position or by name.
            taps: keys of top-level values whose contents are wanted too.

        Raises:
            InputError: when the inputs do not fit.
            GraphError: when a tapped value is not there or is nested.
            BackendError: when ONNX Runtime cannot run the model.
        """
        if self._runner is None:
            self._runner = Runner(self.model, self.name)
        return self._runner.run(inputs, {key: self._tappable(key) for key in taps})

    def evaluate(self, outputs: Sequence[str], given: Mapping[str, Tensor]) -> Sequence[Tensor]:
        """Compute values from others in ONNX Runtime, in the graph's element types; see `Graph.evaluate`."""
        return self.prepared(outputs, given)()

    def prepared(self, outputs: Sequence[str], given: Mapping[str, Tensor]) -> Callable[[], Sequence[Tensor]]:
        """Return a session's run over a part of the model; see `Graph.prepared`."""
        wanted = [self._native(key) for key in outputs]
        return prepared(self.model, self._index, wanted, {self._native(key): tensor for key, tensor in given.items()})

    def validate(self) -> None:
        """Check the model with ONNX's checker and shape inference; raises GraphError that names what is broken."""
        check_model(self.model, self.name)

    def copy(self) -> "OnnxGraph":
        """Return a copy with the same keys that can be rewritten on its own; tensors are shared."""
        model = self.model.clone()
        return OnnxGraph(
            model,
            name=self._name,
            path=self.path,
            notes=self.notes,
            inferred=self._inferred,
            index=self._index.copy_to(self.model.graph, model.graph),
            opened=self._opened,
        )

    def closed(self) -> ir.Model:
        """Return the model as it is handed out: calls of the user's functions in which nothing was rewritten are calls.

        It is the graph's own model where no such call was inlined, and the same object until the next rewrite.
        """
        if self._opened is None:
            return self.model
        if self._closed is None:
            self._closed = self.model.clone()
            close_calls(self._closed, self._opened)
        return self._closed

    def snapshot(self) -> Snapshot:
        """Return the program as plain data, without weights."""
        return snapshot_of(self)

    def __repr__(self) -> str:
        return f"OnnxGraph({self.name}: {len(self.model.graph)} nodes, opset {self.opset})"

    def _seen(self) -> Views:
        if self._views is None:
            self._views = Views(self._index, self._type_of)
        return self._views

    def _surgeon(self) -> Surgeon:
        return Surgeon(self.model, self._index, self.opset, self._made, self._small, self._type_of)

    def _type_of(self, native: ir.Value) -> TensorType:
        declared = value_type(native)
        if declared.shape is not None and declared.dtype is not None:
            return declared
        return self._inferred.get(self._index.value_key(native), declared)

    def _native(self, key: str) -> ir.Value:
        native = self._index.value(key)
        if native is None:
            raise GraphError(f"{self.name}: the graph has no value {key!r}")
        return native

    def _tappable(self, key: str) -> ir.Value:
        native = self._native(key)
        if self._index.is_nested(native.graph):
            raise GraphError(f"{self.name}: {key!r} is inside a nested body and cannot be tapped")
        return native


def _values(op: Op, attributes: Attributes) -> Values:
    values = {name: value for name, value in attributes.items() if isinstance(value, int | float | str)}
    if len(values) != len(attributes):
        given = ", ".join(f"{name}={value!r}" for name, value in attributes.items())
        raise GraphError(f"{op.name}: attributes are numbers or texts; got {given}")
    return values
