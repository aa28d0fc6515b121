r"""Names from a model, made safe to show: what could move a cursor, reorder or hide text becomes an escape.

Escapes are those of Python strings (`\n`, `\x1b`, `\u202e`), so that a shown name can be read back.
"""

import re
from typing import Final

_SHORT: Final = {"\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"}
_LONG: Final = {escape[1]: character for character, escape in _SHORT.items()} | {'"': '"'}
_ESCAPE: Final = re.compile(r"\\(?:([\\\"nrt])|x([0-9a-f]{2})|u([0-9a-f]{4})|U([0-9a-f]{8})|)")


def escape(text: str) -> str:
    """Return the text on one line, with backslashes and everything that is not printable as escapes.

    Not printable are control and format characters (ANSI escapes, bidi marks, zero-width ones), lone surrogates,
    unassigned characters, and every separator but the plain space. Two different texts never look the same.
    """
    if text.isprintable() and "\\" not in text:
        return text
    return "".join(_escaped(character) for character in text)


def quote(text: str) -> str:
    """Return the text escaped and between double quotes."""
    return '"' + escape(text).replace('"', '\\"') + '"'


def unescape(text: str) -> str:
    """Return the text that `escape` or the inside of `quote` stands for.

    Raises:
        ValueError: that names the escape that does not exist.
    """
    return _ESCAPE.sub(_meant, text)


def _escaped(character: str) -> str:
    if character in _SHORT:
        return _SHORT[character]
    if character.isprintable():
        return character
    code = ord(character)
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _meant(found: re.Match[str]) -> str:
    short, *codes = found.groups()
    if short is not None:
        return _LONG[short]
    code = next((code for code in codes if code is not None), None)
    if code is None or int(code, 16) > 0x10FFFF:
        raise ValueError(f"no such escape: {found.string[found.start() : found.start() + 4]}")
    return chr(int(code, 16))
