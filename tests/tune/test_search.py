"""The search: finds the fastest, pays for nothing twice, ends when it should, and survives being killed."""

import math
import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import pytest
from tuning import SPACE, key, measure, seconds

from regraft.errors import OptionError
from regraft.tune import Config, Measured, Outcome, Records, Settings, Space, Trial, frozen, search

ALL = list(SPACE.configs())
BEST = min(map(seconds, ALL))
EVERYTHING = Settings(trials=None, least_gain=0)


class Counting:
    """A measurement that notes what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[Config] = []

    def __call__(self, config: Config) -> Measured:
        self.asked.append(config)
        return measure(config)


def records(folder: Path) -> Records:
    return Records(folder / "trials.jsonl")


def best_of(outcome: Outcome) -> float:
    assert outcome.best is not None
    assert outcome.best.seconds is not None
    return outcome.best.seconds


@pytest.mark.parametrize("sampler", ["grid", "random", "tpe"])
def test_without_a_limit_every_config_that_makes_sense_is_tried_once(tmp_path: Path, sampler: str) -> None:
    counting = Counting()
    settings = Settings(trials=None, least_gain=0, sampler=sampler)  # type: ignore[arg-type]
    outcome = search(SPACE, counting, key(), records(tmp_path), settings)
    assert outcome.stopped == "space"
    assert sorted(map(frozen, counting.asked)) == sorted(map(frozen, ALL))
    assert best_of(outcome) == BEST
    assert all(SPACE.problem(config) is None for config in counting.asked)


def test_what_was_measured_is_never_paid_again(tmp_path: Path) -> None:
    first = search(SPACE, measure, key(), records(tmp_path), Settings(trials=10))
    assert (first.paid, first.stopped) == (10, "trials")
    again = Counting()
    second = search(SPACE, again, key(), records(tmp_path), Settings(trials=10))
    assert (second.paid, again.asked) == (0, [])
    assert best_of(second) == best_of(first)
    third = search(SPACE, again, key(), records(tmp_path), Settings(trials=16))
    assert third.paid == 6
    assert len({frozen(trial.config) for trial in records(tmp_path).read().trials}) == 16


def test_records_of_another_key_are_not_taken(tmp_path: Path) -> None:
    search(SPACE, measure, key(device="another"), records(tmp_path), EVERYTHING)
    outcome = search(SPACE, measure, key(), records(tmp_path), Settings(trials=3))
    assert outcome.paid == 3
    assert len(outcome.trials) == 3


def test_configs_of_a_cost_model_come_first(tmp_path: Path) -> None:
    counting, first = Counting(), [ALL[7], {"rows": 3, "columns": 16, "unroll": 1}, ALL[2]]
    search(SPACE, counting, key(), records(tmp_path), Settings(trials=2), first)
    assert counting.asked == [ALL[7], ALL[2]]


def test_what_fails_is_recorded_with_its_reason_and_is_never_best(tmp_path: Path) -> None:
    def fails(config: Config) -> Measured:
        return Measured("wrong", None, "off by 0.3") if config["unroll"] == 2 else measure(config)

    outcome = search(SPACE, fails, key(), records(tmp_path), EVERYTHING)
    assert outcome.best is not None
    assert outcome.best.config["unroll"] != 2
    reasons = {trial.reason for trial in records(tmp_path).read().trials if trial.state == "wrong"}
    assert reasons == {"off by 0.3"}


def test_nothing_that_works_gives_no_best(tmp_path: Path) -> None:
    outcome = search(SPACE, lambda config: Measured("failed", None, "no"), key(), records(tmp_path), Settings(trials=3))
    assert outcome.best is None


def test_the_same_seed_asks_for_the_same_configs(tmp_path: Path) -> None:
    def asked(name: str, seed: int) -> list[Config]:
        counting = Counting()
        search(SPACE, counting, key(), Records(tmp_path / name), Settings(trials=14, seed=seed))
        return counting.asked

    assert asked("a", 1) == asked("b", 1)
    assert asked("a2", 1) != asked("c", 2)


def test_it_stops_when_nothing_better_is_to_be_expected(tmp_path: Path) -> None:
    def flat(config: Config) -> Measured:
        del config
        return Measured("ok", 1e-3)

    outcome = search(SPACE, flat, key(), records(tmp_path), Settings(trials=None, least_gain=0.05))
    assert outcome.stopped == "gain"
    assert outcome.paid < len(ALL) / 2


def test_the_time_of_a_run_is_bounded(tmp_path: Path) -> None:
    def slow(config: Config) -> Measured:
        time.sleep(0.05)
        return measure(config)

    outcome = search(SPACE, slow, key(), records(tmp_path), Settings(trials=None, seconds=0.2, least_gain=0))
    assert outcome.stopped == "seconds"
    assert 1 <= outcome.paid < len(ALL)


def test_ctrl_c_ends_it_with_the_best_so_far_and_all_saved(tmp_path: Path) -> None:
    counting = Counting()

    def interrupted(config: Config) -> Measured:
        if len(counting.asked) == 5:
            raise KeyboardInterrupt
        return counting(config)

    outcome = search(SPACE, interrupted, key(), records(tmp_path), EVERYTHING)
    assert (outcome.stopped, outcome.paid) == ("interrupted", 5)
    assert best_of(outcome) == min(map(seconds, counting.asked))
    assert len(records(tmp_path).read().trials) == 5


def test_several_processes_share_one_study(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    settings = Settings(trials=24, least_gain=0, study=str(tmp_path / "study.journal"))

    def work() -> None:
        search(SPACE, measure, key(), records(tmp_path), settings)

    workers = [context.Process(target=work) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    found = records(tmp_path).read()
    assert found.skipped == ()
    # Each process looks before it begins a trial: so at most one more a process is begun, or the same one by two.
    different = {frozen(trial.config) for trial in found.trials}
    assert 24 <= len(different) <= 26
    assert len(found.trials) <= len(different) + 6
    assert search(SPACE, measure, key(), records(tmp_path), settings).paid == 0


def _run_noting(folder: Path) -> None:
    def noting(config: Config) -> Measured:
        time.sleep(0.002)
        return measure(config)

    with (folder / "finished").open("a", encoding="utf-8") as notes:

        def report(trial: Trial, best: Trial | None, count: int) -> None:
            del best, count
            notes.write(trial.id + "\n")
            notes.flush()

        search(SPACE, noting, key(), records(folder), EVERYTHING, report=report)


def test_fifty_kills_lose_no_finished_trial_and_change_no_best(tmp_path: Path) -> None:
    context, draw = multiprocessing.get_context("fork"), random.Random(3)
    for _ in range(50):
        child = context.Process(target=_run_noting, args=(tmp_path,))
        child.start()
        assert child.pid is not None
        time.sleep(draw.uniform(0.005, 0.06))
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        content = records(tmp_path).read()
        finished = (tmp_path / "finished").read_text() if (tmp_path / "finished").exists() else ""
        whole = [line for line in finished.splitlines() if len(line) == 32]
        assert set(whole) <= {trial.id for trial in content.trials}
        assert content.skipped == ()
        assert len({frozen(trial.config) for trial in content.trials}) == len(content.trials)
    resumed = search(SPACE, measure, key(), records(tmp_path), EVERYTHING)
    assert len(resumed.trials) == len(ALL)
    assert best_of(resumed) == BEST


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"trials": 0}, "tune: trials must be above 0; got 0"),
        ({"seconds": -1.0}, "tune: seconds must be above 0; got -1.0"),
        ({"sampler": "genetic"}, "tune: sampler must be one of tpe, random, grid; got 'genetic'"),
        ({"least_gain": 1.0}, "tune: least_gain must be in [0, 1); got 1.0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(given: dict[str, object], text: str) -> None:
    with pytest.raises(OptionError) as caught:
        Settings(**given)  # type: ignore[arg-type]
    assert str(caught.value) == text


def test_spaces_of_nothing_are_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"^a space needs parameters with values; rows has none$"):
        Space({"rows": ()})
    nothing = Space({"rows": (1,)}, lambda config: "never")
    with pytest.raises(OptionError, match=r"^tune: no config of matmul m=128 n=64 float32 makes sense$"):
        search(nothing, measure, key(), records(tmp_path))


def test_a_model_of_the_space_finds_the_fastest_in_fewer_trials_than_chance(tmp_path: Path) -> None:
    def until_best(config: Config) -> Measured:
        if math.isclose(seconds(config), BEST):
            raise KeyboardInterrupt
        return measure(config)

    def needed(sampler: str, seed: int) -> int:
        settings = Settings(trials=None, least_gain=0, sampler=sampler, seed=seed)  # type: ignore[arg-type]
        return search(SPACE, until_best, key(), Records(tmp_path / f"{sampler}{seed}.jsonl"), settings).paid

    tpe, chance = (sorted(needed(sampler, seed) for seed in range(7))[3] for sampler in ("tpe", "random"))
    assert tpe < chance
