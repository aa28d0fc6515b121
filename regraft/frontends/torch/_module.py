"""The module that a captured program is handed out as."""

# torch has no public name for some of what is used here.
# pyright: reportPrivateUsage=false

from copy import copy, deepcopy
from typing import Any, Final

from torch import fx, nn

_OF_THE_GRAPH: Final = ("_graph", "_in_spec", "_out_spec", "_code", "_lineno_map", "_prologue_start", "meta")


class CapturedModule(fx.GraphModule):
    """An fx.GraphModule that copies as other modules do.

    fx's own copy drops hooks, makes saved buffers of those that are not saved, and copies structures of inputs and
    outputs, of which torch then warns.
    """

    def __init__(self) -> None:
        super().__init__(nn.Module(), fx.Graph())

    def __deepcopy__(self, memo: dict[int, Any]) -> "CapturedModule":
        twin = CapturedModule()
        memo[id(self)] = twin
        for name, value in self.__dict__.items():
            if name not in _OF_THE_GRAPH:
                twin.__dict__[name] = deepcopy(value, memo)
        twin.meta = copy(self.meta)
        twin.graph = copy_graph(self.graph)
        return twin


def borrowed(module: nn.Module) -> nn.Module:
    """Return a copy over the same memory: moved to another device or type, it leaves the module's own tensors alone."""
    memo: dict[int, Any] = {}
    for tensor in (*module.parameters(), *module.buffers()):
        plain = tensor.detach()
        is_parameter = isinstance(tensor, nn.Parameter)
        memo[id(tensor)] = nn.Parameter(plain, tensor.requires_grad) if is_parameter else plain
    return deepcopy(module, memo)


def copy_graph(graph: fx.Graph) -> fx.Graph:
    """Return a copy with the same names; what nodes know of themselves (`meta`) is shared, entry by entry."""
    twin_graph = fx.Graph(tracer_cls=graph._tracer_cls)
    twins: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        twin = twin_graph.node_copy(node, twins.__getitem__)
        assert twin.name == node.name, "names of a graph are unique, so that none has to be made up"
        twins[node] = twin
    twin_graph._codegen = graph._codegen  # never changed in place
    return twin_graph
