"""Finding feed-forward layers: two linear layers with an activation between them, or three of which one is a gate.

    y = out(act(in(x)))        y = out(act(gate(x)) · in(x))        [+ residual]

The layers may be dense or held as two factors, the tensors between them reshaped in their leading dims.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor

from regraft.graph._rows import behind, in_rows_of, sum_behind
from regraft.graph.activation import FUNCTIONS, Activation, recognize_activation
from regraft.graph.graph import Graph
from regraft.graph.matcher import LOOK_THROUGH
from regraft.graph.projection import Projection, find_projections
from regraft.graph.site import NearMiss, Numbering, Site
from regraft.graph.view import Node, Value


@dataclass(frozen=True, eq=False)
class MlpSite(Site):
    """A feed-forward layer.

    Attributes:
        inner: the layer into the hidden width; behind a gate the one that is not activated.
        gate: the layer whose activated result multiplies that of `inner`, or None.
        outer: the layer out of the hidden width.
        activation: its name, a key of `regraft.graph.activation.FUNCTIONS`.
        nested: whether it lives in a nested body (If, Loop, Scan), where its inputs cannot be tapped.
    """

    inner: Projection = field(repr=False)
    gate: Projection | None = field(repr=False)
    outer: Projection = field(repr=False)
    activation: str
    nested: bool = False

    @property
    def layers(self) -> tuple[Projection, ...]:
        """Its linear layers, in the order in which data passes them."""
        return (self.inner, self.outer) if self.gate is None else (self.gate, self.inner, self.outer)

    @property
    def hidden(self) -> int:
        """The hidden width."""
        return self.inner.out_features

    @property
    def shared(self) -> bool:
        """Whether something else reads one of its weights."""
        return any(layer.shared for layer in self.layers)

    @property
    def bytes(self) -> int:
        """Size of the parameters of its layers in bytes."""
        return sum(layer.bytes for layer in self.layers)

    def describe(self) -> str:
        """Return its widths and activation ("384->1536->384 gelu")."""
        widths = f"{self.inner.in_features}->{self.hidden}->{self.outer.out_features}"
        return f"{widths} {'' if self.gate is None else 'gated '}{self.activation}"

    def tensors(self) -> dict[str, Tensor]:
        """Return its weights by the names of the operands of the op `lowrank_mlp`; loaded now."""
        named = {f"in_{part}": tensor for part, tensor in _inward(self.inner).items()}
        if self.gate is not None:
            named |= {f"gate_{part}": tensor for part, tensor in _inward(self.gate).items()}
        outer = self.outer
        parts = {"out_down": outer.up} if outer.down is None else {"out_down": outer.down, "out_up": outer.up}
        named |= parts if outer.bias is None else {**parts, "out_bias": outer.bias}
        return named

    def reference(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Return what the layers compute one after the other, in float64."""
        hidden = self.inner.reference(x)
        if self.gate is None:
            hidden = FUNCTIONS[self.activation](hidden)
        else:
            hidden = FUNCTIONS[self.activation](self.gate.reference(x)) * hidden
        y = self.outer.reference(hidden)
        return y if residual is None else y + residual.double()


def _inward(layer: Projection) -> dict[str, Tensor]:
    parts = {"up": layer.up} if layer.down is None else {"down": layer.down, "up": layer.up}
    return parts if layer.bias is None else {**parts, "bias": layer.bias}


def find_mlp_sites(graph: Graph) -> tuple[list[MlpSite], list[NearMiss]]:
    """Return all feed-forward layers in graph order, and what looked like one and is none, with the reasons.

    A linear layer belongs to one feed-forward layer at most. Different ones of one name get "#2", "#3" behind it.
    """
    projections = find_projections(graph)
    sites: list[MlpSite] = []
    misses: list[NearMiss] = []
    taken: dict[str, str] = {}
    numbering = Numbering()
    for outer in _in_order(graph, projections):
        found = _site(graph, projections, outer)
        if isinstance(found, MlpSite):
            found = _free(found, taken)
        if isinstance(found, MlpSite):
            site = numbering.apart(found)
            taken.update({layer.output.key: site.name for layer in site.layers})
            sites.append(site)
        elif found is not None:
            misses.append(NearMiss(outer.name, found))
    return sites, misses


def with_residual(site: MlpSite) -> MlpSite | None:
    """Return the site with the addition behind it, where the layer's result is read by nothing else; else None.

    The other summand is the operand "residual", of the type of the result.
    """
    found = sum_behind(site.outer.output)
    if found is None or found[0].outputs[0].nested != site.nested:
        return None
    sum_, residual, passed = found
    x = in_rows_of(site.inner.x, sum_.outputs[0])
    if x is None:
        return None
    return replace(
        site,
        operands={"x": x.key, "residual": residual.key},
        output=sum_.outputs[0].key,
        nodes=(sum_.key, *(node.key for node in reversed(passed)), *site.nodes),
    )


def _in_order(graph: Graph, projections: Mapping[str, Projection]) -> list[Projection]:
    outputs = [value.key for node in graph.nodes() for value in node.outputs]
    return [projections[key] for key in outputs if key in projections]


def _free(site: MlpSite, taken: Mapping[str, str]) -> MlpSite | str:
    for layer in site.layers:
        if layer.output.key in taken:
            return f"{layer.name} belongs to the feed-forward layer {taken[layer.output.key]}"
    return site


@dataclass(frozen=True)
class _Hidden:
    """What an outer layer reads: layers, an activation, and the nodes between them."""

    inner: Projection
    gate: Projection | None
    activation: str
    nodes: tuple[Node, ...]


def _site(graph: Graph, projections: Mapping[str, Projection], outer: Projection) -> MlpSite | str | None:
    hidden = _hidden(graph, projections, outer)
    if not isinstance(hidden, _Hidden):
        return hidden
    inner, gate = hidden.inner, hidden.gate
    layers = [layer for layer in (inner, gate, outer) if layer is not None]
    if gate is not None and gate.x is not inner.x:
        return f"{gate.name} reads {gate.x.key}, {inner.name} reads {inner.x.key}"
    if any(layer.output.nested != outer.output.nested for layer in layers):
        return f"{inner.name} stands outside of the nested body of {outer.name}"
    between = tuple(node.key for node in hidden.nodes)
    covered = tuple(dict.fromkeys((*outer.nodes, *between, *(key for layer in layers for key in layer.nodes))))
    problem = _read_elsewhere(layers, hidden.nodes, covered) or _rows_problem(inner.x, outer.output)
    return problem or MlpSite(
        name=_common_name([layer.name for layer in layers]),
        operands={"x": inner.x.key},
        output=outer.output.key,
        nodes=covered,
        inner=inner,
        gate=gate,
        outer=outer,
        activation=hidden.activation,
        nested=outer.output.nested,
    )


def _hidden(graph: Graph, projections: Mapping[str, Projection], outer: Projection) -> _Hidden | str | None:
    value, passed = behind(outer.x)
    activation = recognize_activation(graph, value)
    if activation is not None:
        return _plain(projections, activation, passed)
    node = value.producer
    if node is None or node.op in _LAYOUT:
        return None
    operands = [behind(operand) for operand in node.inputs if operand is not None]
    if node.op == "mul" and len(operands) == 2:
        return _gated(graph, projections, node, passed)
    activated = [projections[origin.key] for origin, _ in operands if origin.key in projections]
    if len(operands) != 1 or not activated:
        return None
    return f"its activation {node.native} is none of {', '.join(FUNCTIONS)}"


def _plain(projections: Mapping[str, Projection], activation: Activation, passed: Sequence[Node]) -> _Hidden | str:
    origin, before = behind(activation.source)
    inner = projections.get(origin.key)
    if inner is None:
        return f"its activation {activation.kind} is applied to {origin.key}, which is no linear layer's result"
    return _Hidden(inner, None, activation.kind, (*passed, *activation.nodes, *before))


def _gated(
    graph: Graph, projections: Mapping[str, Projection], product: Node, passed: Sequence[Node]
) -> _Hidden | str | None:
    first, second = (operand for operand in product.inputs if operand is not None)
    activated = False
    for opened, plain in ((first, second), (second, first)):
        result, before_gate = behind(opened)
        activation = recognize_activation(graph, result)
        if activation is None:
            continue
        activated = True
        origin, before = behind(activation.source)
        inner_value, before_inner = behind(plain)
        gate, inner = projections.get(origin.key), projections.get(inner_value.key)
        if gate is not None and inner is not None and gate is not inner:
            nodes = (*passed, product, *before_gate, *activation.nodes, *before, *before_inner)
            return _Hidden(inner, gate, activation.kind, nodes)
    return f"{product.key} multiplies an activation and no two linear layers' results" if activated else None


_LAYOUT = LOOK_THROUGH | {"reshape", "transpose", "squeeze", "unsqueeze", "cast"}


def _read_elsewhere(layers: Sequence[Projection], between: Sequence[Node], covered: Sequence[str]) -> str:
    """Why a value inside must stay, or ""."""
    *inward, _ = layers
    values = [layer.output for layer in inward] + [value for node in between for value in node.outputs]
    inside = frozenset(covered)
    for value in dict.fromkeys(values):
        if value.is_output:
            return f"{value.key} is returned by the graph"
        others = [node.key for node in value.users if node.key not in inside]
        if others:
            return f"{value.key} is also used by {others[0]}"
    return ""


def _rows_problem(x: Value, y: Value) -> str:
    """Why y does not have the rows of x in the same order and shape, or ""."""
    if x.type.shape is None or y.type.shape is None or x.type.shape[:-1] == y.type.shape[:-1]:
        return ""
    return f"{y.key} is {y.type}, it should have the leading dims of {x.key}, which is {x.type}"


def _common_name(names: Sequence[str]) -> str:
    """The module that holds the layers: the parts that their names begin with; the first one's name if none."""
    parts = [name.split(".") for name in names]
    common: list[str] = []
    for level in zip(*parts, strict=False):
        if len(set(level)) > 1:
            break
        common.append(level[0])
    return ".".join(common) or names[0]
