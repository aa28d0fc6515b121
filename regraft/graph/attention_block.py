"""Finding attention together with its projections: from the hidden state to the hidden state.

y = out(attention(query(x), key(c), value(c)))        c: x, or what is attended to instead
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor

from regraft.graph._rows import ahead, behind, in_rows_of, sum_behind
from regraft.graph.attention import AttentionSite, find_attention_sites
from regraft.graph.graph import Graph
from regraft.graph.heads import merged, shape_of
from regraft.graph.picks import picked, stacked
from regraft.graph.projection import Projection, find_projections
from regraft.graph.site import NearMiss, Site
from regraft.graph.view import Value


@dataclass(frozen=True, eq=False)
class Part:
    """What a projection computes, or some of its output features (a projection of query, key and value at once).

    Attributes:
        projection: the layer.
        start, stop: its output features.
        nodes: keys of the nodes behind it, up to what attention reads.
    """

    projection: Projection
    start: int
    stop: int
    nodes: tuple[str, ...] = ()

    @property
    def width(self) -> int:
        """Number of output features."""
        return self.stop - self.start

    @property
    def weight(self) -> Tensor:
        """Their weight [width, in], or second factor [width, rank]."""
        return self.projection.up[self.start : self.stop]

    @property
    def bias(self) -> Tensor | None:
        """Their bias [width], or None."""
        bias = self.projection.bias
        return None if bias is None else bias[self.start : self.stop]


@dataclass(frozen=True, eq=False)
class AttentionBlock(Site):
    """Attention and its projections. Operands: "x", "context" where that is another, "mask", "bias", "residual".

    Attributes:
        attention: the site between the projections.
        query, key, value: its projections.
        outer: the layer behind it.
        nested: whether it lives in a nested body (If, Loop, Scan).
    """

    attention: AttentionSite = field(repr=False)
    query: Part = field(repr=False)
    key: Part = field(repr=False)
    value: Part = field(repr=False)
    outer: Projection = field(repr=False)
    nested: bool = False

    @property
    def projections(self) -> tuple[Projection, ...]:
        """The layers, each once."""
        found = (self.query.projection, self.key.projection, self.value.projection, self.outer)
        return tuple({layer.output.key: layer for layer in found}.values())

    @property
    def shared(self) -> bool:
        """Whether something else reads one of the weights."""
        return any(layer.shared for layer in self.projections)

    @property
    def bytes(self) -> int:
        """Size of the parameters of its layers in bytes."""
        return sum(layer.bytes for layer in self.projections)

    def describe(self) -> str:
        """Return its widths and heads ("384->12 heads of 32->384")."""
        heads = f"{self.attention.heads} heads of {self.attention.head_size}"
        return f"{self.query.projection.in_features}->{heads}->{self.outer.out_features}"


def find_attention_blocks(graph: Graph) -> tuple[list[AttentionBlock], list[NearMiss]]:
    """Return every attention whose projections are all there, in graph order, and the others with the reasons."""
    sites, misses = find_attention_sites(graph)
    projections = find_projections(graph)
    behind_of = {behind(projection.x)[0].key: projection for projection in projections.values()}
    blocks: list[AttentionBlock] = []
    for site in sites:
        found = _block(graph, site, projections, behind_of)
        if isinstance(found, str):
            misses.append(NearMiss(site.name, found))
        else:
            blocks.append(found)
    return blocks, misses


def with_residual(graph: Graph, block: AttentionBlock) -> AttentionBlock | None:
    """Return the block with the addition behind it, where its result is read by nothing else; else None."""
    found = sum_behind(graph.value(block.output))
    if found is None or found[0].outputs[0].nested != block.nested:
        return None
    sum_, residual, passed = found
    return replace(
        block,
        operands={**block.operands, "residual": residual.key},
        output=sum_.outputs[0].key,
        nodes=(sum_.key, *(node.key for node in reversed(passed)), *block.nodes),
    )


def _block(
    graph: Graph, site: AttentionSite, projections: Mapping[str, Projection], readers: Mapping[str, Projection]
) -> AttentionBlock | str:
    found = _parts(graph, site, projections)
    if isinstance(found, str):
        return found
    outer = readers.get(found.output)
    if outer is None:
        return f"what attends ({found.output}) goes into no linear layer"
    x, *contexts = (in_rows_of(part.projection.x, wide) for part, wide in zip(found.parts, found.wide, strict=True))
    if x is None or None in contexts or contexts[0] is not contexts[1]:
        return "its keys and values are projections of two tensors"
    end, passed = _end(outer)
    if end.type.rank != 3:
        return f"its result {end.key} is {end.type}, 3 dims are needed"
    operands = {"x": x.key} | {name: key for name, key in site.operands.items() if name not in ("q", "k", "v")}
    context = contexts[0]
    if context is not None and context is not x:
        operands["context"] = context.key
    inner = [node for part in found.parts for node in (*part.nodes, *part.projection.nodes)]
    between = [node.key for node in behind(outer.x)[1]]
    nodes = tuple(dict.fromkeys((*passed, *outer.nodes, *between, *found.nodes, *site.nodes, *inner)))
    query, key, value = found.parts
    return _read_elsewhere(graph, found.parts, end, nodes) or AttentionBlock(
        name=site.name,
        operands=operands,
        output=end.key,
        nodes=nodes,
        attention=site,
        query=query,
        key=key,
        value=value,
        outer=outer,
        nested=site.nested,
    )


@dataclass(frozen=True)
class _Inside:
    """The projections of queries, keys and values, and what surrounds attention between them and the layer behind.

    Attributes:
        wide: of each projection, the [batch, rows, width] that its heads were split off from.
        output: key of the [batch, rows, width] that attention gives.
        nodes: keys of the nodes that split and merge heads, where the site has none of them.
    """

    parts: tuple[Part, ...]
    wide: tuple[Value, ...]
    output: str
    nodes: tuple[str, ...] = ()


def _parts(graph: Graph, site: AttentionSite, projections: Mapping[str, Projection]) -> _Inside | str:
    operands = [graph.value(site.operands[name]) for name in ("q", "k", "v")]
    if not site.split:
        return _stacked_parts(graph, site, operands, projections) or _not_split(graph, site)
    parts: list[Part] = []
    for operand in operands:
        part = _part(graph, operand, projections)
        if isinstance(part, str):
            return part
        parts.append(part)
    return _Inside(tuple(parts), tuple(operands), site.output)


def _stacked_parts(
    graph: Graph, site: AttentionSite, operands: Sequence[Value], projections: Mapping[str, Projection]
) -> _Inside | None:
    """Queries, keys and values that lie one behind the other in one layer's result, as in vision transformers."""
    output, nodes = merged(graph.value(site.output))
    parts: list[Part] = []
    wide: list[Value] = []
    for operand in operands:
        found = stacked(graph, operand)
        part = None if found is None else _part(graph, found.whole, projections)
        if found is None or not isinstance(part, Part):
            return None
        passed = (*(node.key for node in found.nodes), *part.nodes)
        parts.append(Part(part.projection, part.start + found.start, part.start + found.stop, passed))
        wide.append(found.whole)
    if output is None:
        return None
    return _Inside(tuple(parts), tuple(wide), output.key, tuple(node.key for node in nodes))


def _not_split(graph: Graph, site: AttentionSite) -> str:
    """What stands between the projections and attention, as a reason."""
    names = {"q": "queries", "k": "keys", "v": "values"}
    for name, word in names.items():
        producer = graph.value(site.operands[name]).producer
        if producer is not None and producer.op != "transpose":
            return (
                f"its {word} are computed from their projection by {producer.op} ({producer.key}), "
                "such as rotary positions or norms, before the product"
            )
    return "the splitting and merging of its heads are not both there"


def _part(graph: Graph, value: Value, projections: Mapping[str, Projection]) -> Part | str:
    cut, nodes = None, ()
    while value.key not in projections:
        origin, passed = behind(value)
        nodes += tuple(node.key for node in passed)
        found = picked(graph, origin) if cut is None else None
        if found is not None and not found.dropped and found.dim == len(shape_of(origin)) - 1:
            cut, value = found, found.whole
            nodes += tuple(node.key for node in found.nodes)
        elif cut is None and found is None and origin.producer is not None and origin.producer.op in ("split", "slice"):
            return f"{origin.key} is a part of unknown extent"
        elif origin is not value:
            value = origin
        else:
            return f"{value.key} is no linear layer's result"
    projection = projections[value.key]
    bounds = (0, projection.out_features) if cut is None else (cut.start, cut.stop)
    return Part(projection, *bounds, nodes)


def _end(outer: Projection) -> tuple[Value, tuple[str, ...]]:
    """The layer's result, in the leading dims of the hidden state."""
    value, passed = outer.output, ()
    while value.type.rank != 3 and len(value.users) == 1 and not value.is_output:
        further, nodes = ahead(value)
        if not nodes:
            break
        value = nodes[0].outputs[0]
        passed += (nodes[0].key,)
        if further is value:
            break
    return value, passed


def _read_elsewhere(graph: Graph, parts: Iterable[Part], end: Value, covered: tuple[str, ...]) -> str:
    """Why a value inside must stay, or "": something else reads what the projections give, as a cache reads keys."""
    inside = frozenset(covered)
    values = {part.projection.output.key: part.projection.output for part in parts}
    for node in graph.nodes():
        if node.key in inside and any(operand is not None and operand.key in values for operand in node.inputs):
            values |= {value.key: value for value in node.outputs if value.key != end.key}
    for value in values.values():
        others = [node.key for node in value.users if node.key not in inside and node.op != "shape"]
        if value.is_output or others:
            where = "returned by the graph" if value.is_output else f"also used by {others[0]}"
            return f"{value.key} is {where}"
    return ""
