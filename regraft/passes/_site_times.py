"""Times of rewritten sites alone, beside what they replace: on the operands that the model's own inputs give them."""

import math
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from regraft._timing import compare
from regraft.errors import RegraftError
from regraft.graph import Graph, Site
from regraft.passes._regions import operands_of, tapped_operands

ROUNDS: Final = 15
_LEAST_S: Final = 1e-3
"""A measured round repeats short work until it takes about as long."""
_MOST_REPEATS: Final = 200

Times = tuple[float, float]


def site_times(
    before: Graph, after: Graph, sites: Sequence[Site], probes: Sequence[Any], seed: int, rounds: int = ROUNDS
) -> list[Times | None]:
    """Return the median seconds of each site before and after, measured in turn; None where it cannot run alone.

    Args:
        before: the graph in which the sites were found.
        after: the rewritten graph; the outputs of the sites have the same keys.
        sites: to be timed; of one that is called several times, the first call.
        probes: inputs of the whole model, whose first batch gives the operands.
        seed: of operands that cannot be tapped.
        rounds: measured rounds.
    """
    keys = dict.fromkeys(key for site in sites for key in site.operands.values())
    tapped = tapped_operands(before, [key for key in keys if not before.value(key).nested], probes, seed)
    found: list[Times | None] = []
    for site in sites:
        given = operands_of(before, site, tapped, seed)
        found.append(None if given is None else _times(before, after, site, given, rounds))
    return found


def _times(before: Graph, after: Graph, site: Site, given: Any, rounds: int) -> Times | None:
    try:
        runs = [graph.prepared([site.output], given) for graph in (before, after)]
        repeats = _repeats(runs)
    except (RegraftError, RuntimeError):  # what cannot run alone is judged with the whole model
        return None
    first, second = (_repeated(run, repeats) for run in runs)
    measured = compare({"before": first, "after": second}, rounds=rounds).timings
    return measured["before"].median_s / repeats, measured["after"].median_s / repeats


def _repeats(runs: Sequence[Callable[[], Any]]) -> int:
    """How often the faster one runs in one round."""
    seconds = math.inf
    for run in runs:
        run()
        begin = time.perf_counter()
        run()
        seconds = min(seconds, time.perf_counter() - begin)
    return max(1, min(_MOST_REPEATS, round(_LEAST_S / max(seconds, 1e-7))))


def _repeated(run: Callable[[], Any], repeats: int) -> Callable[[], None]:
    def several() -> None:
        for _ in range(repeats):
            run()

    return several
