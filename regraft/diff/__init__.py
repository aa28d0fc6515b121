"""What changed between two programs, and why."""

from regraft.diff._diff import diff
from regraft.diff._graph_diff import GraphDiff
from regraft.diff._types import Cause, Change, ChangeKind, ConstantChange, PortChange, Summary, Totals

__all__ = ["Cause", "Change", "ChangeKind", "ConstantChange", "GraphDiff", "PortChange", "Summary", "Totals", "diff"]
