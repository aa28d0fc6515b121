"""This end of TileLang's process: started when it is first needed, one request at a time, replaced when it fails."""

import atexit
import json
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from contextlib import suppress
from functools import lru_cache
from queue import Empty, Queue
from typing import IO, Any, Final

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
        self._process: _Process | None = None

    @property
    def pid(self) -> int | None:
        """Of the process, or None while there is none."""
        return None if self._process is None else self._process.pid

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
            if self._process is None or not self._process.alive:
                self._stop()
                self._process = _Process(self.command)
                self._receive()  # says its version when it has imported all
            self._process.send(request)
            answer = self._receive()
        if "error" in answer:
            raise BackendError(f"tilelang: {answer['error']}")
        return answer

    def close(self) -> None:
        """End the process, if there is one."""
        with self._lock:
            self._stop()

    def _receive(self) -> dict[str, Any]:
        assert self._process is not None, "a request starts one"
        try:
            line = self._process.lines.get(timeout=self.timeout_s)
        except Empty:
            self._stop()
            raise BackendError(f"tilelang: gave no answer in {self.timeout_s:g} s; its process was ended") from None
        if line:
            answer: dict[str, Any] = json.loads(line)
            return answer
        ended = self._process.ended()
        self._stop()
        raise BackendError(f"tilelang: its process ended without an answer, {ended}")

    def _stop(self) -> None:
        if self._process is not None:
            self._process.stop()
            self._process = None


class _Process:
    """The child, its pipes, and a thread that waits for its lines, so that waiting can end."""

    def __init__(self, command: tuple[str, ...]) -> None:
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - as long as the process
        self._child = subprocess.Popen(  # noqa: S603 - our own module, by our own interpreter
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True, encoding="utf-8"
        )
        self.lines: Queue[str] = Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        return self._child.pid

    @property
    def alive(self) -> bool:
        return self._child.poll() is None

    def send(self, request: Mapping[str, Any]) -> None:
        assert self._child.stdin is not None, "it is a pipe"
        with suppress(BrokenPipeError):  # where it has ended: the reader puts the end of its lines, which says so
            self._child.stdin.write(json.dumps(request) + "\n")
            self._child.stdin.flush()

    def ended(self) -> str:
        """How it ended, as a phrase."""
        code = self._child.wait()
        self._errors.seek(0)
        said = [line for line in self._errors.read().decode("utf-8", "replace").splitlines() if line.strip()]
        last = f": {said[-1].strip()[:300]}" if said and code > 0 else ""
        return (f"by signal {-code}" if code < 0 else f"with code {code}") + last

    def stop(self) -> None:
        self._child.kill()
        self._child.wait()
        self._reader.join()
        for stream in (self._child.stdin, self._child.stdout, self._errors):
            if stream is not None:
                _close(stream)

    def _read(self) -> None:
        assert self._child.stdout is not None, "it is a pipe"
        for line in self._child.stdout:
            self.lines.put(line)
        self.lines.put("")


def _close(stream: IO[Any]) -> None:
    with suppress(BrokenPipeError):  # what was not written yet has no reader any more
        stream.close()


@lru_cache(maxsize=1)
def shared_worker() -> Worker:
    """Return the worker of this process, ended when the program ends."""
    worker = Worker()
    atexit.register(worker.close)
    return worker
