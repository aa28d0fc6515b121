"""Sums of monomials over the dynamic dims, as small dicts: sympy at the edges, integer arithmetic inside loops."""

import math
from collections.abc import Iterable, Mapping
from fractions import Fraction
from functools import lru_cache
from typing import Final, cast

import sympy

from regraft.graph.symbols import bind, numel
from regraft.graph.types import TensorType, dtype_bits

Terms = Mapping[sympy.Expr, int | Fraction]
"""Coefficient by monomial; the monomial of a constant is 1. No coefficient is 0."""

NOTHING: Final[Terms] = {}
ONE: Final[sympy.Expr] = sympy.Integer(1)
_MAX_TERMS: Final = 256


def terms_of(expr: sympy.Expr) -> Terms:
    """Return an expression multiplied out; one that would get too many terms stays one monomial."""
    if expr.is_Integer:
        return {ONE: int(cast(sympy.Integer, expr))} if expr else NOTHING
    if _count(expr) > _MAX_TERMS:  # dims come from files: (a + b + c)*(a + b + c)*... must not take forever
        return {expr: 1}
    coefficients = sympy.expand(expr).as_coefficients_dict()
    return {monomial: _number(found) for monomial, found in coefficients.items() if found}


def expression(terms: Terms) -> sympy.Expr:
    """Return the sum as an expression."""
    summands = [sympy.Rational(found.numerator, found.denominator) * monomial for monomial, found in terms.items()]
    return sympy.Add(*summands)


def size_of(type_: TensorType) -> Terms | None:
    """Return the bytes of a value, rounded up where elements are smaller than a byte; None when its rank is unknown."""
    if type_.shape is None:
        return None
    bits = dtype_bits(type_.dtype)
    extents = [dim for dim in type_.shape if isinstance(dim, int)]
    if any(extent < 0 for extent in extents):
        return None
    if len(extents) == len(type_.shape):
        size = -(-math.prod(extents) * bits // 8)
        return {ONE: size} if size else NOTHING
    factor = Fraction(math.prod(extents) * bits, 8)
    symbolic = tuple(dim for dim in type_.shape if isinstance(dim, str))
    if factor.denominator == 1:
        return scaled(_elements(symbolic), int(factor))
    return terms_of(sympy.ceiling(numel(symbolic) * sympy.Rational(factor.numerator, factor.denominator)))


@lru_cache(maxsize=4096)
def _elements(symbolic: tuple[str, ...]) -> Terms:
    return terms_of(numel(symbolic))


def scaled(terms: Terms, factor: int) -> Terms:
    """Return the sum times a number."""
    return {monomial: found * factor for monomial, found in terms.items()} if factor else NOTHING


def accumulate(total: dict[sympy.Expr, int | Fraction], terms: Terms, sign: int = 1) -> None:
    """Add terms to a sum in place, or take them off."""
    for monomial, found in terms.items():
        value = total.get(monomial, 0) + sign * found
        if value:
            total[monomial] = value
        else:
            del total[monomial]


def symbols_of(sums: Iterable[Terms]) -> tuple[str, ...]:
    """Return the names of all dims that occur, sorted."""
    monomials = {monomial for terms in sums for monomial in terms}
    return tuple(sorted({str(symbol) for monomial in monomials for symbol in monomial.free_symbols}))


def evaluate(sums: Iterable[Terms], dims: Mapping[str, int]) -> list[int]:
    """Return every sum for given extents, rounded up.

    Raises:
        ShapeError: when a dim has no extent.
    """
    known: dict[sympy.Expr, int] = {ONE: 1}
    results: list[int] = []
    for terms in sums:
        total: int | Fraction = 0
        for monomial, found in terms.items():
            if monomial not in known:
                known[monomial] = bind(monomial, dims)
            total += found * known[monomial]
        results.append(math.ceil(total))
    return results


def maximal(points: Iterable[tuple[str, Terms]]) -> list[tuple[str, Terms]]:
    """Return the points that no other one exceeds in every term, in order; of equal ones the first.

    A term may only be compared where its monomial cannot be negative; otherwise its coefficients must be equal.
    """
    signs: dict[sympy.Expr, bool] = {}
    kept: list[tuple[str, Terms]] = []
    for key, terms in points:
        for monomial in terms:
            if monomial not in signs:
                signs[monomial] = monomial.is_nonnegative is True
        if not any(_covers(other, terms, signs) for _, other in kept):
            kept = [point for point in kept if not _covers(terms, point[1], signs)]
            kept.append((key, terms))
    return kept


def _covers(large: Terms, small: Terms, signs: Mapping[sympy.Expr, bool]) -> bool:
    for monomial in large.keys() | small.keys():
        difference = large.get(monomial, 0) - small.get(monomial, 0)
        if difference < 0 or (difference > 0 and not signs[monomial]):
            return False
    return True


def _number(found: sympy.Expr) -> int | Fraction:
    numerator, denominator = cast(sympy.Expr, sympy.Rational(found)).as_numer_denom()
    exact = Fraction(int(numerator), int(denominator))
    return exact.numerator if exact.denominator == 1 else exact


def _count(expr: sympy.Expr) -> int:
    """An upper bound of the number of terms of the expression multiplied out."""
    if expr.is_Add:
        return sum(_count(cast(sympy.Expr, part)) for part in expr.args)
    if expr.is_Mul:
        return math.prod(min(_count(cast(sympy.Expr, part)), _MAX_TERMS + 1) for part in expr.args)
    if expr.is_Pow and expr.args[1].is_Integer:
        base, power = _count(cast(sympy.Expr, expr.args[0])), abs(int(cast(sympy.Integer, expr.args[1])))
        return 1 if base == 1 else min(base, _MAX_TERMS + 1) ** min(power, 16)
    return 1
