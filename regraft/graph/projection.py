"""Projections: what a linear layer and a low-rank one have in common, for patterns that take either.

y = x · weightᵀ + bias        y = (x · downᵀ) · upᵀ + bias
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final

from torch import Tensor

from regraft.errors import GraphError
from regraft.graph.cost import constant_bytes
from regraft.graph.graph import Graph
from regraft.graph.linear import constant_behind, find_linear_sites
from regraft.graph.matcher import source
from regraft.graph.site import LinearSite
from regraft.graph.view import Node, Value

FACTORED: Final = "lowrank_linear"
"""The op of a layer that is held as two factors: operands x, down, up, bias."""


@dataclass(frozen=True, eq=False)
class Stored:
    """A constant of a graph and how to read it.

    Attributes:
        value: the constant.
        transposed: whether it holds the transpose of what it stands for.
        factor: what its content is multiplied by.
    """

    value: Value
    transposed: bool = False
    factor: float = 1.0

    def read(self, graph: Graph) -> Tensor:
        """Return the content, loaded now; a view of what is stored unless `factor` says otherwise."""
        stored = graph.constant(self.value)
        if stored is None:
            raise GraphError(f"weight {self.value.name} has no content")
        content = stored.detach().t() if self.transposed else stored.detach()
        return content if self.factor == 1.0 else content * self.factor


@dataclass(frozen=True, eq=False)
class Projection:
    """One call of a linear layer, dense or held as two factors.

    Attributes:
        name: the layer's name in the user's model.
        x: what it reads.
        output: what it computes.
        nodes: keys of the nodes that compute it.
        in_features: width of x.
        out_features: width of the output.
        graph: where the weights are read from.
        down_value: the first factor [rank, in]; None for a dense layer.
        up_value: the second factor [out, rank], or the weight [out, in] of a dense layer.
        bias_value: the bias, [out] or a single number, or None.
        shared: whether other calls read its weight.
    """

    name: str
    x: Value
    output: Value
    nodes: tuple[str, ...]
    in_features: int
    out_features: int
    graph: Graph = field(repr=False)
    down_value: Stored | None
    up_value: Stored
    bias_value: Stored | None
    shared: bool = False

    @property
    def is_factored(self) -> bool:
        """Whether it is held as two factors."""
        return self.down_value is not None

    @cached_property
    def down(self) -> Tensor | None:
        """The first factor [rank, in]; None for a dense layer. Loaded on first use."""
        return None if self.down_value is None else self.down_value.read(self.graph)

    @cached_property
    def up(self) -> Tensor:
        """The second factor [out, rank]; the weight [out, in] of a dense layer. Loaded on first use."""
        return self.up_value.read(self.graph)

    @property
    def weight(self) -> Tensor:
        """The weight [out, in]: the product of the factors where it is held as two."""
        return self.up if self.down is None else self.up @ self.down

    @cached_property
    def bias(self) -> Tensor | None:
        """The bias as [out], or None. Loaded on first use."""
        if self.bias_value is None:
            return None
        return self.bias_value.read(self.graph).reshape(-1).expand(self.out_features)

    @property
    def rank(self) -> int | None:
        """Rank of the factors; None for a dense layer."""
        if self.down_value is None:
            return None
        rows, columns = _extents(self.down_value)
        return columns if self.down_value.transposed else rows

    @property
    def bytes(self) -> int:
        """Size of its parameters in bytes."""
        parts = [
            stored.value.type for stored in (self.down_value, self.up_value, self.bias_value) if stored is not None
        ]
        return sum(constant_bytes(type_) or 0 for type_ in parts)

    def reference(self, x: Tensor) -> Tensor:
        """Return what it computes, in float64; x [..., in] -> [..., out]."""
        p = x.double() if self.down is None else x.double() @ self.down.double().t()
        y = p @ self.up.double().t()
        return y if self.bias is None else y + self.bias.double()


def find_projections(graph: Graph) -> Mapping[str, Projection]:
    """Return every call of a linear or low-rank layer, by the key of its output, in no particular order."""
    sites, _ = find_linear_sites(graph)
    dense = [_from_site(graph, call, shared=bool(site.others)) for site in sites for call in site.calls]
    factored = [_from_node(graph, node) for node in graph.nodes() if node.op == FACTORED]
    found = [*dense, *(projection for projection in factored if projection is not None)]
    return {projection.output.key: projection for projection in found}


def _from_site(graph: Graph, call: LinearSite, *, shared: bool) -> Projection:
    bias = call.bias_value
    return Projection(
        name=call.name,
        x=graph.value(call.input),
        output=graph.value(call.output),
        nodes=tuple(call.nodes),
        in_features=call.in_features,
        out_features=call.out_features,
        graph=graph,
        down_value=None,
        up_value=Stored(call.weight_value, call.transposed, call.alpha),
        bias_value=None if bias is None else Stored(bias, factor=call.beta),
        shared=shared or bool(call.weight_readers),
    )


def _from_node(graph: Graph, node: Node) -> Projection | None:
    """A node of the low-rank op; None where a factor is computed, and no constant."""
    x, down_operand, up_operand, bias_operand = [*node.inputs, *[None] * 4][:4]
    if x is None or down_operand is None or up_operand is None:
        return None
    down, passed_down = _factor(graph, down_operand)
    up, passed_up = _factor(graph, up_operand)
    bias = None if bias_operand is None else source(bias_operand)[0]
    if down is None or up is None or (bias is not None and bias.role != "constant"):
        return None
    rows, columns = _extents(down), _extents(up)
    return Projection(
        name=node.metadata.get("regraft.site") or node.scope or node.key,
        x=x,
        output=node.outputs[0],
        nodes=(node.key, *(passed.key for passed in (*passed_down, *passed_up))),
        in_features=rows[0] if down.transposed else rows[1],
        out_features=columns[1] if up.transposed else columns[0],
        graph=graph,
        down_value=down,
        up_value=up,
        bias_value=None if bias is None else Stored(bias),
        shared=any(len(stored.value.users) > 1 for stored in (down, up)),
    )


def _factor(graph: Graph, operand: Value) -> tuple[Stored | None, tuple[Node, ...]]:
    value, turned, passed = constant_behind(operand)
    if value is None or value.type.rank != 2:
        return None, ()
    # ONNX holds the weights of structured ops transposed, as the right operands of products.
    return Stored(value, transposed=turned != (graph.kind == "onnx")), passed


def _extents(stored: Stored) -> tuple[int, int]:
    rows, columns = (int(extent) for extent in stored.value.type.shape or ())
    return rows, columns
