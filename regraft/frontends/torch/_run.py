"""Runs a program node by node: whole with some values kept, or only the part between given and wanted values."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from regraft.errors import GraphError, InputError
from regraft.frontends.torch._canonical import is_assertion
from regraft.frontends.torch._program import Program
from regraft.frontends.torch._views import output_nodes


def run_program(
    program: Program, flat: Sequence[Any], taps: Sequence[str]
) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    """Run everything; return the outputs and the tapped values by key.

    Args:
        program: what to run.
        flat: one value a placeholder.
        taps: keys of values.

    Raises:
        InputError: when an operator does not take what it is given.
    """
    wanted = [_locate(program, key) for key in taps]
    placeholders = [node for node in program.graph.nodes if node.op == "placeholder"]
    given = dict(zip(placeholders, flat, strict=True))
    returned = output_nodes(next(reversed(program.graph.nodes)))
    keep = [*returned, *(node for node, _ in wanted)]
    rest = [node for node in program.graph.nodes if node.op not in ("placeholder", "output")]
    try:
        values = _Evaluator(program).compute(rest, given, keep)
    except RuntimeError as error:  # an element type or an extent that only an operator inside does not take
        first = next(iter(str(error).splitlines()), type(error).__name__)
        raise InputError(f"the model cannot be run on these inputs: {first}") from error
    tapped = {key: _picked(values, node, place) for key, (node, place) in zip(taps, wanted, strict=True)}
    return tuple(torch.as_tensor(values[node]) for node in returned), tapped


def prepared_part(program: Program, outputs: Sequence[str], given: Mapping[str, Tensor]) -> Callable[[], list[Tensor]]:
    """Return what computes values of the program from given ones.

    Raises:
        GraphError: when an output depends on an input of the graph that is not given, or a key is unknown.
    """
    wanted = [_locate(program, key) for key in outputs]
    known = {program.node(key, "evaluate"): value for key, value in given.items()}
    nodes = _between(known, [node for node, _ in wanted])
    evaluator, kept = _Evaluator(program), [node for node, _ in wanted]

    def run() -> list[Tensor]:
        values = evaluator.compute(nodes, known, kept)
        return [_picked(values, node, place) for node, place in wanted]

    return run


class _Evaluator(fx.Interpreter):
    """What torch's interpreter does with each node, over any choice of nodes."""

    def __init__(self, program: Program) -> None:
        super().__init__(program.store.module, graph=program.graph)

    @torch.no_grad()
    def compute(
        self, nodes: Sequence[fx.Node], given: Mapping[fx.Node, Any], keep: Iterable[fx.Node]
    ) -> dict[fx.Node, Any]:
        """Run nodes in this order; what is not kept is freed after its last reader."""
        self.env = dict(given)
        kept = {*keep}
        last_reader = {operand: node for node in nodes for operand in node.all_input_nodes}
        for node in nodes:
            if node not in given:
                self.env[node] = self._compute_one(node)
            for operand in node.all_input_nodes:
                if last_reader[operand] is node and operand not in kept:
                    self.env.pop(operand, None)
        return self.env

    def _compute_one(self, node: fx.Node) -> Any:
        if is_assertion(node) and node.op == "call_module":
            return self._check_inputs(node)
        try:
            return self.run_node(node)
        except Exception as error:  # whatever torch raises is handed on, with the place where it was raised
            error.add_note(f"at node {node.name} ({node.target})")
            raise

    def _check_inputs(self, node: fx.Node) -> None:
        try:
            self.run_node(node)
        except AssertionError as error:
            condition = str(error).removeprefix("Guard failed: ")
            raise InputError(f"the captured program takes only inputs for which {condition}") from error


def _locate(program: Program, key: str) -> tuple[fx.Node, int | None]:
    """The node behind a key, and which of its results is meant when nothing in the graph picks it."""
    name, _, place = key.partition(":")
    return program.node(name, "tap"), int(place) if place else None


def _picked(values: Mapping[fx.Node, Any], node: fx.Node, place: int | None) -> Tensor:
    value = values[node] if place is None else values[node][place]
    return torch.as_tensor(value)


def _between(given: Mapping[fx.Node, Any], wanted: Sequence[fx.Node]) -> list[fx.Node]:
    """Nodes that must run to compute the wanted ones, operands first."""
    order: list[fx.Node] = []
    entered: set[fx.Node] = set(given)
    waiting = [(node, False) for node in reversed(wanted)]
    while waiting:
        node, operands_done = waiting.pop()
        if operands_done:
            order.append(node)
        elif node not in entered:
            entered.add(node)
            if node.op == "placeholder":
                raise GraphError(f"{wanted[0].name} depends on input {node.target!r}, which is not given")
            waiting.append((node, True))
            waiting.extend((operand, False) for operand in node.all_input_nodes)
    return order
