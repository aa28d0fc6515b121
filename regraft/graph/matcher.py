"""Patterns written as the program that they match, and a matcher that can say why one does not.

    @pattern
    def linear_with_bias(x, w, b):
        return add(matmul(x, constant(w, rank=2)), constant(b))

A parameter matches any value; one that is used twice must match the same value twice. The match of a pattern that fails
carries the reason of the attempt that came furthest, so that "why was this not rewritten?" always has an answer.
"""

import inspect
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from regraft.graph.view import Node, Value

LOOK_THROUGH: Final = frozenset({"identity", "dropout", "clone", "contiguous", "detach", "alias"})
"""Operations that do not change their first operand's content when a model is evaluated."""

COMMUTATIVE: Final = frozenset({"add", "mul"})


@dataclass(frozen=True)
class Anything:
    """Matches any value, or only constants (of some number of dims)."""

    name: str
    is_constant: bool = False
    rank: int | None = None


@dataclass(frozen=True)
class Call:
    """Matches the result of a node of that canonical op."""

    op: str
    operands: "tuple[Pattern, ...]"


Pattern = Anything | Call


def pattern(program: Callable[..., Pattern]) -> Call:
    """Return the pattern that a function of patterns describes; its parameters become the names that a match binds."""
    result = program(*(Anything(name) for name in inspect.signature(program).parameters))
    assert isinstance(result, Call), "a pattern must end in an operation"
    return result


def call(op: str) -> Callable[..., Call]:
    """Return a function that builds the pattern of one operation from the patterns of its operands."""
    return lambda *operands: Call(op, operands)


def constant(parameter: Pattern, rank: int | None = None) -> Pattern:
    """Return a pattern that matches only weights and other constants, with that many dims when `rank` is given."""
    assert isinstance(parameter, Anything), "constant() takes a parameter of the pattern"
    return Anything(parameter.name, is_constant=True, rank=rank)


@dataclass(frozen=True)
class Match:
    """A place where a pattern holds.

    Attributes:
        bindings: values by parameter name.
        nodes: matched nodes and those looked through, root first.
    """

    bindings: Mapping[str, Value]
    nodes: tuple[Node, ...]


@dataclass(frozen=True)
class Mismatch:
    """The attempt that came furthest.

    Attributes:
        reason: what was found and what the pattern needs, as a phrase.
        depth: number of nodes that had matched by then.
    """

    reason: str
    depth: int = 0


def match(what: Call, root: Node, look_through: Collection[str] = LOOK_THROUGH) -> Match | Mismatch:
    """Try a pattern with its last operation at `root`."""
    attempt = _Attempt(look_through)
    outcome = next(attempt.node(what, root, _State()), None)
    if outcome is not None:
        return Match(outcome.bindings, outcome.nodes)
    return Mismatch(attempt.reason, attempt.depth)


def source(value: Value, look_through: Collection[str] = LOOK_THROUGH) -> tuple[Value, tuple[Node, ...]]:
    """Follow a value back through operations that do not change it; return where it comes from and the nodes passed."""
    passed: list[Node] = []
    while value.producer is not None and value.producer.op in look_through and value.producer.inputs:
        operand = value.producer.inputs[0]
        if operand is None or value is not value.producer.outputs[0]:  # the mask of a dropout is no copy of its input
            break
        passed.append(value.producer)
        value = operand
    return value, tuple(passed)


@dataclass(frozen=True)
class _State:
    bindings: Mapping[str, Value] = field(default_factory=dict[str, Value])
    nodes: tuple[Node, ...] = ()


@dataclass
class _Attempt:
    """One search; remembers the failure that came furthest."""

    look_through: Collection[str]
    reason: str = "nothing to match"
    depth: int = -1

    def fail(self, state: _State, reason: str) -> None:
        if len(state.nodes) > self.depth:
            self.reason, self.depth = reason, len(state.nodes)

    def node(self, what: Call, node: Node, state: _State) -> Iterator[_State]:
        if node.op != what.op:
            return self.fail(state, f"{what.op} is needed, {node.key} is {node.op}")
        present = [value for value in node.inputs if value is not None]
        if len(present) != len(what.operands):
            return self.fail(state, f"{node.key} has {len(present)} operands, {len(what.operands)} are needed")
        entered = _State(state.bindings, (*state.nodes, node))
        orders = [present, present[::-1]] if what.op in COMMUTATIVE and len(present) == 2 else [present]
        for order in orders:
            yield from self.operands(what.operands, order, entered)

    def operands(self, wanted: Sequence[Pattern], values: Sequence[Value], state: _State) -> Iterator[_State]:
        """All ways in which the operands match: a later one may need another order inside an earlier one."""
        if not wanted:
            yield state
            return
        for reached in self.value(wanted[0], values[0], state):
            yield from self.operands(wanted[1:], values[1:], reached)

    def value(self, wanted: Pattern, value: Value, state: _State) -> Iterator[_State]:
        if isinstance(wanted, Anything):
            bound = self.bind(wanted, value, state)
            if bound is not None:
                yield bound
            return
        origin, passed = source(value, self.look_through)
        if origin.producer is None:
            return self.fail(state, f"{wanted.op} is needed, {origin.name} is {_role(origin)}")
        if origin is not origin.producer.outputs[0]:
            return self.fail(state, f"{wanted.op} is needed, {origin.key} is a further result of {origin.producer.key}")
        for inner in (value, *(node.outputs[0] for node in passed[1:]), origin):
            others = [user.key for user in inner.users if user not in state.nodes and user not in passed]
            if others or inner.is_output:
                where = "returned by the graph" if inner.is_output else f"also used by {others[0]}"
                return self.fail(state, f"{inner.key} is {where}")
        yield from self.node(wanted, origin.producer, _State(state.bindings, (*state.nodes, *passed)))

    def bind(self, wanted: Anything, value: Value, state: _State) -> _State | None:
        if wanted.is_constant:
            value = source(value, self.look_through)[0]
            if value.role != "constant":
                return self.fail(state, f"{wanted.name} must be a constant, {value.name} is {_role(value)}")
            if wanted.rank is not None and value.type.rank not in (None, wanted.rank):
                return self.fail(state, f"{wanted.name} must have {wanted.rank} dims, {value.name} is {value.type}")
        bound = state.bindings.get(wanted.name)
        if bound is not None and bound is not value:
            return self.fail(state, f"{wanted.name} must be one value, got {bound.key} and {value.key}")
        return _State({**state.bindings, wanted.name: value}, state.nodes)


def _role(value: Value) -> str:
    return {"input": "an input of the graph", "constant": "a constant", "computed": "computed"}[value.role]
