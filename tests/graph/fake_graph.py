"""A graph written by hand, for tests of what only reads views: matcher, sites."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from regraft.errors import GraphError
from regraft.graph import Attribute, Dim, Node, TensorType, Value
from regraft.graph.types import type_of


class FakeGraph:
    """Views only: `input`, `weight`, `node` and `output` add to it, in order."""

    kind = "fx"
    name = "fake"

    def __init__(self) -> None:
        self._inputs: list[Value] = []
        self._constants: dict[str, tuple[Value, Tensor]] = {}
        self._nodes: list[Node] = []

    # Building

    def input(self, name: str, *shape: Dim, dtype: str = "float32") -> Value:
        value = Value(name, name, TensorType(dtype, shape), role="input")
        self._inputs.append(value)
        return value

    def weight(self, name: str, *shape: int, dtype: torch.dtype = torch.float32) -> Value:
        generator = torch.Generator().manual_seed(len(self._constants) + 1)
        return self.holding(name, torch.randn(shape, generator=generator).to(dtype))

    def holding(self, name: str, tensor: Tensor, type_: TensorType | None = None) -> Value:
        value = Value(f"c_{name}", name, type_ or type_of(tensor), role="constant")
        self._constants[value.key] = (value, tensor)
        return value

    def node(
        self,
        op: str,
        *inputs: Value | None,
        shape: Sequence[Dim] | None = (),
        key: str = "",
        scope: str = "",
        results: int = 1,
        nested: bool = False,
        **attributes: Attribute,
    ) -> Value:
        """Add a node; return its first result. `shape=None` leaves the type unknown."""
        key = key or f"{op}_{len(self._nodes)}"
        type_ = TensorType("float32", None if shape is None else tuple(shape))
        outputs = [
            Value(key if place == 0 else f"{key}.{place}", key, type_, nested=nested) for place in range(results)
        ]
        node = Node(key, op, op, scope, inputs, outputs, attributes)
        for value in outputs:
            value.producer = node
        for value in inputs:
            if value is not None and node not in value.users:
                value.users.append(node)
        self._nodes.append(node)
        return outputs[0]

    def output(self, *values: Value) -> "FakeGraph":
        for value in values:
            value.is_output = True
        return self

    # Reading, as in the protocol

    def inputs(self) -> Sequence[Value]:
        return self._inputs

    def constants(self) -> Sequence[Value]:
        return [value for value, _ in self._constants.values()]

    def nodes(self) -> Sequence[Node]:
        return self._nodes

    def value(self, key: str) -> Value:
        computed = (output for node in self._nodes for output in node.outputs)
        return next(value for value in (*self._inputs, *computed) if value.key == key)

    def constant(self, value: Value) -> Tensor | None:
        return self._constants[value.key][1] if value.key in self._constants else None

    def __getattr__(self, name: str) -> Any:
        raise GraphError(f"the fake graph has no {name}: a finder must only read views")
