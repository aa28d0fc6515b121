"""From two snapshots to their diff."""

from collections.abc import Mapping, Sequence

from regraft.diff._causes import Causes
from regraft.diff._describe import describe, describe_difference, describe_rewritten
from regraft.diff._graph_diff import GraphDiff
from regraft.diff._match import Group, match_nodes
from regraft.diff._side import Side
from regraft.diff._types import Change, ChangeKind, Summary, Totals
from regraft.diff._values import Values, constant_changes, match_values, port_changes
from regraft.graph.snapshot import Snapshot, SnapshotNode
from regraft.graph.text import attribute_text
from regraft.ledger import Ledger
from regraft.ops import cost


def diff(
    before: Snapshot, after: Snapshot, ledger: Ledger | None = None, *, dims: Mapping[str, int] | None = None
) -> GraphDiff:
    """Return what changed between two programs, and why.

    Names and metadata of nodes are no part of what a program does: alone, they are no change. Contents of weights are
    not looked at.

    Args:
        before: the original.
        after: the rewritten program, or any other.
        ledger: what passes did to get from one to the other; without it, the causes that they wrote on their nodes.
        dims: extents of the dynamic dims, for totals as numbers. Not needed where nothing is dynamic.

    Raises:
        ShapeError: when `dims` lacks an extent.
    """
    old, new = Side(before), Side(after)
    causes = Causes(old, new, ledger)
    groups = match_nodes(old, new, causes.claims())
    values = match_values(old, new, groups)
    changed = [group for group in groups if not _is_unchanged(old, new, group, values)]
    added, removed = constant_changes(old, new, values)
    return GraphDiff(
        changes=tuple(_change(old, new, group, values, causes) for group in _in_order(groups, changed)),
        constants_added=added,
        constants_removed=removed,
        ports=port_changes(old, new, values),
        summary=_summary(before, after, len(groups) - len(changed), dims),
    )


def _is_unchanged(old: Side, new: Side, group: Group, values: Values) -> bool:
    if len(group.before) != 1 or len(group.after) != 1:
        return False
    was, now = old.nodes[group.before[0]], new.nodes[group.after[0]]
    return (
        was.op == now.op
        and (was.native == now.native or old.snapshot.kind != new.snapshot.kind)
        and [value.type for value in was.outputs] == [value.type for value in now.outputs]
        and _same_operands(was, now, values)
        and _same_attributes(was, now)
    )


def _same_operands(was: SnapshotNode, now: SnapshotNode, values: Values) -> bool:
    return list(was.inputs) == [key and values.get(key) for key in now.inputs]


def _same_attributes(was: SnapshotNode, now: SnapshotNode) -> bool:
    """Equal as text, so that nan is itself, and 1, 1.0 and True are not each other."""
    if was.attributes.keys() != now.attributes.keys():
        return False
    pairs = [(value, now.attributes[name]) for name, value in was.attributes.items()]
    return all(attribute_text(one) == attribute_text(other) for one, other in pairs)


def _in_order(groups: Sequence[Group], changed: Sequence[Group]) -> list[Group]:
    """Changes in the order of the second program; what was removed stands where it would have gone on."""
    next_: dict[int, int] = {}  # for a place in the first program: where what follows it stands in the second
    ahead = 1 << 62
    places = {group.before[-1]: group.after[-1] for group in groups if group.before and group.after}
    for place in range(max((i for group in groups for i in group.before), default=-1), -1, -1):
        ahead = places.get(place, ahead)
        next_[place] = ahead
    return sorted(
        changed,
        key=lambda group: (
            group.after[-1] if group.after else next_[group.before[-1]],
            bool(group.after),
            group.before[:1],
        ),
    )


def _change(old: Side, new: Side, group: Group, values: Values, causes: Causes) -> Change:
    before, after = tuple(old.nodes[i] for i in group.before), tuple(new.nodes[j] for j in group.after)
    kind = _kind(before, after)
    found, entries = causes.explain(before, after)
    if entries:
        only_parts = len(found) > len(entries) and len({cause.pass_name for cause in found}) == 1
        was = describe(old, before) if only_parts else describe_rewritten(old, before, entries[0].before)
        now = describe_rewritten(new, after, entries[-1].after, entries[-1].op)
    elif kind == "changed":
        same = _same_operands(before[0], after[0], values)
        was, now = describe_difference(before[0], after[0], same_operands=same)
    else:
        was, now = describe(old, before), describe(new, after)
    return Change(kind, found[0].site if found else _site(before, after), before, after, was, now, found)


def _kind(before: Sequence[SnapshotNode], after: Sequence[SnapshotNode]) -> ChangeKind:
    if not before or not after:
        return "removed" if before else "added"
    alone = len(before) == len(after) == 1 and before[0].op == after[0].op
    return "changed" if alone else "replaced"


def _site(before: Sequence[SnapshotNode], after: Sequence[SnapshotNode]) -> str:
    last = [nodes[-1] for nodes in (after, before) if nodes]
    return next((node.scope for node in last if node.scope), last[0].key)


def _summary(before: Snapshot, after: Snapshot, unchanged: int, dims: Mapping[str, int] | None) -> Summary:
    known = None if dims is None else dict(dims)
    return Summary(_totals(before, known), _totals(after, known), unchanged, known)


def _totals(snapshot: Snapshot, dims: Mapping[str, int] | None) -> Totals:
    found = cost(snapshot)
    at = found.at(dims) if dims is not None or not found.dims else None
    return Totals(
        kind=snapshot.kind,
        name=snapshot.name,
        nodes=len(snapshot.nodes),
        parameter_bytes=found.parameter_bytes,
        macs=str(found.macs),
        macs_at=None if at is None else at.macs,
        peak_activation_bytes=None if at is None else at.peak_activation_bytes,
        uncounted=len(found.uncounted),
    )
