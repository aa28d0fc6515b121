"""The search: which config to try next, until the budget is spent or nothing better is to be expected."""

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, get_args

from regraft.errors import OptionError
from regraft.tune._gain import expected_gain
from regraft.tune._key import Key
from regraft.tune._proposer import Proposer
from regraft.tune._records import Records, State, Trial, fastest
from regraft.tune._space import Config, Frozen, Space, frozen

Sampler = Literal["tpe", "random", "grid"]

_PATIENCE: Final = 12
"""Trials without a better one before it is asked what may still be gained."""

_REDRAWS: Final = 16
"""How often a sampler may propose what is known or refused before another config is taken."""


@dataclass(frozen=True, slots=True)
class Measured:
    """What a measurement says of a config.

    Attributes:
        state: how it went.
        seconds: of one call; None unless it went well.
        reason: why it did not.
    """

    state: State
    seconds: float | None = None
    reason: str = ""


Measure = Callable[[Config], Measured]
"""Tries one config; never raises for what the config does."""

Report = Callable[[Trial, Trial | None, int], None]
"""(trial, fastest so far, trials so far)."""


@dataclass(frozen=True)
class Settings:
    """How far and how to search.

    Attributes:
        trials: of this key in all, earlier ones included; no limit when None.
        seconds: of this run; no limit when None.
        sampler: "tpe" (Optuna's tree-structured Parzen estimator), "random" or "grid" (all, in the order of `first`).
        seed: of whatever is drawn.
        least_gain: stop when the gain to be expected of any config that is left is below this share of the fastest
            time; 0 never stops.
        study: file of Optuna's journal, through which several processes share one search; None for this process alone.
    """

    trials: int | None = 64
    seconds: float | None = None
    sampler: Sampler = "tpe"
    seed: int = 0
    least_gain: float = 0.01
    study: str | None = None

    def __post_init__(self) -> None:
        for name, value in (("trials", self.trials), ("seconds", self.seconds)):
            if value is not None and value <= 0:
                raise OptionError(f"tune: {name} must be above 0; got {value}")
        if self.sampler not in get_args(Sampler):
            raise OptionError(f"tune: sampler must be one of {', '.join(get_args(Sampler))}; got {self.sampler!r}")
        if not 0 <= self.least_gain < 1:
            raise OptionError(f"tune: least_gain must be in [0, 1); got {self.least_gain}")


@dataclass(frozen=True)
class Outcome:
    """What a search found.

    Attributes:
        best: the fastest trial, of this run or of an earlier one; None when nothing went well.
        trials: all of this key, in order.
        paid: how many were measured in this run.
        stopped: why it ended ("trials", "seconds", "space", "gain", "interrupted").
    """

    best: Trial | None
    trials: tuple[Trial, ...]
    paid: int
    stopped: str


def search(
    space: Space,
    measure: Measure,
    key: Key,
    records: Records,
    settings: Settings | None = None,
    first: Sequence[Config] = (),
    report: Report = lambda trial, best, count: None,
) -> Outcome:
    """Try configs until the budget is spent; every trial is in the records before the next one begins.

    Trials that the records hold already, of an earlier run or of another process, are used and not paid again. Ctrl-C
    ends the search after the records are written, with the best so far.

    Args:
        space: what can be chosen.
        measure: tries one config.
        key: for what the times hold.
        records: where they are kept.
        settings: budget and sampler.
        first: configs to begin with, most promising first (of a cost model).
        report: called after each trial.

    Raises:
        MissingExtraError: when Optuna is not installed and a sampler of it is asked for.
        OutputError: when the records cannot be written.
    """
    settings = settings or Settings()
    state = _State(space, key, records, settings, list(first))
    begin, paid, stopped = time.monotonic(), 0, ""
    try:
        while not (stopped := state.finished(time.monotonic() - begin)):
            config = state.next_config()
            result = measure(config)
            trial = Trial(key, dict(config), result.state, result.seconds, result.reason)
            records.add(trial)
            paid += 1
            state.learn(trial)
            report(trial, state.best, len(state.known))
    except KeyboardInterrupt:
        stopped = "interrupted"
    return Outcome(state.best, tuple(state.known.values()), paid, stopped)


@dataclass
class _State:
    """What is known so far, and who proposes."""

    space: Space
    key: Key
    records: Records
    settings: Settings
    first: list[Config]
    known: dict[Frozen, Trial] = field(default_factory=dict[Frozen, Trial])
    _told: set[str] = field(default_factory=set[str])
    _since_best: int = 0

    def __post_init__(self) -> None:
        self._valid = [dict(config) for config in self.space.configs()]
        if not self._valid:
            raise OptionError(f"tune: no config of {self.key.title} makes sense")
        self._random = random.Random(self.settings.seed)  # noqa: S311 - a search, no secret
        self._study = (
            None
            if self.settings.sampler == "grid"
            else Proposer(self.space, self.key, self.settings.sampler, self.settings.seed, self.settings.study)
        )
        self.refresh()

    @property
    def best(self) -> Trial | None:
        """The fastest trial."""
        return fastest(self.known.values())

    def refresh(self) -> None:
        """Take in what the records hold of this key, also of other processes."""
        for trial in self.records.read().of(self.key):
            if self.space.problem(trial.config) is None:
                self.learn(trial)

    def learn(self, trial: Trial) -> None:
        """Take in one trial."""
        if trial.id in self._told:
            return
        before = self.best
        self._told.add(trial.id)
        self.known[frozen(trial.config)] = trial
        if self._study is not None:
            self._study.tell(trial)
        better = trial.seconds is not None and (before is None or trial.seconds < (before.seconds or 0.0))
        self._since_best = 0 if better else self._since_best + 1

    def finished(self, elapsed: float) -> str:
        """Return why the search is over, or an empty text."""
        self.refresh()
        if len(self.known) >= len(self._valid):
            return "space"
        if self.settings.trials is not None and len(self.known) >= self.settings.trials:
            return "trials"
        if self.settings.seconds is not None and elapsed >= self.settings.seconds:
            return "seconds"
        patient = self._since_best < _PATIENCE or self.settings.least_gain == 0
        return "" if patient or self._gain() >= self.settings.least_gain else "gain"

    def _gain(self) -> float:
        left = [config for config in self._valid if frozen(config) not in self.known]
        return expected_gain(self.space, list(self.known.values()), left, self.settings.seed)

    def next_config(self) -> Config:
        """Return what to try next, which is not known yet."""
        while self.first:
            config = self.first.pop(0)
            if self.space.problem(config) is None and frozen(config) not in self.known:
                return config
        if self._study is None:
            return next(config for config in self._valid if frozen(config) not in self.known)
        for _ in range(_REDRAWS):
            config = self._study.ask()
            if self.space.refusal(config) is None and frozen(config) not in self.known:
                return config
        return self._random.choice([config for config in self._valid if frozen(config) not in self.known])
