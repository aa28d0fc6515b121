"""Views of an ONNX graph: `Node` and `Value`, made when they are looked at and kept until the next rewrite."""

from collections.abc import Callable, Iterator, Sequence
from typing import Final, overload

import onnx_ir as ir

from regraft.frontends.onnx._attributes import attributes_of
from regraft.frontends.onnx._canonical import DOMAIN, canonical_name, native_name, structured_op
from regraft.frontends.onnx._index import Index
from regraft.frontends.onnx._scope import scope_of
from regraft.frontends.onnx._tensors import tensor_type, value_type
from regraft.graph.types import TensorType
from regraft.graph.view import Node, Value, ValueRole

_CONSTANT_TENSORS: Final = (
    "value",
    "value_float",
    "value_int",
    "value_floats",
    "value_ints",
    "value_string",
    "value_strings",
)

TypeOf = Callable[[ir.Value], TensorType]


class LazyValue(Value):
    """A `Value` that finds its producer and its users when asked, so that looking at one costs nothing for the rest."""

    __slots__ = ("_native", "_views")

    def __init__(self, views: "Views", native: ir.Value, role: ValueRole, type_: TensorType) -> None:
        key = views.index.value_key(native)
        self.key = key
        self.name = (native.name or key) if native.is_initializer() else key
        self.type = type_
        self.role = role
        self.is_output = native.is_graph_output()
        self.nested = views.index.is_nested(native.graph)
        self.has_default = native.is_initializer() and native.is_graph_input()
        self._views = views
        self._native = native

    @property
    def producer(self) -> Node | None:  # pyright: ignore[reportIncompatibleVariableOverride] - found when asked for
        """The node that computes it; None for inputs and constants."""
        native = self._native.producer()
        return None if native is None or self.role == "constant" else self._views.node(native)

    @property
    def users(self) -> list[Node]:  # pyright: ignore[reportIncompatibleVariableOverride] - found when asked for
        """Nodes that read it, in graph order."""
        readers = sorted(self._native.consumers(), key=self._views.index.place)
        return [self._views.node(reader) for reader in readers]


class LazyValues(Sequence[Value | None]):
    """The operands of a node, viewed when asked for."""

    def __init__(self, views: "Views", natives: Sequence[ir.Value | None]) -> None:
        self._views = views
        self._natives = natives

    def __len__(self) -> int:
        return len(self._natives)

    @overload
    def __getitem__(self, at: int) -> Value | None: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[Value | None]: ...
    def __getitem__(self, at: int | slice) -> Value | Sequence[Value | None] | None:
        if isinstance(at, slice):
            return [self._view(native) for native in self._natives[at]]
        return self._view(self._natives[at])

    def __iter__(self) -> Iterator[Value | None]:
        return (self._view(native) for native in self._natives)

    def __repr__(self) -> str:
        return repr(list(self))

    def _view(self, native: ir.Value | None) -> Value | None:
        return None if native is None else self._views.value(native)


class Views:
    """The views of one state of a graph; one view a native object."""

    def __init__(self, index: Index, type_of: TypeOf = value_type) -> None:
        self.index = index
        self._type_of = type_of
        self._nodes: dict[ir.Node, Node] = {}
        self._values: dict[ir.Value, Value] = {}
        self._all: list[Node] | None = None

    def all_nodes(self) -> list[Node]:
        """Return the views of all nodes but constants, in topological order, those of a body before its holder."""
        if self._all is None:
            self._all = [self.node(native) for native in self.index.nodes() if not is_constant(native)]
        return self._all

    def node(self, native: ir.Node) -> Node:
        """Return the view of a node."""
        view = self._nodes.get(native)
        if view is None:
            view = self._nodes[native] = self._new_node(native)
        return view

    def value(self, native: ir.Value) -> Value:
        """Return the view of a value."""
        view = self._values.get(native)
        if view is None:
            view = self._values[native] = self._new_value(native)
        return view

    def _new_value(self, native: ir.Value) -> Value:
        stored = constant_of(native)
        if stored is not None:
            return LazyValue(self, native, "constant", tensor_type(stored))
        role: ValueRole = "input" if native.producer() is None else "computed"
        return LazyValue(self, native, role, self._type_of(native))

    def _new_node(self, native: ir.Node) -> Node:
        op = canonical_name(native.domain, native.op_type)
        return Node(
            key=self.index.node_key(native),
            op=op,
            native=native_name(native.domain, native.op_type),
            scope=scope_of(native),
            inputs=LazyValues(self, _operands(native)),
            outputs=[self.value(output) for output in native.outputs],
            attributes=attributes_of(native, op, self._rank(native)),
            metadata=native.metadata_props,
        )

    def _rank(self, native: ir.Node) -> int | None:
        first = native.inputs[0] if native.inputs else None
        return None if first is None else self.value(first).type.rank


def is_constant(node: ir.Node) -> bool:
    """Whether a node is a Constant whose content is in the file: a value, not an operation."""
    return node.op_type == "Constant" and node.domain == "" and constant_tensor(node) is not None


def constant_of(value: ir.Value) -> ir.TensorProtocol | None:
    """Return the content of an initializer or Constant; None for everything else.

    An initializer that is also an input of the graph is a default that a caller may override: no constant.
    """
    producer = value.producer()
    if producer is not None:
        return constant_tensor(producer) if producer.op_type == "Constant" and producer.domain == "" else None
    return value.const_value if value.is_initializer() and not value.is_graph_input() else None


def constant_tensor(node: ir.Node) -> ir.TensorProtocol | None:
    """Return the content of a Constant node; None when it is a parameter of a function."""
    for name in _CONSTANT_TENSORS:
        attribute = node.attributes.get(name)
        if attribute is not None and not attribute.is_ref():
            if name == "value":
                return attribute.as_tensor()
            return ir.tensor(attribute.value, dtype=_ATTRIBUTE_DTYPES[name])
    return None


_ATTRIBUTE_DTYPES: Final = {
    "value_float": ir.DataType.FLOAT,
    "value_floats": ir.DataType.FLOAT,
    "value_int": ir.DataType.INT64,
    "value_ints": ir.DataType.INT64,
    "value_string": ir.DataType.STRING,
    "value_strings": ir.DataType.STRING,
}


def _operands(node: ir.Node) -> Sequence[ir.Value | None]:
    """Operands by position; for a structured op with None where the function's name says that one is absent."""
    structured = structured_op(node.op_type) if node.domain == DOMAIN else None
    if structured is None:
        return node.inputs
    op, absent = structured
    present = iter(node.inputs)
    return [None if operand.name in absent else next(present, None) for operand in op.operands]
