"""The program being rewritten: protocols, matcher, sites, snapshots and cost."""

from regraft.graph.attention import AttentionSite, find_attention_sites
from regraft.graph.attention_block import AttentionBlock, find_attention_blocks
from regraft.graph.attention_block import with_residual as attention_with_residual
from regraft.graph.graph import Attributes, Graph, Inputs, Outputs, Replacement, StructuredOp, Tapped
from regraft.graph.linear import find_linear_sites
from regraft.graph.mlp import MlpSite, find_mlp_sites
from regraft.graph.mlp import with_residual as mlp_with_residual
from regraft.graph.projection import Projection, find_projections
from regraft.graph.site import LinearSite, NearMiss, Numbering, Site
from regraft.graph.snapshot import Snapshot, SnapshotNode, SnapshotValue, snapshot_of
from regraft.graph.types import Dim, TensorType
from regraft.graph.view import Attribute, Node, Value

__all__ = [
    "AttentionBlock",
    "AttentionSite",
    "Attribute",
    "Attributes",
    "Dim",
    "Graph",
    "Inputs",
    "LinearSite",
    "MlpSite",
    "NearMiss",
    "Node",
    "Numbering",
    "Outputs",
    "Projection",
    "Replacement",
    "Site",
    "Snapshot",
    "SnapshotNode",
    "SnapshotValue",
    "StructuredOp",
    "Tapped",
    "TensorType",
    "Value",
    "attention_with_residual",
    "find_attention_blocks",
    "find_attention_sites",
    "find_linear_sites",
    "find_mlp_sites",
    "find_projections",
    "mlp_with_residual",
    "snapshot_of",
]
