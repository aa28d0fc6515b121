"""What a config will cost: a roofline, and what a forest has learned of how far from it such configs are.

Without samples it is the roofline alone. It learns the logarithm of time over roofline, so that neither the largest
problems nor the slowest configs rule it; shapes are kept together when it is judged.

Source: roofline, Williams, Waterman and Patterson 2009; forests on tile sizes as in GPPerf, which fits times themselves
and splits at random, so that its figures are for shapes that it has seen.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr

from regraft.errors import OptionError
from regraft.tune._gain import forest

Features = Mapping[str, float]
"""Of one config of one problem. "operations", "bytes" and "tasks" (what runs in parallel) must be there."""

_LEAST_SAMPLES: Final = 16


@dataclass(frozen=True, slots=True)
class Machine:
    """What a processor reaches.

    Attributes:
        operations: a second (two a multiply-add), of all its units together.
        bytes: a second, from memory.
        units: that work at once (cores, multiprocessors).
    """

    operations: float
    bytes: float
    units: int = 1


@dataclass(frozen=True)
class Sample:
    """One measured config.

    Attributes:
        features: of the config.
        seconds: measured.
        shape: name of its problem; samples of one problem stay together.
    """

    features: Features
    seconds: float
    shape: str


@dataclass(frozen=True, slots=True)
class Quality:
    """How well unseen shapes are ranked.

    Attributes:
        rank_correlation: Spearman's, of predicted and measured times of one shape; median over the shapes.
        regret: time of the config that is predicted fastest over that of the fastest, minus 1; median over the shapes.
        worst_regret: the largest of these.
        shapes: how many there were.
    """

    rank_correlation: float
    regret: float
    worst_regret: float
    shapes: int


class CostModel:
    """Predicts seconds; trained or not."""

    def __init__(self, machine: Machine, seed: int = 0) -> None:
        self.machine = machine
        self.seed = seed
        self._names: list[str] = []
        self._forest: Any = None

    @property
    def is_trained(self) -> bool:
        """Whether it has learned, and does not give the roofline alone."""
        return self._forest is not None

    def fit(self, samples: Sequence[Sample]) -> "CostModel":
        """Learn from samples; too few leave it the roofline."""
        if len(samples) < _LEAST_SAMPLES:
            self._forest = None
            return self
        self._names = sorted({name for sample in samples for name in sample.features})
        rows = self._rows([sample.features for sample in samples])
        roofline = self.roofline([sample.features for sample in samples])
        seconds = np.asarray([sample.seconds for sample in samples], np.float64)
        self._forest = forest(self.seed).fit(rows, np.log(seconds / roofline))
        return self

    def predict(self, features: Sequence[Features]) -> NDArray[np.float64]:
        """Return seconds, one a config."""
        roofline = self.roofline(features)
        if self._forest is None or not len(features):
            return roofline
        learned: NDArray[np.float64] = np.exp(self._forest.predict(self._rows(features)))
        return roofline * learned

    def roofline(self, features: Sequence[Features]) -> NDArray[np.float64]:
        """Return the seconds below which none gets: work over the units that its tasks keep busy, or memory."""
        found = [self._least(config) for config in features]
        return np.asarray(found, np.float64)

    def _least(self, config: Features) -> float:
        missing = [name for name in ("operations", "bytes", "tasks") if name not in config]
        if missing:
            raise OptionError(f"tune: a config needs the feature {missing[0]!r}; it has {', '.join(config) or 'none'}")
        tasks, units = max(1.0, config["tasks"]), self.machine.units
        waves = np.ceil(tasks / units)
        busy = tasks / (waves * units)
        return max(config["operations"] / (self.machine.operations * busy), config["bytes"] / self.machine.bytes)

    def _rows(self, features: Sequence[Features]) -> NDArray[np.float64]:
        """Logarithms, in which products of extents are sums."""
        rows = [[config.get(name, 0.0) for name in self._names] for config in features]
        return np.log1p(np.asarray(rows, np.float64))


def judge(samples: Sequence[Sample], machine: Machine, *, trained: bool = True, seed: int = 0) -> Quality:
    """Return how well shapes are ranked by a model that has seen all others (or nothing).

    Raises:
        OptionError: for fewer than two shapes with two configs each.
    """
    shapes: dict[str, list[Sample]] = {}
    for sample in samples:
        shapes.setdefault(sample.shape, []).append(sample)
    usable = {name: group for name, group in shapes.items() if len(group) > 1}
    if len(usable) < 2:
        raise OptionError(f"tune: judging needs two shapes with two configs each; got {len(usable)}")
    correlations, regrets = [], []
    for name, group in usable.items():
        model = CostModel(machine, seed)
        if trained:
            model.fit([sample for sample in samples if sample.shape != name])
        predicted = model.predict([sample.features for sample in group])
        measured = np.asarray([sample.seconds for sample in group], np.float64)
        found: Any = spearmanr(predicted, measured) if np.ptp(predicted) and np.ptp(measured) else (0.0,)
        correlations.append(float(found[0]))
        regrets.append(float(measured[int(np.argmin(predicted))] / measured.min() - 1))
    return Quality(float(np.median(correlations)), float(np.median(regrets)), max(regrets), len(usable))
