"""Aligning two sequences: what is equal, in order, and the gaps between.

Items that are unique on both sides are anchors (patience diff); between them the longest common blocks are taken. Gaps
too long for that are halved, so that time stays linear and the result deterministic.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from difflib import SequenceMatcher
from typing import Final

Pair = tuple[int, int]
Gap = tuple[range, range]
_MAX_CELLS: Final = 100_000


def align(
    before: Sequence[Hashable],
    after: Sequence[Hashable],
    exact_before: Sequence[Hashable],
    exact_after: Sequence[Hashable],
) -> list[Pair]:
    """Return pairs of equal items, increasing on both sides.

    Args:
        before: what must be equal for a pair.
        after: the same for the other side.
        exact_before: one finer item for each of `before`, used to find anchors; equal ones must be equal in `before`.
        exact_after: the same for the other side.
    """
    pairs: list[Pair] = []
    for old, new in _gaps(_anchors(exact_before, exact_after), len(before), len(after)):
        pairs += _common(before, after, old, new)
        if old.stop < len(before) and new.stop < len(after):
            pairs.append((old.stop, new.stop))
    return pairs


def gaps(pairs: Sequence[Pair], before: int, after: int) -> Iterator[Gap]:
    """Return the places between the pairs, where at least one side has something."""
    return (gap for gap in _gaps(pairs, before, after) if gap[0] or gap[1])


def _gaps(pairs: Sequence[Pair], before: int, after: int) -> Iterator[Gap]:
    i = j = 0
    for p, q in [*pairs, (before, after)]:
        yield range(i, p), range(j, q)
        i, j = p + 1, q + 1


def _anchors(before: Sequence[Hashable], after: Sequence[Hashable]) -> list[Pair]:
    """The longest increasing run of items that are unique on both sides."""
    counts, others = Counter(before), Counter(after)
    places = {item: place for place, item in enumerate(after)}
    unique = [(i, places[item]) for i, item in enumerate(before) if counts[item] == 1 and others[item] == 1]
    ends: list[int] = []  # smallest last place in `after` of a run of each length
    heads: list[int] = []  # where that run ends in `unique`
    previous: list[int] = []
    for at, (_, j) in enumerate(unique):
        length = bisect_left(ends, j)
        previous.append(heads[length - 1] if length else -1)
        ends[length : length + 1] = [j]
        heads[length : length + 1] = [at]
    found: list[Pair] = []
    at = heads[-1] if heads else -1
    while at >= 0:
        found.append(unique[at])
        at = previous[at]
    return found[::-1]


def _common(before: Sequence[Hashable], after: Sequence[Hashable], old: range, new: range) -> Iterator[Pair]:
    waiting = [(old, new)]
    while waiting:
        old, new = waiting.pop()
        while old and new and before[old[0]] == after[new[0]]:
            yield old[0], new[0]
            old, new = old[1:], new[1:]
        tail = 0
        while tail < min(len(old), len(new)) and before[old[-1 - tail]] == after[new[-1 - tail]]:
            tail += 1
        ends = list(zip(old[len(old) - tail :], new[len(new) - tail :], strict=True))
        old, new = old[: len(old) - tail], new[: len(new) - tail]
        if len(old) * len(new) <= _MAX_CELLS:
            yield from _blocks(before, after, old, new)
            yield from ends
        else:
            p, q = len(old) // 2, len(new) // 2
            old_end, new_end = old.stop + tail, new.stop + tail
            waiting += [
                (range(old[p], old_end), range(new[q], new_end)),
                (old[:p], new[:q]),
            ]


def _blocks(before: Sequence[Hashable], after: Sequence[Hashable], old: range, new: range) -> Iterator[Pair]:
    matcher = SequenceMatcher(None, [before[i] for i in old], [after[j] for j in new], autojunk=False)
    for block in matcher.get_matching_blocks():
        for step in range(block.size):
            yield old[block.a + step], new[block.b + step]
