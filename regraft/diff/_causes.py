"""Which rewrite a change comes from: by the ledger where there is one, else by what the pass wrote on its node."""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Final

from regraft.diff._side import Side
from regraft.diff._types import Cause
from regraft.graph.snapshot import SnapshotNode
from regraft.ledger import Entry, Ledger

PASS: Final = "regraft.pass"
SITE: Final = "regraft.site"
_NUMBERED: Final = re.compile(r"#\d+$")


@dataclass(slots=True)
class _Story:
    """What passes did, one after the other, at one place."""

    entries: list[Entry] = field(default_factory=list[Entry])
    told: bool = False


class Causes:
    """The rewrites that are known of two programs. A ledger's entry explains one change; then it is used up."""

    def __init__(self, before: Side, after: Side, ledger: Ledger | None) -> None:
        same_keys = before.snapshot.kind == after.snapshot.kind  # else equal keys are chance: exporters number anew
        self._annotated = dict.fromkeys(_newly_annotated(before, after) if same_keys else ())
        self._before, self._after = before, after
        self._by_output: dict[str, _Story] = {}
        self._by_site: dict[str, list[_Story]] = {}
        self._by_layer: dict[str, list[_Story]] = {}
        known = Ledger() if ledger is None else ledger
        for entry in (known if same_keys else known.without_keys()).rewritten:
            for place, call in enumerate(_calls(entry)):
                self._tell(call, place)

    def _tell(self, entry: Entry, call: int) -> None:
        """Add an entry to the story of the value that it computes, or of the layer where keys do not lead there."""
        story = self._by_output.get(entry.output) or self._keyless(entry.site, call) or _Story()
        if entry.output:
            self._by_output[entry.output] = story
        story.entries.append(entry)
        _append(self._by_site, entry.site, story)
        _append(self._by_layer, _NUMBERED.sub("", entry.site), story)

    def _keyless(self, site: str, call: int) -> _Story | None:
        """The story, so far, of that call of a layer (or of the layer that this is a part of), known by name alone."""
        for name in (site, site.rpartition(".")[0]):
            stories = [story for story in self._by_site.get(name, ()) if not story.entries[0].output]
            if call < len(stories):
                return stories[call]
        return None

    def claims(self) -> Mapping[str, Collection[str]]:
        """Return the keys of covered nodes, by the key of the value that a rewrite computes."""
        claims: dict[str, list[str]] = {key: [] for key in self._annotated if self._stayed(key)}
        for output, story in self._by_output.items():
            claims[output] = [key for entry in story.entries for key in entry.removed]
        return claims

    def _stayed(self, key: str) -> bool:
        """Whether the first program has that value in the same layer, as far as the names of layers are known."""
        old, new = self._before.by_result.get(key), self._after.by_result[key]
        scopes = {self._after.nodes[new].scope, "" if old is None else self._before.nodes[old].scope}
        return len(scopes - {""}) <= 1

    def explain(
        self, before: Sequence[SnapshotNode], after: Sequence[SnapshotNode]
    ) -> tuple[tuple[Cause, ...], list[Entry]]:
        """Return the causes of a change, the first one first, and the ledger's entries of its last node.

        When a later pass rewrote parts of a layer (each factor of a low-rank one), all of them are causes.
        """
        for story in self._stories(before, after):
            if not story.told:
                story.told = True
                parts = chain.from_iterable(self._parts(story, after))
                return tuple(_cause(entry) for entry in (*story.entries, *parts)), story.entries
        for node in after:
            if PASS in node.metadata and any(value.key in self._annotated for value in node.outputs):
                return (Cause(node.metadata[PASS], node.metadata.get(SITE, node.scope)),), []
        return (), []

    def _parts(self, whole: _Story, after: Sequence[SnapshotNode]) -> Iterator[Sequence[Entry]]:
        """What was done to the other nodes that now stand for a layer, each told once."""
        for value in chain.from_iterable(node.outputs for node in after):
            story = self._by_output.get(value.key)
            if story is not None and not story.told and story is not whole:
                story.told = True
                yield story.entries

    def _stories(self, before: Sequence[SnapshotNode], after: Sequence[SnapshotNode]) -> Iterator[_Story]:
        kept = _results(before) & _results(after)
        yield from (self._by_output[key] for key in self._by_output if key in kept)
        for node in (*before, *after):
            yield from (self._by_output[value.key] for value in node.outputs if value.key in self._by_output)
        for node in after:
            yield from self._by_site.get(node.metadata.get(SITE, ""), ())
        for node in after:  # a re-export keeps neither keys nor metadata, but the layer's name
            layer = self._by_layer.get(node.scope, ()) if node.scope else ()
            yield from (story for story in layer if story.entries[-1].op == node.op)


def _results(nodes: Sequence[SnapshotNode]) -> set[str]:
    return {value.key for node in nodes for value in node.outputs}


def _calls(entry: Entry) -> Iterator[Entry]:
    """An entry for each call of the layer; bytes stand with the first one, for the weights are there once."""
    yield entry
    for call in entry.other_calls:
        yield replace(
            entry, output=call.output, removed=call.removed, other_calls=(), bytes_before=None, bytes_after=None
        )


def _newly_annotated(before: Side, after: Side) -> Iterator[str]:
    """Keys of results whose node says that a pass wrote it, where the node of `before` does not say the same."""
    for node in after.nodes:
        if PASS not in node.metadata:
            continue
        for value in node.outputs:
            place = before.by_result.get(value.key)
            known = {} if place is None else before.nodes[place].metadata
            if value.key and (known.get(PASS), known.get(SITE)) != (node.metadata[PASS], node.metadata.get(SITE)):
                yield value.key


def _append(stories: dict[str, list[_Story]], name: str, story: _Story) -> None:
    known = stories.setdefault(name, [])
    if not any(other is story for other in known):
        known.append(story)


def _cause(entry: Entry) -> Cause:
    return Cause(entry.pass_name, entry.site, entry.measured_error, entry.bytes_before, entry.bytes_after)
