"""The difference of two programs: prints as text, converts to plain data and back, writes files."""

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from regraft._files import write_atomic
from regraft.diff import _json
from regraft.diff._text import diff_lines
from regraft.diff._types import Change, ConstantChange, PortChange, Summary
from regraft.errors import OptionError, SnapshotError

FORMAT: Final = "regraft.diff"
VERSION: Final = 1


@dataclass(frozen=True, slots=True)
class GraphDiff:
    """What changed between two programs.

    Attributes:
        changes: places that differ, in the order of the second program.
        constants_added: constants that only the second program has.
        constants_removed: constants that only the first one has.
        ports: inputs and outputs that differ.
        summary: both sides as a whole.
    """

    changes: tuple[Change, ...]
    constants_added: tuple[ConstantChange, ...]
    constants_removed: tuple[ConstantChange, ...]
    ports: tuple[PortChange, ...]
    summary: Summary

    def __bool__(self) -> bool:
        return bool(self.changes or self.constants_added or self.constants_removed or self.ports)

    def __str__(self) -> str:
        return "\n".join(
            diff_lines(
                self.changes,
                self.constants_added,
                self.constants_removed,
                self.ports,
                self.summary,
            )
        )

    @property
    def unexplained(self) -> tuple[Change, ...]:
        """Changes that no rewrite accounts for."""
        return tuple(change for change in self.changes if not change.causes)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data (JSON types)."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "summary": _json.summary_to(self.summary),
            "changes": [_json.change_to(change) for change in self.changes],
            "constants_added": [_json.constant_to(change) for change in self.constants_added],
            "constants_removed": [_json.constant_to(change) for change in self.constants_removed],
            "ports": [_json.port_to(change) for change in self.ports],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "GraphDiff":
        """Return the diff that `to_dict` described.

        Raises:
            SnapshotError: when the data is no diff, or one of another version.
        """
        if data.get("format") != FORMAT or data.get("version") != VERSION:
            got = f"{data.get('format')!r} version {data.get('version')!r}"
            raise SnapshotError(f"not a diff: format {FORMAT!r} version {VERSION} is needed; got {got}")
        try:
            return cls(
                changes=tuple(_json.change_from(item) for item in data["changes"]),
                constants_added=tuple(_json.constant_from(item) for item in data["constants_added"]),
                constants_removed=tuple(_json.constant_from(item) for item in data["constants_removed"]),
                ports=tuple(_json.port_from(item) for item in data["ports"]),
                summary=_json.summary_from(data["summary"]),
            )
        except (KeyError, TypeError, AttributeError, ValueError) as error:  # all that data of another shape can cause
            raise SnapshotError(f"not a diff: {type(error).__name__}: {error}") from error

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the diff to a file, as its suffix says: .txt as printed, .json as `to_dict` returns.

        Raises:
            OptionError: for another suffix.
            OutputError: when the file cannot be written.
        """
        suffix = Path(path).suffix.lower()
        if suffix not in _WRITERS:
            raise OptionError(f"{path}: a diff is written as {' or '.join(_WRITERS)}; got {suffix or 'no suffix'}")
        write_atomic(path, _WRITERS[suffix](self).encode())


def _as_text(diff: GraphDiff) -> str:
    return f"{diff}\n"


def _as_json(diff: GraphDiff) -> str:
    return json.dumps(diff.to_dict(), indent=1, allow_nan=False) + "\n"


_WRITERS: Final[Mapping[str, Callable[[GraphDiff], str]]] = {".txt": _as_text, ".json": _as_json}
