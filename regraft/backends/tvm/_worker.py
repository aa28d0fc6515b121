"""This end of TileLang's process: started when it is first needed, one request at a time, replaced when it fails."""

import atexit
import sys
import threading
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final

from regraft._child import Child, ChildError
from regraft.backends.tvm._compat import check_tilelang
from regraft.errors import BackendError

TIMEOUT_S: Final = 300.0
"""For one request, the start of the process included; lowering takes seconds."""

_MODULE: Final = "regraft.backends.tvm._worker_main"


class Worker:
    """TileLang in a process of its own.

    Attributes:
        timeout_s: for one request.
        command: that starts the process.
    """

    def __init__(self, timeout_s: float = TIMEOUT_S, command: tuple[str, ...] = (sys.executable, "-m", _MODULE)):
        self.timeout_s = timeout_s
        self.command = command
        self._lock = threading.Lock()
        self._child: Child | None = None

    @property
    def pid(self) -> int | None:
        """Of the process, or None while there is none."""
        return None if self._child is None else self._child.pid

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Return the answer to a request.

        A process that has died since the last request is replaced first.

        Raises:
            MissingExtraError: when TileLang is not installed as pinned.
            BackendError: when the template fails, or the process dies or takes too long; the next request starts
                another one.
        """
        check_tilelang()
        with self._lock:
            try:
                answer = self._started().ask(request, self.timeout_s)
            except ChildError as error:
                self._child = None
                raise BackendError(f"tilelang: {error}") from None
        if "error" in answer:
            raise BackendError(f"tilelang: {answer['error']}")
        return answer

    def close(self) -> None:
        """End the process, if there is one."""
        with self._lock:
            self._stop()

    def _started(self) -> Child:
        if self._child is None or not self._child.alive:
            self._stop()
            self._child = Child(self.command)
            self._child.receive(self.timeout_s)  # says its version when it has imported all
        return self._child

    def _stop(self) -> None:
        if self._child is not None:
            self._child.stop()
            self._child = None


@lru_cache(maxsize=1)
def shared_worker() -> Worker:
    """Return the worker of this process, ended when the program ends."""
    worker = Worker()
    atexit.register(worker.close)
    return worker
