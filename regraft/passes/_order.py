"""The order of passes: as asked for, except where one must come after another."""

from collections.abc import Sequence

from regraft.errors import OptionError
from regraft.passes._registry import AnyPass


def order_passes(passes: Sequence[AnyPass]) -> list[AnyPass]:
    """Return the passes in an order that respects every `after`, otherwise as given.

    Raises:
        OptionError: for two passes that conflict, or passes that each must come after the other; by name.
    """
    _refuse_conflicts(passes)
    waiting = list(passes)
    ordered: list[AnyPass] = []
    while waiting:
        ready = next((item for item in waiting if not _blockers(item, waiting)), None)
        if ready is None:
            names = " -> ".join(item.name for item in _cycle(waiting))
            raise OptionError(f"passes wait for each other: {names}; drop one, or run them in two calls")
        waiting = [item for item in waiting if item is not ready]  # equal passes may be asked for twice
        ordered.append(ready)
    return ordered


def _blockers(item: AnyPass, waiting: Sequence[AnyPass]) -> list[AnyPass]:
    # Two instances of one pass do not wait for each other.
    return [other for other in waiting if other.name != item.name and other.name in item.after]


def _cycle(waiting: Sequence[AnyPass]) -> list[AnyPass]:
    """Passes that wait for each other, the first one repeated at the end; each of `waiting` has a blocker."""
    path = [waiting[0]]
    while True:
        blocker = _blockers(path[-1], waiting)[0]
        if any(item is blocker for item in path):
            begin = next(place for place, item in enumerate(path) if item is blocker)
            return [*path[begin:], blocker]
        path.append(blocker)


def _refuse_conflicts(passes: Sequence[AnyPass]) -> None:
    for item in passes:
        for other in passes:
            if other is not item and other.name in item.conflicts:
                raise OptionError(f"{item.name} and {other.name} cannot be run together; drop one")
