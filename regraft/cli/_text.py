"""Text for a terminal: names from models are escaped, rows are aligned."""

from collections.abc import Sequence


def printable(text: str) -> str:
    """Return the text with every character escaped that could move the cursor, hide or reorder what is shown.

    Unlike `regraft.graph.escape`, which names pass through once, this leaves backslashes alone: it may see a line whose
    names are escaped already.
    """
    return text if text.isprintable() else "".join(map(_shown, text))


def one_line(text: str) -> str:
    """Return the text as one printable line; runs of white space become single spaces."""
    return printable(" ".join(text.split()))


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return a line a row, with columns padded to their widest cell."""
    safe = [[printable(cell) for cell in row] for row in rows]
    count = max((len(row) for row in safe), default=0)
    widths = [max(len(row[place]) for row in safe if place < len(row)) for place in range(count)]
    return ["  ".join(f"{cell:<{widths[place]}}" for place, cell in enumerate(row)).rstrip() for row in safe]


def size_text(size: int) -> str:
    """Return a size in bytes as text with a fitting unit (decimal: 1 MB is a million bytes)."""
    if size < 10_000:
        return f"{size} bytes"
    return f"{size / 1e3:.1f} kB" if size < 1_000_000 else f"{size / 1e6:.2f} MB"


def _shown(letter: str) -> str:
    return letter if letter.isprintable() else letter.encode("unicode_escape").decode("ascii")
