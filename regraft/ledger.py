"""The ledger: what every pass did, refused and rolled back, site by site, with the numbers that were measured.

Passes write it, diffs and reports read it. It prints as one line a site and converts to plain data and back.
"""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, cast

from regraft.graph.escape import escape
from regraft.graph.sizes import sizes_text

Status = Literal["rewritten", "kept", "rolled back"]


@dataclass(frozen=True, slots=True)
class Call:
    """One more place where a rewritten layer stands; it shares the new weights.

    Attributes:
        output: key of the value that the new node computes.
        removed: keys of the nodes that the rewrite covered.
    """

    output: str
    removed: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Entry:
    """What became of one site under one pass.

    Attributes:
        pass_name: name of the pass ("low-rank").
        site: the layer's name in the user's model.
        status: rewritten; kept (the pass refused it); rolled back (it was rewritten and did not hold).
        before: what stood there ("1536x384").
        after: what stands there now or would ("rank 122").
        reason: why it was kept or rolled back; "" when rewritten.
        announced_error: relative error that the pass announced for the layer's output (0 for exact passes).
        measured_error: the same, measured on the rewritten graph.
        checked_on: inputs of that measurement.
        bytes_before: parameter bytes of the site before; None when unknown.
        bytes_after: parameter bytes after.
        op: name of the op that was inserted ("lowrank_linear").
        removed: keys of the nodes that the rewrite covered.
        output: key of the value that the new node computes; the same before and after.
        other_calls: the calls of the layer after the first one, whose nodes and output are the two above.
        pass_place: number of the pass in `Ledger.passes`, from 0; None when it is not known.
        seconds_before: time of the site alone, median, where it was measured (`Budget.min_speedup`); None in a ledger
            that was read from a model's file.
        seconds_after: the same of what stands there now, or would, measured in turn with it.
    """

    pass_name: str
    site: str
    status: Status
    before: str = ""
    after: str = ""
    reason: str = ""
    announced_error: float | None = None
    measured_error: float | None = None
    checked_on: Literal["calibration", "random", ""] = ""
    bytes_before: int | None = None
    bytes_after: int | None = None
    op: str = ""
    removed: tuple[str, ...] = ()
    output: str = ""
    other_calls: tuple[Call, ...] = ()
    pass_place: int | None = None
    seconds_before: float | None = None
    seconds_after: float | None = None


@dataclass(frozen=True, slots=True)
class PassRecord:
    """What one pass did to the whole model.

    Attributes:
        name: name of the pass.
        spelling: the pass with its options, as the command line spells it.
        seconds: wall time of the pass, checks included; None in a ledger that was read from a model's file, whose bytes
            must not depend on the clock.
        model_error: relative error of the model's outputs against the original model's, after this pass; None when
            there was nothing to run the model on.
        notes: one-line remarks (a budget that cost sites, a pass taken back).
    """

    name: str
    spelling: str
    seconds: float | None
    model_error: float | None = None
    notes: tuple[str, ...] = ()


@dataclass(slots=True)
class Ledger:
    """Records of passes and entries of sites, in the order in which they happened.

    Attributes:
        passes: one record a pass.
        entries: one entry a site and pass.
        notes: remarks on how the model was read (a fallback of the capture, functions that were inlined).
    """

    passes: list[PassRecord] = field(default_factory=list[PassRecord])
    entries: list[Entry] = field(default_factory=list[Entry])
    notes: list[str] = field(default_factory=list[str])

    def __iter__(self) -> Iterator[Entry]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def with_status(self, status: Status) -> list[Entry]:
        """Return the entries of that status."""
        return [entry for entry in self.entries if entry.status == status]

    @property
    def rewritten(self) -> list[Entry]:
        """Entries of sites that were rewritten and still are."""
        return self.with_status("rewritten")

    @property
    def kept(self) -> list[Entry]:
        """Entries of sites that a pass refused."""
        return self.with_status("kept")

    @property
    def rolled_back(self) -> list[Entry]:
        """Entries of sites that were rewritten and taken back."""
        return self.with_status("rolled back")

    @property
    def model_error(self) -> float | None:
        """Relative output error of the final model, where it was measured."""
        measured = [record.model_error for record in self.passes if record.model_error is not None]
        return measured[-1] if measured else None

    def without_times(self) -> "Ledger":
        """Return the ledger with what the same run would give again."""
        entries = [replace(entry, seconds_before=None, seconds_after=None) for entry in self.entries]
        return Ledger([replace(record, seconds=None) for record in self.passes], entries)

    def without_keys(self) -> "Ledger":
        """Return the ledger for a graph of other keys, as an export to another graph language has: sites stay named."""
        entries = [replace(entry, output="", removed=(), other_calls=_keyless(entry)) for entry in self.entries]
        return Ledger(list(self.passes), entries, list(self.notes))

    def followed_by(self, later: "Ledger") -> "Ledger":
        """Return the ledger of both runs, this one first."""
        shift = len(self.passes)
        moved = [
            entry if entry.pass_place is None else replace(entry, pass_place=entry.pass_place + shift)
            for entry in later.entries
        ]
        return Ledger([*self.passes, *later.passes], [*self.entries, *moved], [*self.notes, *later.notes])

    def to_dict(self) -> dict[str, Any]:
        """Return plain data (JSON types); an error that is not finite, which JSON lacks, as text ("inf")."""
        return {
            "passes": [_plain(asdict(record)) for record in self.passes],
            "entries": [_plain(asdict(entry)) for entry in self.entries],
            "notes": list(self.notes),
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "Ledger":
        """Return the ledger that `to_dict` described."""
        return cls(
            passes=[_record_from(record) for record in data["passes"]],
            entries=[_entry_from(entry) for entry in data["entries"]],
            notes=[str(note) for note in data.get("notes", [])],
        )

    def __str__(self) -> str:
        notes = [f"note: {escape(note)}" for note in self.notes]
        return "\n".join([*notes, *_entry_lines(self.entries), *pass_lines(self)])


def _keyless(entry: Entry) -> tuple[Call, ...]:
    return (Call("", ()),) * len(entry.other_calls)


def _plain(data: dict[str, Any]) -> dict[str, Any]:
    return {name: _plain_value(value) for name, value in data.items()}


def _plain_value(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain_value(item) for item in cast(tuple[Any, ...], value)]
    if isinstance(value, dict):
        return _plain(cast(dict[str, Any], value))
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _record_from(data: dict[str, Any]) -> PassRecord:
    fields = {**data, "notes": tuple(data["notes"]), "model_error": _number(data["model_error"])}
    return PassRecord(**cast(Any, fields))


def _entry_from(data: dict[str, Any]) -> Entry:
    errors = {name: _number(data[name]) for name in ("announced_error", "measured_error")}
    others = tuple(Call(call["output"], tuple(call["removed"])) for call in data.get("other_calls", []))
    return Entry(**cast(Any, {**data, **errors, "removed": tuple(data["removed"]), "other_calls": others}))


def _number(value: Any) -> float | None:
    return None if value is None else float(value)


def entry_cells(entry: Entry) -> tuple[str, str, str, str, str]:
    """Return the cells of an entry's line: pass, site, what became of it, error, bytes; texts are escaped."""
    name, site = escape(entry.pass_name), escape(entry.site)
    if entry.status != "rewritten":
        return name, site, f"{entry.status}: {escape(entry.reason)}", "", ""
    error = "" if entry.measured_error is None else f"error {entry.measured_error:.2g}"
    size = ""
    if entry.bytes_before is not None and entry.bytes_after is not None:
        size = sizes_text(entry.bytes_before, entry.bytes_after)
    if entry.seconds_before is not None and entry.seconds_after is not None:
        size = f"{size}  {1e3 * entry.seconds_before:.3g} -> {1e3 * entry.seconds_after:.3g} ms".lstrip()
    return name, site, f"{escape(entry.before)} -> {escape(entry.after)}", error, size


def _entry_lines(entries: list[Entry]) -> list[str]:
    rows = [entry_cells(entry) for entry in entries]
    aligned = [row for row in rows if row[3] or row[4]] or rows
    first = max((len(row[0]) for row in rows), default=0)
    second = max((len(row[1]) for row in rows), default=0)
    third = max((len(row[2]) for row in aligned), default=0)
    fourth = max((len(row[3]) for row in aligned), default=0)
    return [
        f"{row[0]:<{first}}  {row[1]:<{second}}  {row[2]:<{third}}  {row[3]:<{fourth}}  {row[4]}".rstrip()
        for row in rows
    ]


def pass_lines(ledger: Ledger) -> list[str]:
    """Return the lines of the passes: what each did in total, how long it took, and its notes; texts are escaped."""
    lines: list[str] = []
    for place, record in enumerate(ledger.passes):
        mine = [entry.status for entry in ledger.entries if _belongs(entry, place, record)]
        counts = ", ".join(
            f"{mine.count(status)} {status}" for status in ("rewritten", "kept", "rolled back") if status in mine
        )
        error = "" if record.model_error is None else f"; model output error {record.model_error:.2g}"
        time = "" if record.seconds is None else f" in {record.seconds:.1f} s"
        lines.append(f"{escape(record.spelling)}: {counts or 'nothing to do'}{time}{error}")
        lines.extend(f"{escape(record.name)}: {escape(note)}" for note in record.notes)
    return lines


def _belongs(entry: Entry, place: int, record: PassRecord) -> bool:
    return entry.pass_name == record.name and entry.pass_place in (None, place)
