"""A watched child process: its answers, and how it ends."""

import sys
from collections.abc import Iterator

import pytest

from regraft._child import Child, ChildError, ChildTimeoutError

ECHO = "import sys\nfor line in sys.stdin: print(line, end='', flush=True)"
SILENT = "import sys, time\nfor line in sys.stdin: time.sleep(600)"
LEAVING = "import sys\nsys.stdin.readline(); print('the reason', file=sys.stderr); sys.exit(3)"


@pytest.fixture
def child(request: pytest.FixtureRequest) -> Iterator[Child]:
    started = Child((sys.executable, "-c", request.param))
    yield started
    if started.alive:
        started.stop()


@pytest.mark.parametrize("child", [ECHO], indirect=True)
def test_it_answers_one_request_after_the_other(child: Child) -> None:
    assert [child.ask({"place": place}, 20)["place"] for place in range(3)] == [0, 1, 2]
    assert child.alive


@pytest.mark.parametrize("child", [SILENT], indirect=True)
def test_without_an_answer_in_time_it_is_ended(child: Child) -> None:
    with pytest.raises(ChildTimeoutError, match=r"^gave no answer in 0\.2 s; its process was ended$"):
        child.ask({}, 0.2)
    assert not child.alive


@pytest.mark.parametrize("child", [LEAVING], indirect=True)
def test_its_code_and_last_words_are_told(child: Child) -> None:
    with pytest.raises(ChildError, match=r"^its process ended without an answer, with code 3: the reason$"):
        child.ask({}, 20)


@pytest.mark.parametrize("child", [SILENT], indirect=True)
def test_interrupted_it_is_ended_so_that_no_answer_comes_too_late(
    child: Child, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(timeout_s: float) -> dict[str, object]:
        raise KeyboardInterrupt

    monkeypatch.setattr(child, "receive", interrupted)
    with pytest.raises(KeyboardInterrupt):
        child.ask({}, 20)
    assert not child.alive
