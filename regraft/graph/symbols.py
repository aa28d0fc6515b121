"""Symbolic dims: from the text of a `Dim` to a sympy expression and back to a number."""

import math
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Final

import sympy

from regraft.errors import ShapeError
from regraft.graph.types import Dim

MOST_CHARACTERS: Final = 1000
MOST_NESTING: Final = 50
MOST_DIGITS: Final = 18
"""What a dim's text may need to count as an expression; dims come from files that may be hostile."""


def dim_expr(dim: Dim) -> sympy.Expr:
    """Return the dim as an expression; a name that is not an expression becomes one symbol."""
    return sympy.Integer(dim) if isinstance(dim, int) else _parse(dim)


def numel(shape: Iterable[Dim]) -> sympy.Expr:
    """Return the number of elements of a shape, as an expression."""
    dims = tuple(shape)
    symbolic = _product(tuple(dim for dim in dims if isinstance(dim, str)))
    return symbolic * math.prod(dim for dim in dims if isinstance(dim, int))


def bind(expr: sympy.Expr, dims: Mapping[str, int]) -> int:
    """Return the value of an expression for given extents of its symbols.

    Raises:
        ShapeError: when a symbol has no extent, or the expression no value (a division by zero).
    """
    names = sorted(str(symbol) for symbol in expr.free_symbols)
    missing = [name for name in names if name not in dims]
    if missing:
        raise ShapeError(f"the extents of {', '.join(missing)} are needed; got {dict(dims) or 'none'}")
    value = expr.subs({symbol: dims[str(symbol)] for symbol in expr.free_symbols})
    if not isinstance(value, sympy.Integer):
        raise ShapeError(f"{expr} is no whole number for {dict(dims)}")
    return int(value)


def is_plain_symbol(dim: Dim) -> bool:
    """Whether the dim is a single name, free to take any extent."""
    return isinstance(dim, str) and dim.isidentifier()


@lru_cache(maxsize=4096)
def _product(dims: tuple[str, ...]) -> sympy.Expr:
    """The symbolic dims of a shape multiplied, once for the many shapes that share them."""
    return sympy.Mul(*(_parse(dim) for dim in dims))


@lru_cache(maxsize=4096)
def _parse(text: str) -> sympy.Expr:
    if text.isidentifier():
        return _symbol(text)
    return _expression(text)


def _symbol(name: str) -> sympy.Expr:
    return sympy.Symbol(name, integer=True, positive=True)


def _expression(text: str) -> sympy.Expr:
    parsed = _Parser(text).parse() if len(text) <= MOST_CHARACTERS else None
    return _symbol(text) if parsed is None else parsed


class _Parser:
    """Arithmetic over names and integers. Dims come from files, so nothing of them is ever evaluated as Python."""

    def __init__(self, text: str) -> None:
        self._tokens = _tokenize(text)
        self._at = 0
        self._nesting = 0

    def parse(self) -> sympy.Expr | None:
        """Return the expression, or None when the text is not one."""
        result = self._sum()
        return result if self._at == len(self._tokens) else None

    def _peek(self) -> str:
        return self._tokens[self._at] if self._at < len(self._tokens) else ""

    def _take(self) -> str:
        token = self._peek()
        self._at += 1
        return token

    def _sum(self) -> sympy.Expr | None:
        left = self._product()
        while left is not None and self._peek() in ("+", "-"):
            sign = self._take()
            right = self._product()
            if right is None:
                return None
            left = left + right if sign == "+" else left - right
        return left

    def _product(self) -> sympy.Expr | None:
        left = self._atom()
        while left is not None and self._peek() in ("*", "/", "//"):
            operator = self._take()
            right = self._atom()
            if right is None or (right == 0 and operator != "*"):
                return None
            left = left * right if operator == "*" else sympy.floor(left / right)
        return left

    def _atom(self) -> sympy.Expr | None:
        token = self._take()
        if token in ("-", "("):
            return self._nested(token)
        if token.isascii() and token.isdigit():
            return sympy.Integer(int(token)) if len(token) <= MOST_DIGITS else None
        return _symbol(token) if token.isidentifier() else None

    def _nested(self, token: str) -> sympy.Expr | None:
        self._nesting += 1
        if self._nesting > MOST_NESTING:
            return None
        inner = self._atom() if token == "-" else self._sum()
        self._nesting -= 1
        if inner is None or (token == "(" and self._take() != ")"):
            return None
        return -inner if token == "-" else inner


def _tokenize(text: str) -> list[str]:
    tokens: list[str] = []
    for character in text:
        if character.isspace():
            tokens.append("")
        elif tokens and _continues(tokens[-1], character):
            tokens[-1] += character
        else:
            tokens.append(character)
    return [token for token in tokens if token]


def _continues(token: str, character: str) -> bool:
    if character == "/":
        return token == "/"
    is_word = character.isalnum() or character in "_."
    return is_word and token != "" and (token[-1].isalnum() or token[-1] in "_.")
