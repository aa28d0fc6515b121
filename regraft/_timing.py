"""Times of several functions, measured in one run, in turn, so that a noisy machine is noisy to all of them."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from regraft.errors import OptionError


@dataclass(frozen=True, slots=True)
class Timing:
    """Wall times of one function.

    Attributes:
        seconds: one entry a round.
    """

    seconds: tuple[float, ...]

    @property
    def median_s(self) -> float:
        """Median, in seconds."""
        return statistics.median(self.seconds)

    @property
    def best_s(self) -> float:
        """Shortest, in seconds."""
        return min(self.seconds)


@dataclass(frozen=True, slots=True)
class Comparison:
    """Timings of functions that were run in turn; the first is the baseline."""

    timings: Mapping[str, Timing]

    @property
    def baseline(self) -> str:
        """Name of the first function."""
        return next(iter(self.timings))

    def ratio(self, name: str) -> float:
        """Return the median over rounds of this function's time divided by the baseline's in the same round.

        Below 1 is faster than the baseline.
        """
        base = self.timings[self.baseline].seconds
        return statistics.median(mine / theirs for mine, theirs in zip(self.timings[name].seconds, base, strict=True))


def compare(functions: Mapping[str, Callable[[], Any]], *, rounds: int = 25, warmup: int = 3) -> Comparison:
    """Run every function once a round, for many rounds.

    Args:
        functions: by name; the first is the baseline.
        rounds: measured rounds.
        warmup: rounds that are not counted.
    """
    if rounds < 1 or not functions:
        raise OptionError(f"compare needs at least one function and one round; got {len(functions)} and {rounds}")
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for place in range(warmup + rounds):
        for name, function in functions.items():
            begin = time.perf_counter()
            function()
            if place >= warmup:
                seconds[name].append(time.perf_counter() - begin)
    return Comparison({name: Timing(tuple(measured)) for name, measured in seconds.items()})
