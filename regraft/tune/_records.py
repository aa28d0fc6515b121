"""Measured trials on disk: one line of JSON each, only ever appended, by any number of processes.

    {"schema": 1, "key": {...}, "config": {...}, "state": "ok", "seconds": 0.0012, "reason": "", "when": ..., "id": ...}

A line is written whole and synced before the next trial begins, under a lock that the system releases when its holder
dies. A last line without its end was torn by a death in mid-write: the next writer removes it. A line that cannot be
read is skipped, named and kept.
"""

import json
import os
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO, Final, Literal, get_args

from filelock import FileLock

from regraft.errors import OutputError
from regraft.tune._key import Key
from regraft.tune._space import Config, frozen

SCHEMA: Final = 1

State = Literal["ok", "wrong", "failed", "timeout"]
"""Measured; its result was wrong; it could not be built or run; it took too long."""


@dataclass(frozen=True)
class Trial:
    """One config, tried.

    Attributes:
        key: for what.
        config: which.
        state: how it went.
        seconds: of one call; None unless it went well.
        reason: why it did not.
        when: in UTC, ISO 8601.
        id: unique.
    """

    key: Key
    config: Config
    state: State
    seconds: float | None = None
    reason: str = ""
    when: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="milliseconds"))
    id: str = field(default_factory=lambda: uuid.uuid4().hex)

    def as_line(self) -> str:
        """Return it as one line of JSON, without its end."""
        content = {
            "schema": SCHEMA,
            "key": self.key.as_json(),
            "config": dict(self.config),
            "state": self.state,
            "seconds": self.seconds,
            "reason": self.reason,
            "when": self.when,
            "id": self.id,
        }
        return json.dumps(content, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


@dataclass(frozen=True, slots=True)
class Skipped:
    """A line that cannot be used: its number, from 1, and why."""

    line: int
    reason: str


@dataclass(frozen=True)
class Content:
    """What a file of records holds, in the order in which it was written."""

    trials: tuple[Trial, ...] = ()
    skipped: tuple[Skipped, ...] = ()

    def of(self, key: Key) -> list[Trial]:
        """Return the trials of one key, each config once: the last."""
        found = {frozen(trial.config): trial for trial in self.trials if trial.key == key}
        return list(found.values())

    def best(self, key: Key) -> Trial | None:
        """Return the fastest trial of a key, or None."""
        return fastest(self.of(key))


def fastest(trials: Iterable[Trial]) -> Trial | None:
    """Return the fastest of those that went well, or None."""
    good = [trial for trial in trials if trial.seconds is not None]
    return min(good, key=lambda trial: trial.seconds or 0.0) if good else None


class Records:
    """A file of trials; it is made when the first is added.

    Attributes:
        path: of the file; beside it lies `<name>.lock`.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    def read(self) -> Content:
        """Return what is there; nothing when there is no file yet. A last line without an end counts as not there.

        Raises:
            OutputError: when it is there and cannot be read.
        """
        try:
            data = self.path.read_bytes()
        except FileNotFoundError:
            return Content()
        except OSError as error:
            raise OutputError(f"{self.path}: cannot be read: {error.strerror or error}") from error
        return parsed(data)

    def add(self, *trials: Trial) -> None:
        """Append trials and wait until they are on disk.

        Raises:
            OutputError: when the file cannot be written.
        """
        if not self.path.parent.is_dir():  # which the lock would make
            raise OutputError(f"{self.path}: the folder {self.path.parent} does not exist", hint="create it first")
        lines = "".join(f"{trial.as_line()}\n" for trial in trials).encode()
        try:
            with FileLock(f"{self.path}.lock"), self.path.open("ab+") as file:
                _remove_torn(file)
                file.write(lines)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise OutputError(f"{self.path}: cannot be written: {error.strerror or error}") from error

    def merge(self, others: Iterable["Records"]) -> int:
        """Append the trials of other files that are not here yet; return how many."""
        return self.merge_trials(trial for other in others for trial in other.read().trials)

    def merge_trials(self, trials: Iterable[Trial]) -> int:
        """Append those that are not here yet; return how many."""
        known = {trial.id for trial in self.read().trials}
        new = [trial for key, trial in {trial.id: trial for trial in trials}.items() if key not in known]
        if new:
            self.add(*new)
        return len(new)


def parsed(data: bytes) -> Content:
    """Return the trials of a file's content, and the lines that are none."""
    trials: list[Trial] = []
    skipped: list[Skipped] = []
    for number, line in _lines(data):
        found = _trial(line)
        if isinstance(found, str):
            skipped.append(Skipped(number, found))
        else:
            trials.append(found)
    return Content(tuple(trials), tuple(skipped))


def _lines(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Lines with their numbers; what stands behind the last end of a line is being written, or was torn."""
    for number, line in enumerate(data.split(b"\n")[:-1], start=1):
        if line.strip():
            yield number, line


def _trial(line: bytes) -> Trial | str:
    """A trial, or why the line is none."""
    try:
        content = json.loads(line)
    except ValueError:
        return "it is no JSON"
    if not isinstance(content, dict):
        return "it is no object"
    schema = content.get("schema")
    if schema != SCHEMA:
        return f"it has schema {schema!r}; this version reads {SCHEMA}"
    try:
        return _from_json(content)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        return f"its fields are not those of a trial ({type(error).__name__}: {error})"


def _from_json(content: Mapping[str, Any]) -> Trial:
    state, seconds = content["state"], content["seconds"]
    if state not in get_args(State):
        raise ValueError(f"state {state!r}")
    if (state == "ok") != (isinstance(seconds, float | int) and not isinstance(seconds, bool) and seconds > 0):
        raise ValueError(f"seconds {seconds!r} of state {state}")
    config: dict[str, Any] = dict(content["config"])
    if not all(isinstance(value, int | float | str) for value in config.values()):
        raise TypeError("config")
    return Trial(
        Key.from_json(content["key"]), config, state, seconds, str(content["reason"]), content["when"], content["id"]
    )


def _remove_torn(file: BinaryIO) -> None:
    """Cut a last line that has no end, whose writer died; the lock says that nobody is writing it."""
    size = file.seek(0, os.SEEK_END)
    kept = size
    while kept > 0:
        start = max(0, kept - 4096)
        file.seek(start)
        end = file.read(kept - start).rfind(b"\n")
        kept = start if end < 0 else start + end + 1
        if end >= 0:
            break
    if kept < size:
        file.truncate(kept)
