"""Who proposes what to try next: a study of Optuna, told of every trial."""

import os
import warnings
from typing import Any

from regraft.tune._extra import extra
from regraft.tune._key import Key
from regraft.tune._records import Trial
from regraft.tune._space import Choice, Config, Frozen, Space, frozen


class Proposer:
    """Optuna's study of one key, by itself or shared through a journal."""

    def __init__(self, space: Space, key: Key, sampler: str, seed: int, journal: str | None) -> None:
        self._optuna = optuna = extra("optuna")
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._space = space
        storage = None if journal is None else _journal(journal)
        # Those who share a study must not all propose the same.
        seed = seed if journal is None else (seed * 1_000_003 + os.getpid()) % 2**32
        name = f"{key.title} {key.target} {key.device} {key.compiler} {key.version}"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            drawn = (
                optuna.samplers.RandomSampler(seed=seed)
                if sampler == "random"
                else optuna.samplers.TPESampler(seed=seed, multivariate=True, n_startup_trials=8)
            )
        self._study = optuna.create_study(storage=storage, sampler=drawn, study_name=name, load_if_exists=True)
        self._told = {trial.user_attrs.get("id") for trial in self._study.get_trials(deepcopy=False)}
        self._asked: dict[Frozen, Any] = {}

    def ask(self) -> Config:
        """Return a proposal: places among the values, so that neighbours are near each other."""
        trial = self._study.ask()
        config: dict[str, Choice] = {
            name: values[trial.suggest_int(name, 0, len(values) - 1)] for name, values in self._space.parameters.items()
        }
        refused = self._space.refusal(config) is not None
        if refused or frozen(config) in self._asked:
            self._study.tell(trial, state=self._optuna.trial.TrialState.FAIL)
        else:
            self._asked[frozen(config)] = trial
        return config

    def tell(self, trial: Trial) -> None:
        """Hand on how a trial went, whoever proposed it."""
        optuna = self._optuna
        if trial.id in self._told:
            return
        self._told.add(trial.id)
        good = trial.seconds is not None
        state = optuna.trial.TrialState.COMPLETE if good else optuna.trial.TrialState.FAIL
        asked = self._asked.pop(frozen(trial.config), None)
        if asked is not None:
            asked.set_user_attr("id", trial.id)
            self._study.tell(asked, trial.seconds, state=state)
            return
        places = {name: values.index(trial.config[name]) for name, values in self._space.parameters.items()}
        ranges = {
            name: optuna.distributions.IntDistribution(0, len(values) - 1)
            for name, values in self._space.parameters.items()
        }
        made = optuna.trial.create_trial(
            params=places, distributions=ranges, value=trial.seconds, state=state, user_attrs={"id": trial.id}
        )
        self._study.add_trial(made)


def _journal(path: str) -> Any:
    backend = extra("optuna.storages.journal").JournalFileBackend(path)
    return extra("optuna.storages").JournalStorage(backend)
