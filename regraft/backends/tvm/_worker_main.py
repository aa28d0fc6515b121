"""TileLang's own process: reads requests as lines of JSON, lowers or interprets a kernel template, answers in lines.

Started by `_worker.py`; nothing else imports it, because TileLang and TVM cannot share a process.
"""

import json
import os
import sys
import traceback
from collections.abc import Mapping
from importlib import import_module
from importlib.metadata import version
from typing import Any, Final, TextIO

import tilelang
from tilelang.jit.adapter.libgen import LibraryGenerator

from regraft.backends.tvm._interpreter import interpret
from regraft.backends.tvm._wire import from_wire, to_wire
from regraft.backends.tvm.kernels._kernel import Problem, Tiling

_WITHOUT_TMA: Final = {"tl.disable_tma_lower": True, "tl.disable_warp_specialized": True}


class _CapturedError(Exception):
    """Carries the source out of TileLang before it calls the compiler."""


def main(requests: TextIO, answers: TextIO) -> None:
    """Answer each request until there are no more."""
    answers.write(json.dumps({"version": version("tilelang")}) + "\n")
    answers.flush()
    for line in requests:
        answers.write(json.dumps(_answer(json.loads(line))) + "\n")
        answers.flush()


def _answer(request: Mapping[str, Any]) -> dict[str, Any]:
    try:
        function = _program(request)
        if request["do"] == "source":
            return {"source": cuda_source(function, request["arch"], simt=request["simt"])}
        arrays = {name: from_wire(array) for name, array in request["arrays"].items()}
        return {"arrays": {name: to_wire(array) for name, array in interpret(function, arrays).items()}}
    except (
        Exception
    ) as error:  # of a template or of TileLang, of any class: it is the caller's to see, not ours to die of
        return {"error": _one_line(error, request["template"])}


def _program(request: Mapping[str, Any]) -> Any:
    return import_module(request["template"]).template(Problem(**request["problem"]), Tiling(**request["tiling"]))


def cuda_source(function: Any, arch: str, *, simt: bool) -> str:
    """Return the CUDA source of a program, kernels and launches; no GPU and no compiler is needed.

    Args:
        function: a PrimFunc.
        arch: "sm_80" or "sm_90a".
        simt: whether its products run without tensor cores: then tiles have gaps, which TMA cannot write.
    """
    original = LibraryGenerator.compile_lib

    def capture(self: Any, timeout: float | None = None) -> None:
        raise _CapturedError(self.lib_code)

    LibraryGenerator.compile_lib = capture
    configs: dict[str, Any] = {"pass_configs": _WITHOUT_TMA} if simt else {}
    try:
        tilelang.compile(function, target={"kind": "cuda", "arch": arch}, execution_backend="cython", **configs)
    except _CapturedError as captured:
        return str(captured)
    finally:
        LibraryGenerator.compile_lib = original
    raise RuntimeError("TileLang did not hand its source to the compiler")


def _one_line(error: Exception, template: str) -> str:
    """The error's class, text and place in the template, in one line."""
    text = " ".join(str(error).split()) or "without a text"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "tilelang" not in frame.filename]
    place = f" ({os.path.basename(frames[-1].filename)}:{frames[-1].lineno})" if frames else ""  # noqa: PTH119
    return f"{template.rpartition('.')[2]}: {type(error).__name__}: {text[:400]}{place}"


if __name__ == "__main__":
    # What TileLang prints goes to the error stream; the pipe carries answers alone.
    pipe = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    main(sys.stdin, pipe)
