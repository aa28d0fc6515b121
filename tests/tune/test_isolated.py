"""Trials in a process of their own: what crashes, hangs or raises costs its own trial alone."""

import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tuning import key

from regraft.errors import InputError
from regraft.tune import Config, Isolated, Measure, Measured, Records, Settings, Space, Task, search

HERE = f"{Path(__file__).stem}"
SPACE = Space({"does": ("works", "crashes", "hangs", "raises", "prints", "works again")})


def troublesome(seconds: float) -> Measure:
    """Make a measurement that does what its config says; imported by the child, too."""

    def measure(config: Config) -> Measured:
        match config["does"]:
            case "crashes":
                os.kill(os.getpid(), signal.SIGSEGV)
            case "hangs":
                time.sleep(600)
            case "raises":
                raise RuntimeError("no such\ninstruction")
            case "prints":
                sys.stdout.write("noise\n")
            case "quits":
                raise SystemExit(3)
        return Measured("ok", seconds)

    return measure


def refusing() -> Measure:
    raise ValueError("nothing to measure")


@pytest.fixture(scope="module")
def isolated() -> Iterator[Isolated]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent))
        with Isolated(Task(f"{HERE}:troublesome", {"seconds": 0.25}), timeout_s=3) as found:
            yield found


def test_every_kind_of_failure_costs_its_own_trial(isolated: Isolated, tmp_path: Path) -> None:
    outcome = search(SPACE, isolated, key(), Records(tmp_path / "t.jsonl"), Settings(trials=None, sampler="grid"))
    said = {trial.config["does"]: (trial.state, trial.reason) for trial in outcome.trials}
    assert said == {
        "works": ("ok", ""),
        "crashes": ("failed", "its process ended without an answer, by signal 11"),
        "hangs": ("timeout", "took longer than 3 s"),
        "raises": ("failed", "RuntimeError: no such instruction"),
        "prints": ("ok", ""),
        "works again": ("ok", ""),
    }
    assert outcome.best is not None
    assert outcome.best.seconds == 0.25


def test_a_process_that_was_killed_between_trials_is_replaced(isolated: Isolated) -> None:
    assert isolated({"does": "works"}).state == "ok"
    child = isolated._child
    assert child is not None
    os.kill(child.pid, signal.SIGKILL)
    time.sleep(0.1)
    assert isolated({"does": "works"}).state == "ok"


def test_a_task_that_cannot_be_made_says_why_each_time(isolated: Isolated) -> None:
    with Isolated(Task(f"{HERE}:refusing")) as refused:
        assert refused({}) == Measured("failed", None, "ValueError: nothing to measure")
    with Isolated(Task("no.such.module:at_all")) as absent:
        assert absent({}).reason.startswith("InputError: tune: no function 'no.such.module:at_all': No module")


@pytest.mark.parametrize("maker", ["regraft.tune:nothing", "nothing", "regraft.tune"])
def test_a_maker_that_is_not_there_is_named(maker: str) -> None:
    with pytest.raises(InputError, match=f"^tune: no function '{maker}': "):
        Task(maker).make()
