"""Layers that an earlier pass wrote as `monarch_linear`, found as sites for the passes that quantize layers."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from torch import Tensor

from regraft.errors import GraphError
from regraft.graph import Graph, LinearSite, NearMiss, Node, Value
from regraft.graph.linear import input_type, reaches_output
from regraft.graph.matcher import source
from regraft.numerics.monarch import Factors
from regraft.numerics.partition import Partition
from regraft.ops import monarch_linear


@dataclass(frozen=True, eq=False, kw_only=True)
class MonarchSite(LinearSite):
    """y = M · x + bias with M a grid of blocks of low rank, as a linear layer: its weight is M.

    Attributes:
        left_value: the constant that holds the second stack of blocks; `weight_value` holds the first.
        partition: how M is cut into blocks.
        block_rank: their rank.
    """

    left_value: Value
    partition: Partition
    block_rank: int

    @property
    def shape(self) -> str:
        """Extents of M and its blocks ("1536x384 in 4x4 blocks of rank 38")."""
        cut = self.partition
        return f"{super().shape} in {cut.out_blocks}x{cut.in_blocks} blocks of rank {self.block_rank}"

    @cached_property
    def factors(self) -> Factors:
        """Both stacks of blocks; loaded on first use."""
        right, left = self.graph.constant(self.weight_value), self.graph.constant(self.left_value)
        if right is None or left is None:
            raise GraphError(f"{self.name}: its blocks {self.weight_value.name} have no content")
        return Factors(self.partition, right.detach(), left.detach(), None, 0.0)

    @cached_property
    def weight(self) -> Tensor:
        """M as [out, in]; made on first use."""
        return self.factors.dense().to(self.factors.right.dtype)

    @property
    def bytes(self) -> int:
        """Size of blocks and bias in bytes."""
        stored = self.partition.parameters(self.block_rank) + (0 if self.bias_value is None else self.out_features)
        return stored * self.factors.right.element_size()

    @property
    def most_summed(self) -> int:
        """Inputs of the widest block of either stack."""
        return max(self.partition.width, self.partition.in_blocks * self.block_rank)

    @property
    def macs_a_value(self) -> float:
        """Multiply-adds of a row for each value that is read, written and read in between, or returned."""
        cut = self.partition
        between = cut.in_blocks * cut.out_blocks * self.block_rank
        return cut.parameters(self.block_rank) / (cut.in_features + 2 * between + cut.out_features)

    @property
    def attributes(self) -> dict[str, int | float]:
        """What the blocks are, as the attributes of an op."""
        return monarch_linear.layer_attributes(self.partition, self.block_rank)


def find_monarch_sites(graph: Graph) -> tuple[list[MonarchSite], list[NearMiss]]:
    """Return all layers in blocks in graph order, and those whose blocks are computed.

    Calls of the same blocks and bias are one site, as those of a dense layer are.
    """
    found = [_site(graph, node) for node in graph.nodes() if node.op == monarch_linear.NAME]
    together: dict[Hashable, list[MonarchSite]] = {}
    for site in found:
        if isinstance(site, MonarchSite):
            constants = (site.weight_value, site.left_value, site.bias_value)
            read = tuple(None if value is None else value.key for value in constants)
            together.setdefault((*read, site.partition, site.block_rank), []).append(site)
    sites = [_layer(group) for group in together.values()]
    return sites, [miss for miss in found if isinstance(miss, NearMiss)]


def _site(graph: Graph, node: Node) -> MonarchSite | NearMiss:
    name = node.metadata.get("regraft.site") or node.scope or node.key
    x, *operands = [*node.inputs, None][:4]
    right, left, bias = (None if value is None else source(value)[0] for value in operands)
    if x is None or right is None or left is None:
        return NearMiss(name, "an operand of its blocks is missing")
    computed = [value.name for value in (right, left, bias) if value is not None and value.role != "constant"]
    if computed:
        return NearMiss(name, f"its operand {computed[0]} is computed, a constant is needed")
    attributes = {key: int(value) for key, value in node.attributes.items() if isinstance(value, int)}
    cut = monarch_linear.partition_of(attributes)
    return MonarchSite(
        name=name,
        operands={"x": x.key},
        output=node.outputs[0].key,
        nodes=(node.key,),
        graph=graph,
        weight_value=right,
        bias_value=bias,
        transposed=False,
        in_features=cut.in_features,
        out_features=cut.out_features,
        input_type=input_type(x, cut.in_features),
        nested=x.nested,
        feeds_output=reaches_output(node.outputs[0]),
        left_value=left,
        partition=cut,
        block_rank=attributes["block_rank"],
    )


def _layer(calls: Sequence[MonarchSite]) -> MonarchSite:
    first, *others = calls
    own = {key for call in calls for key in call.nodes}
    readers = {node.key: node for value in (first.weight_value, first.left_value) for node in value.users}
    foreign = tuple(node.scope or node.key for key, node in readers.items() if key not in own)
    return replace(first, others=tuple(others), weight_readers=foreign)
