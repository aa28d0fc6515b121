"""Keys of values and nodes: given once when a model is loaded, kept by copies, and updated by each rewrite.

A value's key is its name, a node's key its name (its first output's name when it has none, or shares it). What lives
in a nested body has "<key of the outer node>/<attribute>/" before it. Keys that would clash get "#2", "#3" behind them.
"""

from collections import Counter
from collections.abc import Iterator

import onnx_ir as ir

from regraft.frontends.onnx._attributes import is_body

Item = ir.Value | ir.Node


class Index:
    """Keys to native values and nodes, and back. Every operation but the two constructors is O(1)."""

    def __init__(self) -> None:
        self._values: dict[str, ir.Value] = {}
        self._nodes: dict[str, ir.Node] = {}
        self._value_keys: dict[ir.Value, str] = {}
        self._node_keys: dict[ir.Node, str] = {}
        self._places: dict[ir.Node, float] = {}
        self._holders: dict[ir.Graph, ir.Node] = {}
        self._prefixes: dict[ir.Graph, str] = {}
        self._names: set[str] = set()
        self._counts: dict[str, int] = {}

    @classmethod
    def of(cls, graph: ir.Graph) -> "Index":
        """Return an index of the graph and its nested bodies, with new keys."""
        index = cls()
        index._enter(graph, "")
        return index

    def copy_to(self, source: ir.Graph, target: ir.Graph) -> "Index":
        """Return an index with the same keys for `target`, a clone of the indexed graph `source`."""
        index = Index()
        index._names = set(self._names)
        for old, new in zip(items(source), items(target), strict=True):
            if isinstance(old, ir.Value) and isinstance(new, ir.Value):
                index._put_value(self._value_keys[old], new)
            elif isinstance(old, ir.Node) and isinstance(new, ir.Node):
                index._put_node(self._node_keys[old], new, len(index._places))
                for (_, before), (_, after) in zip(bodies(old), bodies(new), strict=True):
                    index._holders[after] = new
                    index._prefixes[after] = self._prefixes[before]
        return index

    def value(self, key: str) -> ir.Value | None:
        """Return the value of that key, or None."""
        return self._values.get(key)

    def node(self, key: str) -> ir.Node | None:
        """Return the node of that key, or None."""
        return self._nodes.get(key)

    def value_key(self, value: ir.Value) -> str:
        """Return the key of a value of the graph."""
        return self._value_keys[value]

    def node_key(self, node: ir.Node) -> str:
        """Return the key of a node of the graph."""
        return self._node_keys[node]

    def is_nested(self, graph: ir.Graph | None) -> bool:
        """Whether that graph is the body of a node of the indexed one."""
        return graph in self._holders

    def scopes(self, graph: ir.Graph) -> Iterator[ir.Graph]:
        """Yield the graph and those around it, whose values it sees."""
        yield graph
        while graph in self._holders:
            outer = self._holders[graph].graph
            assert isinstance(outer, ir.Graph), "a node that holds a body stands in a graph"
            graph = outer
            yield graph

    def unused_node_name(self, wanted: str, graph: ir.Graph) -> str:
        """Return a name under which a node can be added to the graph: the wanted one, or with "_2", "_3" behind."""
        key = self._prefixes.get(graph, "") + wanted
        count = self._counts.get(key, 1)  # where the last search ended: a layer that is called often is not slow
        while (key if count == 1 else f"{key}_{count}") in self._nodes:
            count += 1
        self._counts[key] = count
        return wanted if count == 1 else f"{wanted}_{count}"

    def place(self, node: ir.Node) -> float:
        """Return a number that orders nodes as they run; those of a body come before the node that holds it."""
        return self._places[node]

    def unused_name(self, wanted: str) -> str:
        """Return a name that no value of any scope has, and reserve it: the wanted one, or with "_2", "_3" behind."""
        name, count = wanted, 1
        while name in self._names:
            count += 1
            name = f"{wanted}_{count}"
        self._names.add(name)
        return name

    def add_constant(self, value: ir.Value) -> None:
        """Index a new initializer."""
        self._put_value(_free(value.name or "", self._values), value)

    def add_node(self, node: ir.Node, place: float) -> None:
        """Index a new node under its name (its outputs are indexed apart)."""
        prefix = self._prefixes.get(node.graph, "") if isinstance(node.graph, ir.Graph) else ""
        self._put_node(_free(f"{prefix}{node.name}", self._nodes), node, place)

    def take_over(self, old: ir.Value, new: ir.Value) -> None:
        """Give the key of one value to another, which replaces it."""
        self._put_value(self._value_keys.pop(old), new)

    def rename(self, value: ir.Value) -> None:
        """Give a value that lost its key a new one, after its name."""
        self._put_value(_free(value.name or "", self._values), value)

    def remove_value(self, value: ir.Value) -> None:
        """Forget a value and its name."""
        self._values.pop(self._value_keys.pop(value), None)
        self._names.discard(value.name or "")

    def remove_node(self, node: ir.Node) -> None:
        """Forget a node, its outputs and its bodies; an output whose key was taken over is already gone."""
        del self._nodes[self._node_keys.pop(node)], self._places[node]
        for output in node.outputs:
            if output in self._value_keys:
                self.remove_value(output)
        for _, body in bodies(node):
            del self._holders[body], self._prefixes[body]
            for item in items(body):
                if isinstance(item, ir.Node) and item in self._node_keys:
                    self.remove_node(item)
                elif isinstance(item, ir.Value) and item in self._value_keys:
                    self.remove_value(item)

    def nodes(self) -> list[ir.Node]:
        """Return all nodes as they run."""
        return sorted(self._places, key=self._places.__getitem__)

    def _enter(self, graph: ir.Graph, prefix: str) -> None:
        counts = Counter(node.name for node in graph)
        for value in _own_values(graph):
            self._new_value(value, prefix)
        for node in graph:
            unique = node.name and counts[node.name] == 1
            named = node.name if unique else next((out.name for out in node.outputs if out.name), node.op_type)
            key = _free(prefix + str(named), self._nodes)
            self._nodes[key] = node  # taken now: the nodes of its bodies must not have the same key
            for name, body in bodies(node):
                self._holders[body], self._prefixes[body] = node, f"{key}/{name}/"
                self._enter(body, f"{key}/{name}/")
            self._put_node(key, node, len(self._places))
            for place, output in enumerate(node.outputs):
                if output.name:
                    self._new_value(output, prefix)
                else:  # an optional output that is absent
                    self._put_value(_free(f"{key}.{place}", self._values), output)

    def _new_value(self, value: ir.Value, prefix: str) -> None:
        name = value.name or ""
        self._names.add(name)
        self._put_value(_free(prefix + name, self._values), value)

    def _put_value(self, key: str, value: ir.Value) -> None:
        self._values[key] = value
        self._value_keys[value] = key

    def _put_node(self, key: str, node: ir.Node, place: float) -> None:
        self._nodes[key] = node
        self._node_keys[node] = key
        self._places[node] = place


def bodies(node: ir.Node) -> Iterator[tuple[str, ir.Graph]]:
    """Yield the nested graphs of a node with the names of the attributes that hold them."""
    for name, attribute in node.attributes.items():
        if attribute.is_ref() or not is_body(attribute):
            continue
        if attribute.type == ir.AttributeType.GRAPH:
            yield name, attribute.as_graph()
        else:
            yield from ((f"{name}.{place}", graph) for place, graph in enumerate(attribute.as_graphs()))


def items(graph: ir.Graph) -> Iterator[Item]:
    """Yield the values and nodes of a graph and its bodies, nested ones first; the same order in every clone."""
    yield from _own_values(graph)
    for node in graph:
        for _, body in bodies(node):
            yield from items(body)
        yield node
        yield from node.outputs


def _own_values(graph: ir.Graph) -> Iterator[ir.Value]:
    yield from dict.fromkeys((*graph.inputs, *graph.initializers.values()))


def _free(key: str, taken: dict[str, ir.Value] | dict[str, ir.Node]) -> str:
    count, free = 1, key
    while free in taken:
        count += 1
        free = f"{key}#{count}"
    return free
