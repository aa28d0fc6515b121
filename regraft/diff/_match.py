"""Which nodes of two programs correspond.

Nodes whose results have the same key come first: a rewrite keeps the key of what it computes. Where keys say nothing (a
re-export), nodes are aligned by operation within each layer. Around every replaced node, the nodes that only served it
are taken along, so that a replaced site is one group.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain

from regraft.diff._align import align, gaps
from regraft.diff._side import NUMBERED, Side


@dataclass(slots=True)
class Group:
    """Nodes that stand for each other, by place; a group of one pair may turn out to be unchanged."""

    before: list[int] = field(default_factory=list[int])
    after: list[int] = field(default_factory=list[int])


def match_nodes(before: Side, after: Side, claims: Mapping[str, Collection[str]]) -> list[Group]:
    """Return groups that hold every node of both sides exactly once.

    Args:
        before: one program.
        after: the other one.
        claims: rewrites that are known, by the key of the value that they compute: keys of the nodes of `before` that
            they covered.
    """
    return _Matching(before, after, claims).groups()


class _Matching:
    def __init__(self, before: Side, after: Side, claims: Mapping[str, Collection[str]]) -> None:
        self._before, self._after, self._claims = before, after, claims
        self._old: dict[int, Group] = {}  # group by place in `before`
        self._new: dict[int, Group] = {}

    def groups(self) -> list[Group]:
        sites = self._by_key()
        self._take_covered()
        self._take_servants(self._before, self._old, sites, old=True)
        self._take_servants(self._after, self._new, sites, old=False)
        self._align_rest()
        unique = {id(group): group for group in (*self._old.values(), *self._new.values())}
        for group in unique.values():
            group.before.sort()
            group.after.sort()
        return list(unique.values())

    def _add(self, old: Sequence[int], new: Sequence[int]) -> Group:
        group = Group(list(old), list(new))
        self._old.update(dict.fromkeys(old, group))
        self._new.update(dict.fromkeys(new, group))
        return group

    def _by_key(self) -> list[Group]:
        """Pair nodes by key; return the groups that are (or may be) rewritten sites."""
        pairs = list(self._key_pairs())
        numbers_mean_something = self._numbers_mean_something(pairs)
        sites: list[Group] = []
        for i, j in pairs:
            in_place, fitting = self._in_one_scope(i, j), self._may_share_weights(i, j)
            claimed = self._is_claimed(j) and (in_place or fitting)
            trusted = numbers_mean_something or not NUMBERED.fullmatch(self._after.nodes[j].key)
            if not claimed and not (trusted and in_place and fitting):
                continue
            group = self._add([i], [j])
            if claimed or self._before.nodes[i].op != self._after.nodes[j].op:
                sites.append(group)
        return sites

    def _key_pairs(self) -> Iterator[tuple[int, int]]:
        used: set[int] = set()
        for j, node in enumerate(self._after.nodes):
            results = [self._before.by_result.get(value.key) for value in node.outputs if value.key]
            for i in (*results, self._before.by_key.get(node.key)):
                if i is not None and i not in used:
                    used.add(i)
                    yield i, j
                    break

    def _numbers_mean_something(self, pairs: Sequence[tuple[int, int]]) -> bool:
        """Whether keys that are mere numbers stand for the same operation on both sides, mostly."""
        numbered = [
            (i, j) for i, j in pairs if NUMBERED.fullmatch(self._after.nodes[j].key) and not self._is_claimed(j)
        ]
        alike = sum(self._before.nodes[i].op == self._after.nodes[j].op for i, j in numbered)
        return 2 * alike >= len(numbered)

    def _is_claimed(self, place: int) -> bool:
        return any(value.key in self._claims for value in self._after.nodes[place].outputs)

    def _in_one_scope(self, i: int, j: int) -> bool:
        old, new = self._before.nodes[i].scope, self._after.nodes[j].scope
        return old == new or not old or not new

    def _may_share_weights(self, i: int, j: int) -> bool:
        """False when both read weights of the first program, and none is the same: an exporter moved the key."""
        old, new = self._before.weights(self._before.nodes[i]), self._after.weights(self._after.nodes[j])
        return not old or not (new & self._weights) or bool(old & new)

    @cached_property
    def _weights(self) -> frozenset[str]:
        return frozenset(chain.from_iterable(map(self._before.weights, self._before.nodes)))

    def _take_covered(self) -> None:
        """Nodes that a known rewrite covered belong to its site."""
        for output, keys in self._claims.items():
            place = self._before.by_result.get(output)
            group = None if place is None else self._old.get(place)
            covered = [self._before.by_key.get(key) for key in keys]
            for i in covered:
                if group is not None and i is not None and i not in self._old:
                    group.before.append(i)
                    self._old[i] = group

    def _take_servants(self, side: Side, groups: dict[int, Group], sites: Sequence[Group], *, old: bool) -> None:
        """Nodes whose every reader belongs to a rewritten site belong to the site of the first one."""
        known = {id(group) for group in sites}
        for place in range(len(side.nodes) - 1, -1, -1):
            if place in groups or side.is_returned(place):
                continue
            owners = [groups.get(user) for user in side.users(place)]
            if not owners or not all(owner is not None and id(owner) in known for owner in owners):
                continue
            group = owners[0]
            assert group is not None, "all owners are sites"
            (group.before if old else group.after).append(place)
            groups[place] = group

    def _align_rest(self) -> None:
        olds, news = _by_scope(self._before, self._old), _by_scope(self._after, self._new)
        for scope in dict.fromkeys((*olds, *news)):
            self._align_scope(olds.get(scope, []), news.get(scope, []))

    def _align_scope(self, old: list[int], new: list[int]) -> None:
        before, after = self._before, self._after
        pairs = align(
            [before.nodes[i].op for i in old],
            [after.nodes[j].op for j in new],
            [before.fingerprint(before.nodes[i]) for i in old],
            [after.fingerprint(after.nodes[j]) for j in new],
        )
        for p, q in pairs:
            self._add([old[p]], [new[q]])
        for p, q in gaps(pairs, len(old), len(new)):
            self._add_gap([old[i] for i in p], [new[j] for j in q])

    def _add_gap(self, old: Sequence[int], new: Sequence[int]) -> None:
        """One group, or one for each call where a layer that is called several times was rewritten alike."""
        calls = _repetitions([self._after.nodes[j].op for j in new])
        if old and calls > 1 and _repetitions([self._before.nodes[i].op for i in old]) % calls == 0:
            p, q = len(old) // calls, len(new) // calls
            for call in range(calls):
                self._add(old[call * p : (call + 1) * p], new[call * q : (call + 1) * q])
        else:
            self._add(old, new)


def _repetitions(ops: Sequence[str]) -> int:
    """How many times the shortest beginning is repeated that makes up the whole."""
    periods = (period for period in range(1, len(ops)) if len(ops) % period == 0)
    return next((len(ops) // period for period in periods if ops[period:] == ops[:-period]), 1)


def _by_scope(side: Side, taken: Mapping[int, Group]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for place, node in enumerate(side.nodes):
        if place not in taken:
            found.setdefault(node.scope, []).append(place)
    return found
