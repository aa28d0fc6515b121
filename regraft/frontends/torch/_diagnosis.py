"""From the exceptions that tracing raises to one line: what in the model is at fault, and what to try next."""

import linecache
import re
import traceback
from pathlib import Path
from typing import Final

import torch

_OWN: Final = (str(Path(torch.__file__).parent), str(Path(__file__).parent))
_USER_CODE: Final = re.compile(r'File "([^"]+)", line (\d+), in ')
_BRANCH: Final = re.compile(r"data-dependent|Data-dependent|non-static size")
_OPERATOR: Final = re.compile(r"unsupported operator: (\S+)|^([\w]+\.[\w.]+)$", re.MULTILINE)
_RETURNED: Final = re.compile(
    r"Found <class '(?P<class>[^']+)'> in output|type UserDefinedObjectVariable\((?P<name>\w+)\) at output"
)
_BY_HAND: Final = "trace it by hand with torch.export.export and pass the ExportedProgram"


def diagnose(error: Exception) -> tuple[str, str]:
    """Return why tracing failed, as a phrase, and a hint.

    Args:
        error: what torch.export raised.
    """
    text = str(error)
    for read in (_data_dependence, _unknown_operator, _unknown_output, _numpy):
        found = read(error, text)
        if found is not None:
            return found
    return f"{_first_line(error)}{_at(error)}", _BY_HAND


def _data_dependence(error: Exception, text: str) -> tuple[str, str] | None:
    if not _BRANCH.search(text):
        return None
    hint = "write the branch with torch.where or torch.cond, or capture a module that leaves it out"
    return f"its control flow depends on the data{_at(error)}", hint


def _unknown_operator(error: Exception, text: str) -> tuple[str, str] | None:
    found = _OPERATOR.search(text)
    if found is None or "fake tensor" not in f"{type(error).__module__} {text}".replace("_", " "):
        return None
    name = found[1] or found[2]
    qualified = "::".join(name.split(".")[:2])
    return (
        f"operator {name} does not say what type its result has",
        f"register that with torch.library.register_fake({qualified!r})",
    )


def _unknown_output(error: Exception, text: str) -> tuple[str, str] | None:
    found = _RETURNED.search(text)
    if found is None:
        return None
    kind = (found["class"] or found["name"]).rpartition(".")[2]
    hint = "return tensors and containers of them; for a key-value cache set use_cache=False"
    return f"it returns a {kind}, which is no container of tensors", hint


def _numpy(error: Exception, text: str) -> tuple[str, str] | None:
    if ".numpy()" not in text:
        return None
    return f"it leaves torch for numpy{_at(error)}", "use the torch function of the same meaning"


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _at(error: Exception) -> str:
    """The line of the user's code at which tracing stopped, " at model.py:8 (`if x.sum() > 0:`)", or ""."""
    stopped = [(frame.filename, frame.lineno or 0) for frame in traceback.extract_tb(error.__traceback__)]
    stopped += [(found[1], int(found[2])) for found in _USER_CODE.finditer(str(error))]
    theirs = [(name, line) for name, line in stopped if not name.startswith((*_OWN, "<"))]
    if not theirs:
        return ""
    name, line = theirs[-1]
    source = linecache.getline(name, line).strip()
    return f" at {Path(name).name}:{line}" + (f" (`{source}`)" if source else "")
