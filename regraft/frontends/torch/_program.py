"""The mutable state under an FxGraph: an fx graph, its tensors, and an index from names to nodes."""

from collections.abc import Collection, Hashable, Iterable
from typing import Any, Final

import torch.utils._pytree as pytree
from torch import Tensor, fx

from regraft.errors import GraphError
from regraft.frontends.torch._canonical import is_getitem, is_type_assertion
from regraft.frontends.torch._module import copy_graph
from regraft.frontends.torch._store import TensorStore, attribute
from regraft.graph.sharing import content_key


class Program:
    """An fx graph and the tensors that it reads, owned together.

    In a program, every tensor is read by one get_attr node, every result of a node with several ones by one getitem
    node, and nothing asserts element types.

    Attributes:
        graph: nodes; their names are the keys of views.
        store: tensors.
        index: nodes by name.
    """

    def __init__(self, graph: fx.Graph, store: TensorStore) -> None:
        self.graph: Final = graph
        self.store: Final = store
        self.index: Final = {node.name: node for node in graph.nodes}
        self._compiled = False
        self._small: Final[dict[Hashable, fx.Node]] = {}

    @classmethod
    def of(cls, module: fx.GraphModule) -> "Program":
        """Return a program of its own over the module's tensors; the module is not changed."""
        graph = copy_graph(module.graph)
        _normalize(graph, module)
        targets = [str(node.target) for node in graph.nodes if node.op in ("get_attr", "call_module")]
        return cls(graph, TensorStore.of(module, targets))

    def copy(self) -> "Program":
        """Return a program of its own over the same tensors; nodes keep their names."""
        return Program(copy_graph(self.graph), self.store.copy())

    @property
    def module(self) -> fx.GraphModule:
        """The program as a module that can be called; built when asked for, and the same object every time."""
        if not self._compiled:
            self.store.module.graph = self.graph
            self._compiled = True
        return self.store.module

    def node(self, key: str, where: str) -> fx.Node:
        """Return the node of that name.

        Raises:
            GraphError: when there is none; `where` begins the message.
        """
        node = self.index.get(key)
        if node is None:
            raise GraphError(f"{where}: {key!r} is not in this graph (any more)")
        return node

    def changed(self) -> None:
        """Note that nodes were changed: the module is compiled again before it is handed out."""
        self._compiled = False

    def validate(self) -> None:
        """Check that nodes stand in order, that what they read is there, and that every result has a type.

        Raises:
            GraphError: naming the node.
        """
        try:
            self.graph.lint()
        except RuntimeError as error:
            raise GraphError(f"the graph is broken: {str(error).splitlines()[0]}") from error
        for node in self.graph.nodes:
            if node.op == "get_attr":
                self.store.get(str(node.target))
            elif node.op == "call_function" and node.users and "val" not in node.meta:
                raise GraphError(f"{node.name} ({node.target}) has no type")

    def add_constant(self, name: str, before: fx.Node) -> fx.Node:
        """Insert the node that reads a tensor of the store, with the type that tracing would give it."""
        with self.graph.inserting_before(before):
            node = self.graph.create_node("get_attr", name, name=name.replace(".", "_"))
        mode = _fake_mode(before)
        if mode is not None:
            node.meta["val"] = mode.from_tensor(self.store.get(name), static_shapes=True)
        self.index[node.name] = node
        key = content_key(self.store.get(name))
        if key is not None:
            self._small[key] = node
        return node

    def shared_constant(self, tensor: Tensor, before: fx.Node) -> fx.Node | None:
        """Return the node that reads a small integer constant of this content, moved up where needed; else None."""
        node = self._small.get(content_key(tensor))
        if node is None or self.index.get(node.name) is not node:
            return None
        if before < node:
            before.prepend(node)
        return node

    def erase_unread(self, candidates: Iterable[fx.Node], protected: Collection[fx.Node]) -> list[fx.Node]:
        """Erase candidates that nothing reads, and in turn what only they read; tensors go with their readers.

        Inputs of the graph, nodes with side effects and the protected ones stay.

        Returns:
            The erased nodes.
        """
        erased: list[fx.Node] = []
        waiting = list(candidates)
        while waiting:
            node = waiting.pop()
            if node.users or node in protected or node.name not in self.index or _must_stay(node):
                continue
            waiting.extend(node.all_input_nodes)
            if node.op == "get_attr":
                self.store.drop(str(node.target))
            self.graph.erase_node(node)
            del self.index[node.name]
            erased.append(node)
        return erased


def _must_stay(node: fx.Node) -> bool:
    if node.op == "get_attr":
        return False
    # What only draws random numbers, as attention with its dropout may, changes nothing that anybody sees.
    return node.op != "call_function" or node.is_impure(impure_random=False)


def _fake_mode(node: fx.Node) -> Any:
    for value in pytree.tree_leaves(node.meta.get("val")):
        if isinstance(value, Tensor):
            return getattr(value, "fake_mode", None)
    return None


def _normalize(graph: fx.Graph, module: fx.GraphModule) -> None:
    """Bring a traced graph into the form that Program promises."""
    readers: dict[int, fx.Node] = {}
    picks: dict[tuple[fx.Node, Any], fx.Node] = {}
    for node in list(graph.nodes):
        if is_type_assertion(node):
            graph.erase_node(node)
        elif node.op == "get_attr":
            value = attribute(module, str(node.target))
            first = readers.setdefault(id(value), node)
            _merge(graph, node, first)
        elif is_getitem(node):
            first = picks.setdefault((node.args[0], node.args[1]), node)  # pyright: ignore[reportArgumentType]
            _merge(graph, node, first)
    for node in readers.values():
        if not node.users:
            graph.erase_node(node)


def _merge(graph: fx.Graph, node: fx.Node, first: fx.Node) -> None:
    if node is not first:
        node.replace_all_uses_with(first)
        graph.erase_node(node)
