"""What may still be gained: the expected improvement of the configs that are left, by a forest of the trials so far.

Source: expected improvement, Jones, Schonlau and Welch 1998; with forests, Hutter, Hoos and Leyton-Brown 2011 (SMAC).
"""

import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from regraft.tune._extra import extra
from regraft.tune._records import Trial
from regraft.tune._space import Config, Space

_TREES: Final = 48
_LEAST_DEVIATION: Final = 0.02
"""Of log time: no forest knows a time better than two per cent."""


def encoded(space: Space, configs: Sequence[Config]) -> NDArray[np.float64]:
    """Return the places of the values among those of their parameters, [configs, parameters]."""
    rows = [[values.index(config[name]) for name, values in space.parameters.items()] for config in configs]
    return np.asarray(rows, np.float64).reshape(len(configs), len(space.parameters))


def forest(seed: int) -> Any:
    """Return an untrained forest.

    Raises:
        MissingExtraError: when scikit-learn is not installed.
    """
    ensemble = extra("sklearn.ensemble", "scikit-learn")
    return ensemble.RandomForestRegressor(n_estimators=_TREES, max_features=0.8, random_state=seed)


def expected_gain(space: Space, trials: Sequence[Trial], left: Sequence[Config], seed: int = 0) -> float:
    """Return the largest expected improvement of a config that is left, as a share of the fastest time.

    1 while too little is known to say.
    """
    good = [trial for trial in trials if trial.seconds is not None]
    if len(good) < 4 or not left:
        return 1.0 if left else 0.0
    times = np.log(np.asarray([trial.seconds for trial in good], np.float64))
    model = forest(seed).fit(encoded(space, [trial.config for trial in good]), times)
    rows = encoded(space, left)
    predicted = np.stack([tree.predict(rows) for tree in model.estimators_])
    mean, deviation = predicted.mean(0), np.maximum(predicted.std(0), _LEAST_DEVIATION)
    best = float(times.min())
    z = (best - mean) / deviation
    improvement = (best - mean) * norm.cdf(z) + deviation * norm.pdf(z)
    return float(1 - math.exp(-float(improvement.max())))
