"""A diff as text: totals, then changes grouped by cause, one line a site. Names are escaped."""

from collections.abc import Iterator, Sequence
from typing import Final

from regraft.diff._types import Cause, Change, ConstantChange, PortChange, Summary
from regraft.graph.escape import escape
from regraft.graph.sizes import sizes_text
from regraft.graph.snapshot import SnapshotValue
from regraft.graph.text import type_text

UNEXPLAINED: Final = "unexplained"
_WIDTH: Final = 160


def diff_lines(
    changes: Sequence[Change],
    added: Sequence[ConstantChange],
    removed: Sequence[ConstantChange],
    ports: Sequence[PortChange],
    summary: Summary,
) -> Iterator[str]:
    """Return the lines of a diff's text."""
    if not (changes or added or removed or ports):
        yield f"no changes ({_count(summary.after.nodes, 'node')})"
        return
    yield from _totals(summary)
    groups: dict[str, list[Change]] = {}
    for change in changes:
        groups.setdefault(" + ".join(dict.fromkeys(cause.pass_name for cause in change.causes)), []).append(change)
    unexplained = groups.pop("", [])
    for name, found in groups.items():
        yield f"{escape(name)}: {_count(len(found), 'site')}"
        yield from _aligned([_cells(change) for change in found])
    if unexplained:
        yield f"{UNEXPLAINED}: {_count(len(unexplained), 'change')}"
        yield from _aligned([_cells(change) for change in unexplained])
    yield from _constants(added, removed)
    if ports:
        yield "inputs and outputs:"
        yield from (_port(change) for change in ports)


def _totals(summary: Summary) -> Iterator[str]:
    before, after = summary.before, summary.after
    name = escape(before.name) if before.name == after.name else f"{escape(before.name)} -> {escape(after.name)}"
    kind = before.kind if before.kind == after.kind else f"{before.kind} -> {after.kind}"
    yield f"{name} ({kind}): {before.nodes} -> {after.nodes} nodes, {summary.unchanged} unchanged"
    yield f"parameters: {sizes_text(before.parameter_bytes, after.parameter_bytes)}"
    yield f"multiply-adds: {_macs(summary)}"
    if before.peak_activation_bytes is not None and after.peak_activation_bytes is not None:
        peaks = sizes_text(before.peak_activation_bytes, after.peak_activation_bytes)
        yield f"peak activations: {peaks}{_at(summary)}"


def _macs(summary: Summary) -> str:
    before, after = summary.before, summary.after
    if before.macs_at is not None and after.macs_at is not None:
        text = f"{before.macs_at:,} -> {after.macs_at:,}{_at(summary)}"
    elif before.macs == after.macs:
        text = _shortened(before.macs)
    else:
        text = f"{_shortened(before.macs)} -> {_shortened(after.macs)}"
    if not before.uncounted and not after.uncounted:
        return text
    return f"{text} (without {before.uncounted} -> {after.uncounted} nodes that cannot be counted)"


def _shortened(expression: str) -> str:
    """An expression, or its beginning where it is too long for a line; `to_dict` has all of it."""
    if len(expression) <= _WIDTH:
        return escape(expression)
    terms = expression.count(" + ") + expression.count(" - ") + 1
    return f"{escape(expression[:_WIDTH])}... ({terms} terms)"


def _at(summary: Summary) -> str:
    if not summary.dims:
        return ""
    return " at " + ", ".join(f"{escape(name)}={extent}" for name, extent in summary.dims.items())


def _cells(change: Change) -> tuple[str, str, str, str]:
    """Site, what became of it, errors, bytes."""
    if change.kind in ("added", "removed"):
        what = f"{change.kind} {escape(change.now or change.was)}"
    else:
        what = f"{escape(change.was)} -> {escape(change.now)}"
    errors = [f"{cause.error:.2g}" for cause in change.causes if cause.error is not None]
    return escape(change.site), what, f"error {' + '.join(errors)}" if errors else "", _site_size(change.causes)


def _site_size(causes: Sequence[Cause]) -> str:
    """Bytes of a layer before the first pass and after the last; a cause counts what it was about, maybe a factor."""
    saved = [
        cause.bytes_before - cause.bytes_after
        for cause in causes
        if cause.bytes_before is not None and cause.bytes_after is not None
    ]
    if not causes or len(saved) < len(causes):
        return ""
    before = sum(cause.bytes_before or 0 for place, cause in enumerate(causes) if _is_first(cause, causes[:place]))
    return sizes_text(before, before - sum(saved))


def _is_first(cause: Cause, earlier: Sequence[Cause]) -> bool:
    """Whether a cause is of the first pass, and about what none of its causes before was about, or a part of that."""
    if not earlier:
        return True
    known = any(cause.site == other.site or cause.site.startswith(f"{other.site}.") for other in earlier)
    return cause.pass_name == earlier[0].pass_name and not known


def _aligned(rows: Sequence[tuple[str, str, str, str]]) -> Iterator[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    for row in rows:
        cells = [f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True) if width]
        yield f"  {'  '.join(cells)}".rstrip()


def _constants(added: Sequence[ConstantChange], removed: Sequence[ConstantChange]) -> Iterator[str]:
    parts = [
        f"{len(found)} {verb} ({_size(found)})" for found, verb in ((added, "added"), (removed, "removed")) if found
    ]
    if parts:
        yield f"constants: {', '.join(parts)}"


def _size(found: Sequence[ConstantChange]) -> str:
    known = sum(change.bytes or 0 for change in found)
    unknown = sum(change.bytes is None for change in found)
    return sizes_text(known) + (f" and {unknown} of unknown size" if unknown else "")


def _port(change: PortChange) -> str:
    return f"  {change.port} {change.place}: {_typed(change.before)} -> {_typed(change.after)}"


def _typed(value: SnapshotValue | None) -> str:
    return "none" if value is None else f"{escape(value.name)} {type_text(value.type)}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
