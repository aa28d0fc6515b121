"""Calls of the user's functions that were inlined to see what is inside: put back where nothing inside was rewritten.

Every node that comes from a call remembers it, in `ir.Node.meta`, which copies keep, files do not, and new nodes do not
have. A call whose nodes are all still there is the call that it was.
"""

from collections import ChainMap
from collections.abc import Collection, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Final

import onnx_ir as ir

from regraft.frontends.onnx._canonical import DOMAIN
from regraft.frontends.onnx._index import bodies

_MARK: Final = "regraft.call"
_NAME: Final = "regraft.name"


@dataclass(eq=False)
class Call:
    """A call as it stood in the file.

    Attributes:
        node: the node; its operands are detached.
        inputs: names of its operands; None for absent ones.
        results: how many results it takes, which may be fewer than the function returns.
        size: how many nodes it became, those in nested bodies included.
    """

    node: ir.Node
    inputs: Sequence[str | None]
    results: int
    size: int = 0

    @property
    def name(self) -> str:
        """What the nodes inside are named after."""
        return self.node.name or next((str(value.name) for value in self.node.outputs if value.name), self.node.op_type)


@dataclass(frozen=True)
class Opened:
    """What a model was before calls were inlined.

    Attributes:
        functions: the user's functions, as the file has them.
        inlined: those whose calls were inlined.
        imports: versions of the domains that the model used.
    """

    functions: Mapping[ir.OperatorIdentifier, ir.Function]
    inlined: frozenset[ir.OperatorIdentifier]
    imports: Mapping[str, int]


def mark_calls(model: ir.Model, chosen: Collection[ir.OperatorIdentifier]) -> tuple[Opened, Mapping[str, Call]]:
    """Mark what inlining will copy: calls in the graph, and the names of what is in the functions."""
    user = {key: function.clone() for key, function in model.functions.items() if key[0] != DOMAIN}
    opened = Opened(user, frozenset(chosen), dict(model.opset_imports))
    inner = [node for identifier in chosen for node in model.functions[identifier].all_nodes()]
    for node in (*inner, *model.graph.all_nodes()):
        node.metadata_props.pop(_MARK, None)
    for node in inner:
        node.meta[_NAME] = node.name or node.op_type
        for output in node.outputs:
            output.meta[_NAME] = output.name
    calls: dict[str, Call] = {}
    for node in model.graph.all_nodes():
        if node.op_identifier() in chosen:
            mark = str(len(calls))
            inputs = [None if value is None else value.name for value in node.inputs]
            calls[mark] = Call(node, inputs, len(node.outputs))
            node.metadata_props[_MARK] = mark  # which inlining hands to every node that it makes of the call
    _take_all_results(model, chosen)
    return opened, calls


def _take_all_results(model: ir.Model, chosen: Collection[ir.OperatorIdentifier]) -> None:
    """Inlining wants a call to take every result; in a file the last ones may be left out."""
    for graph in (model.graph, *(function.graph for function in model.functions.values())):
        for node in graph.all_nodes():
            if node.op_identifier() in chosen:
                node.resize_outputs(max(len(node.outputs), len(model.functions[node.op_identifier()].outputs)))


def settle_calls(model: ir.Model, calls: Mapping[str, Call]) -> None:
    """Let the nodes remember the calls that they come from, and name them and their results after these."""
    nodes = list(model.graph.all_nodes())
    node_names = {str(node.name) for node in nodes}
    value_names = {str(value.name) for value in _values(model.graph)}
    for call in calls.values():
        call.node.metadata_props.pop(_MARK)
    for node in nodes:
        mark = node.metadata_props.pop(_MARK, None)
        if mark is None:
            continue
        call = calls[mark]
        call.size += 1
        node.meta[_MARK] = call
        node.name = _free(f"{call.name}/{node.meta.pop(_NAME)}", node_names)
        own = {value.name for value in call.node.outputs if value.name}
        for output in node.outputs:
            name = output.meta.pop(_NAME, None)
            if name and output.name not in own:
                output.name = _free(f"{call.name}/{name}", value_names)


def close_calls(model: ir.Model, opened: Opened) -> None:
    """Put calls back in which nothing was rewritten, and the functions that are called or were never inlined."""
    _close_in(model.graph, {})
    others = {key: function for key, function in model.functions.items() if key not in opened.functions}
    kept = _called(model, opened)
    model.functions.clear()
    model.functions.update({key: function.clone() for key, function in opened.functions.items() if key in kept})
    model.functions.update(others)
    used = {node.domain for node in model.graph.all_nodes()}
    for domain in [domain for domain in model.opset_imports if domain not in {*opened.imports, *used}]:
        del model.opset_imports[domain]


def _called(model: ir.Model, opened: Opened) -> set[ir.OperatorIdentifier]:
    """The user's functions that are called from the graph or from each other, and those that were never inlined."""
    kept: set[ir.OperatorIdentifier] = set()
    waiting = [node.op_identifier() for node in model.graph.all_nodes()]
    waiting += [key for key in opened.functions if key not in opened.inlined]
    while waiting:
        key = waiting.pop()
        if key in opened.functions and key not in kept:
            kept.add(key)
            waiting.extend(node.op_identifier() for node in opened.functions[key].all_nodes())
    return kept


def _close_in(graph: ir.Graph, outer: MutableMapping[str, ir.Value]) -> None:
    visible = ChainMap({str(value.name): value for value in _own_values(graph)}, outer)
    groups: dict[Call, list[ir.Node]] = {}
    for node in graph:
        call = node.meta.get(_MARK)
        if isinstance(call, Call):
            groups.setdefault(call, []).append(node)
        else:
            for _, body in bodies(node):
                _close_in(body, visible)
    for call, nodes in groups.items():
        if _is_whole(call, nodes):
            _put_back(graph, call, nodes, visible)


def _is_whole(call: Call, nodes: Sequence[ir.Node]) -> bool:
    """Whether all nodes of a call are still there, and nothing else reads what is inside."""
    inside = [item for node in nodes for item in _with_bodies(node)]
    if sum(item.meta.get(_MARK) is call for item in inside) != call.size:
        return False
    own, members = {value.name for value in call.node.outputs}, set(inside)
    hidden = [value for node in nodes for value in node.outputs if value.name not in own]
    return not any(value.is_graph_output() or not members.issuperset(value.consumers()) for value in hidden)


def _put_back(graph: ir.Graph, call: Call, nodes: Sequence[ir.Node], visible: MutableMapping[str, ir.Value]) -> None:
    made = _copy_of(call, [None if name is None else visible[name] for name in call.inputs])
    inner = {value.name: value for node in nodes for value in node.outputs}
    graph.insert_after(nodes[-1], made)
    for value in made.outputs:
        old = inner.get(value.name) if value.name else None
        if old is not None:
            old.replace_all_uses_with(value, replace_graph_outputs=True)
            visible[str(value.name)] = value
    graph.remove(nodes, safe=True)


def _copy_of(call: Call, inputs: Sequence[ir.Value | None]) -> ir.Node:
    node = call.node
    made = ir.Node(
        node.domain,
        node.op_type,
        inputs,
        list(node.attributes.values()),
        overload=node.overload,
        num_outputs=call.results,
        version=node.version,
        name=node.name,
        doc_string=node.doc_string,
        metadata_props=dict(node.metadata_props),
    )
    for new, old in zip(made.outputs, node.outputs[: call.results], strict=True):
        new.name, new.type, new.shape, new.doc_string = old.name, old.type, old.shape, old.doc_string
        new.metadata_props.update(old.metadata_props)
    return made


def _with_bodies(node: ir.Node) -> Iterator[ir.Node]:
    yield node
    for _, body in bodies(node):
        yield from body.all_nodes()


def _own_values(graph: ir.Graph) -> Iterator[ir.Value]:
    yield from graph.inputs
    yield from graph.initializers.values()
    for node in graph:
        yield from node.outputs


def _values(graph: ir.Graph) -> Iterator[ir.Value]:
    yield from _own_values(graph)
    for body in graph.subgraphs():
        yield from _own_values(body)


def _free(name: str, taken: set[str]) -> str:
    free, count = name, 1
    while free in taken:
        count += 1
        free = f"{name}_{count}"
    taken.add(free)
    return free
