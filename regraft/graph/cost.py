"""What a program costs: bytes of parameters, multiply-adds and peak activation memory, over the dynamic dims.

Everything is counted from types alone. Activation memory follows the order of the nodes, with the rules of
`regraft.graph._liveness`; a value of unknown element type counts as four bytes an element, and one of unknown shape as
nothing, but is listed.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from typing import Final

import sympy

from regraft.errors import ShapeError
from regraft.graph._formulas import FORMULAS, Formula, apply_formula, has_no_products
from regraft.graph._liveness import Step, schedule
from regraft.graph._terms import (
    NOTHING,
    ONE,
    Terms,
    accumulate,
    evaluate,
    expression,
    maximal,
    size_of,
    symbols_of,
    terms_of,
)
from regraft.graph.cost_types import OpCost
from regraft.graph.energy import HOROWITZ_45NM, Energy, EnergyTable, model_energy
from regraft.graph.snapshot import Snapshot, SnapshotNode
from regraft.graph.types import TensorType

__all__ = ["Cost", "CostAt", "Formula", "NodeCost", "constant_bytes", "estimate"]

_NO_FORMULAS: Final[Mapping[str, Formula]] = {}


@dataclass(frozen=True, slots=True)
class NodeCost:
    """Cost at one program point.

    Attributes:
        key: of the node; "" for the start, where only the inputs are there.
        macs: multiply-adds of the node.
        live_bytes: bytes of all activations while it runs, its results and the buffers inside of it included.
        output_bytes: bytes of the buffers that it writes (0 for a view).
    """

    key: str
    macs: int
    live_bytes: int
    output_bytes: int


@dataclass(frozen=True, slots=True)
class CostAt:
    """The cost for given extents.

    Attributes:
        parameter_bytes: bytes of all constants.
        macs: multiply-adds.
        peak_activation_bytes: largest `live_bytes` of any point.
        peak_node: key of the first node that reaches it; "" when that is the start.
        largest_buffer_bytes: bytes of the largest single input, result or transient buffer.
        per_node: the start and then every node, in order.
    """

    parameter_bytes: int
    macs: int
    peak_activation_bytes: int
    peak_node: str
    largest_buffer_bytes: int
    per_node: tuple[NodeCost, ...]


@dataclass(frozen=True, slots=True)
class _Point:
    """A program point with everything that happens there as indices into the table of sums."""

    key: str
    allocated: tuple[int, ...]
    freed: tuple[int, ...]
    macs: int
    transient: int
    inner: int


@dataclass(frozen=True, eq=False)
class Cost:
    """The cost of a program, over its dynamic dims.

    Attributes:
        parameter_bytes: bytes of all constants, each counted once.
        macs: multiply-adds of all products.
        dims: names of the dynamic dims that occur, sorted.
        uncounted: keys of nodes whose multiply-adds are not known (counted as 0): the operation has no formula, or the
            shapes of its operands are not known or do not fit.
        unsized: keys of values whose size is not known (counted as 0 bytes).
    """

    parameter_bytes: int
    macs: sympy.Expr
    dims: tuple[str, ...]
    uncounted: tuple[str, ...]
    unsized: tuple[str, ...]
    _points: tuple[_Point, ...] = field(repr=False)
    _sums: tuple[Terms, ...] = field(repr=False)
    _program: tuple[Snapshot, Mapping[str, Formula]] = field(repr=False)

    @cached_property
    def live_bytes(self) -> tuple[tuple[str, sympy.Expr], ...]:
        """Live activation bytes by node key, in order, without points that another one exceeds term by term."""
        return tuple((key, expression(terms)) for key, terms in maximal(self._live()))

    @cached_property
    def peak_activation(self) -> sympy.Expr:
        """Peak activation bytes: the largest of `live_bytes`, as an expression."""
        found = [live for _, live in self.live_bytes]
        return found[0] if len(found) == 1 else sympy.Max(*found, evaluate=False)

    def peak_activation_bytes(self, dims: Mapping[str, int] | None = None) -> int:
        """Return the largest number of activation bytes that are live at once, for given extents.

        Raises:
            ShapeError: when a dim has no extent, or a negative one.
        """
        return self.at(dims).peak_activation_bytes

    def at(self, dims: Mapping[str, int] | None = None) -> CostAt:
        """Return the cost for given extents of the dynamic dims.

        Raises:
            ShapeError: when a dim has no extent, or a negative one.
        """
        numbers = evaluate(self._sums, self._checked(dims or {}))
        per_node = tuple(_per_node(self._points, numbers))
        peak = max(per_node, key=lambda point: point.live_bytes)
        buffers = [numbers[index] for point in self._points for index in (*point.allocated, point.transient)]
        return CostAt(
            parameter_bytes=self.parameter_bytes,
            macs=sum(point.macs for point in per_node),
            peak_activation_bytes=peak.live_bytes,
            peak_node=peak.key,
            largest_buffer_bytes=max(buffers, default=0),
            per_node=per_node,
        )

    def energy(self, dims: Mapping[str, int] | None = None, table: EnergyTable = HOROWITZ_45NM) -> Energy:
        """Return the modelled energy for given extents: arithmetic and data movement, apart. Nothing is measured.

        Args:
            dims: extents of the inputs' dynamic dims; of others, what is not known is listed as unmodelled.
            table: energies of a technology.

        Raises:
            ShapeError: when a dim of an input has no extent, or a negative one.
        """
        return model_energy(*self._program, dims or {}, table)

    def _checked(self, dims: Mapping[str, int]) -> Mapping[str, int]:
        missing = [name for name in self.dims if name not in dims]
        if missing:
            raise ShapeError(f"the extents of {', '.join(missing)} are needed; got {dict(dims) or 'none'}")
        for name in self.dims:
            if dims[name] < 0:
                raise ShapeError(f"the extent of {name} must be at least 0; got {dims[name]}")
        return dims

    def _live(self) -> Iterator[tuple[str, Terms]]:
        live: dict[sympy.Expr, int | Fraction] = {}
        for point in self._points:
            for index in point.allocated:
                accumulate(live, self._sums[index])
            now = dict(live)
            accumulate(now, self._sums[point.inner])
            yield point.key, now
            for index in point.freed:
                accumulate(live, self._sums[index], -1)


def estimate(snapshot: Snapshot, formulas: Mapping[str, Formula] = _NO_FORMULAS) -> Cost:
    """Return what the program costs; linear in its size.

    Args:
        snapshot: the program.
        formulas: by op name, in addition to (and in front of) those of the canonical operations.
    """
    return _Estimate(snapshot, {**FORMULAS, **formulas}).cost()


def constant_bytes(type_: TensorType) -> int | None:
    """Return the bytes of a constant, or None when its shape is not known."""
    size = size_of(type_)
    if size is None or any(monomial != ONE for monomial in size):
        return None
    return int(size.get(ONE, 0))


class _Estimate:
    """Sums are kept in one table, where equal ones are stored once."""

    def __init__(self, snapshot: Snapshot, formulas: Mapping[str, Formula]) -> None:
        self._snapshot, self._formulas = snapshot, formulas
        self._types = _types(snapshot)
        self._sums: list[Terms] = [NOTHING]
        self._of_type: dict[TensorType, int | None] = {}
        self._of_call: dict[object, tuple[int, int, int] | None] = {}
        self._of_expr: dict[sympy.Expr, int] = {}
        self._uncounted: list[str] = []
        self._unsized: dict[str, None] = {}

    def cost(self) -> Cost:
        parameter_bytes = self._parameter_bytes()
        start, *steps = schedule(self._snapshot)
        points = [self._point(start, (0, 0, 0))]
        for node, step in zip(self._snapshot.nodes, steps, strict=True):
            self._look_at_operands(node)
            points.append(self._point(step, self._call(node)))
        total: dict[sympy.Expr, int | Fraction] = {}
        for point in points:
            accumulate(total, self._sums[point.macs])
        used = {index for point in points for index in (*point.allocated, point.macs, point.transient, point.inner)}
        return Cost(
            parameter_bytes=parameter_bytes,
            macs=expression(total),
            dims=symbols_of(self._sums[index] for index in sorted(used)),
            uncounted=tuple(self._uncounted),
            unsized=tuple(self._unsized),
            _points=tuple(points),
            _sums=tuple(self._sums),
            _program=(self._snapshot, self._formulas),
        )

    def _parameter_bytes(self) -> int:
        total = 0
        for key, type_ in {value.key: value.type for value in self._snapshot.constants}.items():
            size = constant_bytes(type_)
            if size is None:
                self._unsized[key] = None
            else:
                total += size
        return total

    def _point(self, step: Step, call: tuple[int, int, int]) -> _Point:
        return _Point(step.key, self._sizes(step.allocated), self._sizes(step.freed), *call)

    def _sizes(self, keys: Iterable[str]) -> tuple[int, ...]:
        found = [(key, self._size(self._types[key])) for key in keys]
        self._unsized.update({key: None for key, index in found if index is None})
        return tuple(index for _, index in found if index is not None)

    def _size(self, type_: TensorType) -> int | None:
        if type_ not in self._of_type:
            size = size_of(type_)
            self._of_type[type_] = None if size is None else self._add(size)
        return self._of_type[type_]

    def _add(self, terms: Terms) -> int:
        self._sums.append(terms)
        return len(self._sums) - 1

    def _look_at_operands(self, node: SnapshotNode) -> None:
        self._unsized.update({key: None for key in node.inputs if key and key not in self._types})

    def _call(self, node: SnapshotNode) -> tuple[int, int, int]:
        """Indices of multiply-adds, largest buffer and all buffers inside of a node; equal nodes are computed once."""
        formula = self._formulas.get(node.op)
        if formula is None:
            if not has_no_products(node.op):
                self._uncounted.append(node.key)
            return 0, 0, 0
        operands = tuple(None if key == "" else self._types.get(key, TensorType()) for key in node.inputs)
        call = (node.op, node.native, _sorted(node.attributes), operands, tuple(value.type for value in node.outputs))
        if call not in self._of_call:
            cost = apply_formula(formula, node, operands)
            self._of_call[call] = cost and self._indices(cost)
        found = self._of_call[call]
        if found is None:
            self._uncounted.append(node.key)
            return 0, 0, 0
        return found

    def _indices(self, cost: OpCost) -> tuple[int, int, int]:
        transient = self._expr(cost.transient_bytes)
        return self._expr(cost.macs), transient, self._expr(cost.inner_bytes) or transient

    def _expr(self, expr: sympy.Expr) -> int:
        if expr not in self._of_expr:
            terms = terms_of(sympy.sympify(expr))
            self._of_expr[expr] = self._add(terms) if terms else 0
        return self._of_expr[expr]


def _per_node(points: Sequence[_Point], numbers: Sequence[int]) -> Iterator[NodeCost]:
    live = 0
    for point in points:
        written = sum(numbers[index] for index in point.allocated)
        live += written
        yield NodeCost(point.key, numbers[point.macs], live + numbers[point.inner], written)
        live -= sum(numbers[index] for index in point.freed)


def _types(snapshot: Snapshot) -> dict[str, TensorType]:
    values = [*snapshot.inputs, *snapshot.constants, *(value for node in snapshot.nodes for value in node.outputs)]
    return {value.key: value.type for value in values}


def _sorted(attributes: Mapping[str, object]) -> tuple[tuple[str, object], ...]:
    return tuple((name, attributes[name]) for name in sorted(attributes))
