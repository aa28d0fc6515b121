"""A child process that answers lines of JSON with lines of JSON; it may die or hang, and its parent does not."""

import json
import subprocess
import tempfile
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from queue import Empty, Queue
from typing import IO, Any


class ChildError(Exception):
    """The child gave no answer; the text says how it ended, as a phrase."""


class ChildTimeoutError(ChildError):
    """The child took too long and was ended."""


class Child:
    """One process; for one request at a time.

    Attributes:
        command: that started it.
    """

    def __init__(self, command: Sequence[str]) -> None:
        self.command = tuple(command)
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - as long as the process
        self._process = subprocess.Popen(  # noqa: S603 - our own module, by our own interpreter
            self.command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            encoding="utf-8",
        )
        self._lines: Queue[str] = Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether it has not ended."""
        return self._process.poll() is None

    def ask(self, request: Mapping[str, Any], timeout_s: float) -> dict[str, Any]:
        """Return the answer to a request; errors as of `receive`.

        Interrupted while it waits, it ends the process: its answer would be taken for that to the next request.
        """
        assert self._process.stdin is not None, "it is a pipe"
        with suppress(BrokenPipeError):  # where it has ended: the reader puts the end of its lines, which says so
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        try:
            return self.receive(timeout_s)
        except KeyboardInterrupt:
            self.stop()
            raise

    def receive(self, timeout_s: float) -> dict[str, Any]:
        """Return its next answer.

        Raises:
            ChildTimeoutError: when there is none in time; the process is ended.
            ChildError: when it has ended.
        """
        try:
            line = self._lines.get(timeout=timeout_s)
        except Empty:
            self.stop()
            raise ChildTimeoutError(f"gave no answer in {timeout_s:g} s; its process was ended") from None
        if line:
            answer: dict[str, Any] = json.loads(line)
            return answer
        ended = self._ended()
        self.stop()
        raise ChildError(f"its process ended without an answer, {ended}")

    def stop(self) -> None:
        """End it, if it has not ended."""
        self._process.kill()
        self._process.wait()
        self._reader.join()
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            if stream is not None:
                with suppress(BrokenPipeError):  # what was not written yet has no reader any more
                    stream.close()

    def _ended(self) -> str:
        code = self._process.wait()
        self._errors.seek(0)
        said = [line for line in self._errors.read().decode("utf-8", "replace").splitlines() if line.strip()]
        last = f": {said[-1].strip()[:300]}" if said and code > 0 else ""
        return (f"by signal {-code}" if code < 0 else f"with code {code}") + last

    def _read(self) -> None:
        assert self._process.stdout is not None, "it is a pipe"
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put("")
