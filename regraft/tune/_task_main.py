"""The process of trials: makes a measurement, then answers each config with what it measured.

Started by `_task.py`. Ctrl-C is its parent's affair, which ends it.
"""

import json
import os
import signal
import sys
from typing import Any, TextIO

from regraft.tune._search import Measure, Measured
from regraft.tune._task import Task


def main(requests: TextIO, answers: TextIO) -> None:
    """Answer until there are no more requests; the first says what is measured."""
    first = json.loads(requests.readline())
    measure, error = _made(first)
    _say(answers, {"error": error})
    if measure is None:
        return
    for line in requests:
        found = _measured(measure, json.loads(line)["config"])
        _say(answers, {"state": found.state, "seconds": found.seconds, "reason": found.reason})


def _made(request: dict[str, Any]) -> tuple[Measure | None, str]:
    try:
        return Task(request["maker"], request["arguments"]).make(), ""
    except Exception as error:
        return None, _one_line(error)


def _measured(measure: Measure, config: dict[str, Any]) -> Measured:
    try:
        return measure(config)
    except Exception as error:
        return Measured("failed", None, _one_line(error))


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split()) or "without a text"
    return f"{type(error).__name__}: {text[:400]}"


def _say(answers: TextIO, content: dict[str, Any]) -> None:
    answers.write(json.dumps(content) + "\n")
    answers.flush()


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # What a candidate prints goes to the error stream; the pipe carries answers alone.
    pipe = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    main(sys.stdin, pipe)
