"""One line of a text being read, with errors that say where and what."""

import re
from typing import Final

from regraft.errors import SnapshotError
from regraft.graph.escape import escape, unescape

_SPACES: Final = re.compile(" *")
_QUOTED: Final = re.compile(r'"((?:[^"\\]|\\.)*)"')


class Line:
    """One line and how far it has been read."""

    def __init__(self, text: str, number: int) -> None:
        self.number = number
        self._text, self._at = text, 0

    def error(self, needed: str) -> SnapshotError:
        """Return the error that `needed` does not stand here."""
        rest = self._text[self._at : self._at + 30]
        found = f"found {escape(rest)!s}" if rest else "found the end of the line"
        return SnapshotError(f"line {self.number}, column {self._at + 1}: {found}; {needed} is needed")

    def starts_with(self, literal: str) -> bool:
        """Whether that text comes next, spaces aside."""
        self._skip()
        return self._text.startswith(literal, self._at)

    def take(self, literal: str) -> bool:
        """Read that text if it comes next."""
        found = self.starts_with(literal)
        self._at += len(literal) if found else 0
        return found

    def expect(self, literal: str) -> None:
        """Read that text, which must come next."""
        if not self.take(literal):
            raise self.error(literal)

    def match(self, pattern: re.Pattern[str]) -> str | None:
        """Read what matches the pattern; None (and nothing read) when nothing does."""
        self._skip()
        return self.match_here(pattern)

    def match_here(self, pattern: re.Pattern[str]) -> str | None:
        """As `match`, without leaving out spaces."""
        found = pattern.match(self._text, self._at)
        if found is None:
            return None
        self._at = found.end()
        return found.group()

    def quoted(self) -> str | None:
        """Read a quoted text; None when none comes next."""
        if not self.starts_with('"'):
            return None
        return self.quoted_here()

    def quoted_here(self) -> str:
        """Read a quoted text that must begin here."""
        begin = self._at
        literal = self.match_here(_QUOTED)
        if literal is None:
            raise self.error("a text between double quotes")
        try:
            return unescape(literal[1:-1])
        except ValueError as error:
            self._at = begin
            raise self.error(f"a text with valid escapes ({escape(str(error))})") from error

    def end(self) -> None:
        """Nothing more may come."""
        self._skip()
        if self._at < len(self._text):
            raise self.error("the end of the line")

    def _skip(self) -> None:
        found = _SPACES.match(self._text, self._at)
        assert found is not None, "no space at all matches, too"
        self._at = found.end()
