"""A measurement by name, so that another process can make it, and one that crashes or hangs costs one trial alone."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from types import TracebackType
from typing import Any, Final

from regraft._child import Child, ChildError, ChildTimeoutError
from regraft.errors import InputError
from regraft.tune._search import Measure, Measured
from regraft.tune._space import Config

_MODULE: Final = "regraft.tune._task_main"
_START_S: Final = 120.0
"""For the imports of the process, and for what a task prepares."""


@dataclass(frozen=True)
class Task:
    """What makes a measurement.

    Attributes:
        maker: "module:function", which takes the arguments and returns a `Measure`.
        arguments: by name, of what JSON has.
    """

    maker: str
    arguments: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def make(self) -> Measure:
        """Return the measurement, made in this process.

        Raises:
            InputError: when there is no such function.
        """
        module, _, name = self.maker.partition(":")
        try:
            maker = getattr(import_module(module), name)
        except (ImportError, AttributeError, ValueError) as error:
            raise InputError(f"tune: no function {self.maker!r}: {error}") from error
        measure: Measure = maker(**self.arguments)
        return measure


class Isolated:
    """A `Measure` that runs in a process of its own, replaced when it crashes or takes too long.

    Attributes:
        task: what is measured.
        timeout_s: for one trial.
    """

    def __init__(self, task: Task, timeout_s: float = 60.0) -> None:
        self.task = task
        self.timeout_s = timeout_s
        self._child: Child | None = None

    def __call__(self, config: Config) -> Measured:
        """Try a config."""
        try:
            child = self._started()
            answer = child.ask({"config": dict(config)}, self.timeout_s)
        except ChildTimeoutError:
            self._child = None
            return Measured("timeout", None, f"took longer than {self.timeout_s:g} s")
        except ChildError as error:
            self._child = None
            return Measured("failed", None, str(error))
        return Measured(answer["state"], answer["seconds"], answer["reason"])

    def close(self) -> None:
        """End the process, if there is one."""
        if self._child is not None:
            self._child.stop()
            self._child = None

    def __enter__(self) -> "Isolated":
        """Return itself; the process ends with the block."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the process."""
        self.close()

    def _started(self) -> Child:
        if self._child is None or not self._child.alive:
            self.close()
            self._child = Child((sys.executable, "-m", _MODULE))
            said = self._child.ask({"maker": self.task.maker, "arguments": dict(self.task.arguments)}, _START_S)
            if said["error"]:
                self.close()
                raise ChildError(said["error"])
        return self._child
