"""Targets and exclusions that fit no layer: misspelt most likely, and so told by name."""

from collections.abc import Sequence
from difflib import get_close_matches
from typing import Final

from regraft.graph import Graph, NearMiss, Site
from regraft.graph.escape import escape
from regraft.passes._pass import matches_name
from regraft.passes._registry import AnyPass

OPTIONS: Final = ("targets", "exclude")
_MOST_NAMES: Final = 3


def idle_patterns(item: AnyPass, graph: Graph, sites: Sequence[Site], misses: Sequence[NearMiss]) -> list[str]:
    """Return, as phrases, which of a pass's targets and exclusions fit no layer.

    Layers that a pass before has rewritten count as well: they have no site any more, and are meant all the same.

    Args:
        item: the pass; its options `targets` and `exclude`, if it has them, are names of layers.
        graph: what it looks at.
        sites: what it found there.
        misses: what came close; an exclusion may name one, a target is told why it is none.
    """
    patterns = [(option, wanted) for option in OPTIONS for wanted in getattr(item, option, ())]
    if not patterns or not sites:  # no site at all is told by the manager
        return []
    names = dict.fromkeys(call.name for site in sites for call in site.calls)
    known = {*names, *(node.metadata.get("regraft.site", "") for node in graph.nodes())}
    phrases = [
        _phrase(option, wanted, list(names), misses)
        for option, wanted in patterns
        if not any(matches_name(name, wanted) for name in known)
    ]
    return [phrase for phrase in phrases if phrase]


def _phrase(option: str, wanted: str, names: Sequence[str], misses: Sequence[NearMiss]) -> str:
    miss = next((miss for miss in misses if matches_name(miss.name, wanted)), None)
    if miss is not None:
        return "" if option == "exclude" else f"{option}: {wanted!r} fits only what is no site: {escape(miss.reason)}"
    close = get_close_matches(wanted.removeprefix("re:"), names, n=_MOST_NAMES, cutoff=0.0)
    return f"{option}: {wanted!r} fits no layer; closest are {', '.join(map(escape, close))}"
