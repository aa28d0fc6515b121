"""Read-only views of a program: built once, then kept up to date by each rewrite."""

import operator
from bisect import bisect_left, insort
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx

from regraft.errors import GraphError
from regraft.frontends.torch._canonical import canonical, is_assertion, is_getitem
from regraft.frontends.torch._program import Program
from regraft.frontends.torch._scope import scope_of
from regraft.frontends.torch._types import Typer
from regraft.graph.types import type_of
from regraft.graph.view import Node, Value

METADATA: Final = "regraft"
"""Where a node's `meta` holds what `annotate` adds."""

_SYMBOLIC: Final = (torch.SymInt, torch.SymFloat, torch.SymBool)


def is_input(node: fx.Node) -> bool:
    """Whether a placeholder stands for something that is given at run time, not for a constant of the capture."""
    return "val" not in node.meta or isinstance(node.meta["val"], (Tensor, *_SYMBOLIC))


class Views:
    """Nodes and values of a program.

    Attributes:
        inputs: tensors and symbolic numbers that the graph takes.
        outputs: what it returns, one entry a leaf.
        values: all values by key.
        nodes: nodes by key, in graph order.
    """

    def __init__(self, program: Program, typer: Typer) -> None:
        self._program: Final = program
        self._typer: Final = typer
        self._order: Final = {node.name: place for place, node in enumerate(program.graph.nodes)}
        self._reads: Final[dict[str, list[Value]]] = {}
        self.inputs: Final[list[Value]] = []
        self.outputs: Final[list[Value]] = []
        self.values: Final[dict[str, Value]] = {}
        self.nodes: Final[dict[str, Node]] = {}
        for node in program.graph.nodes:
            self._add(node)

    def constants(self) -> list[Value]:
        """Return constants that the program reads, in the order in which it first does."""
        read = [value for node in self.nodes.values() for value in self._reads[node.key]]
        return list(dict.fromkeys(value for value in (*read, *self.outputs) if value.role == "constant"))

    def value(self, key: str) -> Value:
        """Return the value of that key.

        Raises:
            GraphError: when there is none.
        """
        value = self.values.get(key)
        if value is None:
            raise GraphError(f"the graph has no value {key!r}")
        return value

    def update(self, changed: Sequence[fx.Node], added: Iterable[fx.Node], erased: Sequence[fx.Node]) -> bool:
        """Follow a rewrite of some nodes; return False when it is too unusual, and the views must be built anew."""
        if any(node.name not in self.nodes for node in changed):
            return False
        if any(node.name not in self.values or node.target is operator.getitem for node in erased):
            return False
        for node in erased:
            self._unlink(node.name)
            self.nodes.pop(node.name, None)
            del self.values[node.name]
        for node in added:
            self._add_constant(node)
        for node in changed:
            self._renew(node, self.nodes[node.name])
        return True

    def _renew(self, node: fx.Node, view: Node) -> None:
        self._unlink(node.name)
        fresh = self._view(node, view.outputs)
        view.op, view.native, view.scope = fresh.op, fresh.native, fresh.scope
        view.inputs, view.attributes, view.metadata = fresh.inputs, fresh.attributes, fresh.metadata
        self._link(node, view)

    def _add(self, node: fx.Node) -> None:
        if node.op == "placeholder":
            if is_input(node):
                value = Value(node.name, str(node.target), self._typer.type_of(node.meta.get("val")), "input")
                self.values[node.name] = value
                self.inputs.append(value)
        elif node.op == "get_attr":
            self._add_constant(node)
        elif node.op == "output":
            self.outputs.extend(self.values[leaf.name] for leaf in output_nodes(node))
            for value in self.outputs:
                value.is_output = True
        elif not is_assertion(node) and not is_getitem(node):
            view = self._view(node, self._results(node))
            self.nodes[node.name] = view
            for value in view.outputs:
                value.producer = view
                self.values[value.key] = value
            self._link(node, view)

    def _add_constant(self, node: fx.Node) -> None:
        target = str(node.target)
        tensor = self._program.store.get(target)
        if isinstance(tensor, Tensor):
            name = self._program.store.aliases(target)[0]
            self.values[node.name] = Value(node.name, name, type_of(tensor), "constant")

    def _results(self, node: fx.Node) -> Sequence[Value]:
        result: Any = node.meta.get("val")
        picks = {user.args[1]: user for user in node.users if is_getitem(user)}
        if not picks:
            return (Value(node.name, node.name, self._typer.type_of(result)),)
        keys = [picks[place].name if place in picks else result_key(node, place) for place in range(len(result))]
        return tuple(Value(key, key, self._typer.type_of(part)) for key, part in zip(keys, result, strict=True))

    def _view(self, node: fx.Node, results: Sequence[Value]) -> Node:
        call = canonical(node)
        operands = [None if operand is None else self.values.get(operand.name) for operand in call.operands]
        metadata: Mapping[str, str] = node.meta.get(METADATA, {})
        scope = scope_of(node, self._program.store)
        return Node(node.name, call.op, call.native, scope, operands, results, call.attributes, dict(metadata))

    def _link(self, node: fx.Node, view: Node) -> None:
        """Enter a node among the users of what it reads, symbolic numbers among its attributes included."""
        read = [self.values[source.name] for source in node.all_input_nodes if source.name in self.values]
        self._reads[node.name] = read
        for value in read:
            insort(value.users, view, key=self._place)

    def _unlink(self, key: str) -> None:
        for value in self._reads.pop(key, ()):
            del value.users[bisect_left(value.users, self._order[key], key=self._place)]

    def _place(self, view: Node) -> int:
        return self._order[view.key]


def output_nodes(output: fx.Node) -> list[fx.Node]:
    """Return the nodes that an output node returns, one entry a leaf; constants among them are left out."""
    return [leaf for leaf in pytree.tree_leaves(output.args[0]) if isinstance(leaf, fx.Node)]


def result_key(node: fx.Node, place: int) -> str:
    """Return the key of a result that nothing reads, of a node with several."""
    return f"{node.name}:{place}"
