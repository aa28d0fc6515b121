"""Which extents a program is expected to run with: those of its example inputs, for choosing tiles."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import sympy
from torch import Tensor

from regraft.frontends.torch import FxGraph
from regraft.graph import Graph
from regraft.graph.symbols import dim_expr
from regraft.graph.types import Dim

_GUESS: Final = 32
"""For an extent that no example tells; a batch and a sequence of so many are 1024 rows."""


@dataclass(frozen=True)
class Expected:
    """Expected extents of named dims."""

    known: Mapping[str, int]

    def __call__(self, dim: Dim) -> int:
        """Return the extent of a dim; at least 2 for a free one, which must not look like a broadcast one."""
        if isinstance(dim, int):
            return dim
        symbolic = dim_expr(dim)
        found = symbolic.subs({at: self.known[str(at)] for at in symbolic.free_symbols if str(at) in self.known})
        return max(2, int(found)) if isinstance(found, sympy.Integer) else _GUESS


def expected_extents(graph: Graph) -> Expected:
    """Return the extents of a graph's example inputs; nothing is known of those of an ONNX graph."""
    if not isinstance(graph, FxGraph):
        return Expected({})
    args, kwargs = graph.example_inputs
    given = {**dict(zip(graph.parameter_names, args, strict=False)), **kwargs}
    known: dict[str, int] = {}
    for value in graph.inputs():
        example = given.get(value.name)
        if isinstance(example, Tensor):
            pairs = zip(value.type.shape or (), example.shape, strict=False)
            known |= {dim: extent for dim, extent in pairs if isinstance(dim, str)}
    return Expected(known)
