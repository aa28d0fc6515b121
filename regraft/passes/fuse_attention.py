"""Attention as one node, whatever it was spelled as; the function stays the same.

torch's exporter writes attention as two products with guards against rows that are masked throughout, and shape
arithmetic around them. As one node, a runtime can use the operator that it has for all of it.
"""

from dataclasses import dataclass
from typing import ClassVar, Final

from regraft.graph import AttentionSite, Graph, NearMiss, find_attention_sites
from regraft.ops.multi_head_attention import op as multi_head_attention
from regraft.passes._masks import with_one_mask
from regraft.passes._pass import Plan, Reject, SitePass, check_patterns, not_asked_for
from regraft.passes._statistics import SiteStatistics

ONE_NODE: Final = frozenset({"Attention", "com.microsoft::MultiHeadAttention"})
"""Operators of ONNX that are one node for all of it already."""


@dataclass(frozen=True)
class FuseAttention(SitePass[AttentionSite, Plan]):
    """Replace attention, with the splitting and merging of its heads, by one node `multi_head_attention`.

    Attributes:
        targets: names of the attention modules, as globs or `re:` patterns; all when empty.
        exclude: names of modules to leave alone.
    """

    tells_misses: ClassVar[bool] = True
    name: ClassVar[str] = "fuse-attention"
    exact: ClassVar[bool] = True

    targets: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_patterns(self.name, (*self.targets, *self.exclude))

    def find(self, graph: Graph) -> tuple[list[AttentionSite], list[NearMiss]]:
        """Return every attention of the graph."""
        return find_attention_sites(graph)

    def refuse(self, site: AttentionSite) -> Reject | None:
        """Refuse what is not asked for, and what is one node already."""
        refused = not_asked_for(site.name, self.targets, self.exclude)
        if refused:
            return Reject(refused)
        if site.op == multi_head_attention.name or (len(site.nodes) == 1 and site.native in ONE_NODE):
            return Reject(f"it is one {site.native} node already")
        return None

    def plan(self, site: AttentionSite, statistics: SiteStatistics | None) -> Plan:
        """Promise the same function."""
        del statistics
        return Plan(multi_head_attention.name, "1 node", 0.0, "isotropic", 0)

    def build(self, graph: Graph, site: AttentionSite, plan: Plan) -> None:
        """Write the node."""
        del plan
        graph.replace(with_one_mask(graph, site, self.name), multi_head_attention, {}, site.attributes)
