"""Names and types that a graph takes and returns."""

from collections.abc import Mapping, Sequence
from typing import Any

from regraft.errors import InputError
from regraft.graph import Graph, Value
from regraft.graph.snapshot import SnapshotValue


def inputs_of(graph: Graph) -> tuple[SnapshotValue, ...]:
    """Return the graph's inputs in order."""
    return tuple(_plain(value) for value in graph.inputs())


def outputs_of(graph: Graph) -> tuple[SnapshotValue, ...]:
    """Return the graph's outputs in order."""
    return tuple(_plain(value) for value in graph.outputs())


def call_inputs(names: Sequence[str], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Return the arguments of a call as one thing that graphs take: by position, or by name when some are named.

    Raises:
        InputError: for an input that is given twice.
    """
    if not args or not kwargs:
        return kwargs or args
    by_place = dict(zip(names, args, strict=False))
    if len(args) > len(names):
        raise InputError(f"the model takes {len(names)} inputs ({', '.join(names)}); got {len(args) + len(kwargs)}")
    twice = [name for name in kwargs if name in by_place]
    if twice:
        raise InputError(f"input {twice[0]!r} is given by position and by name; once is needed")
    return {**by_place, **kwargs}


def _plain(value: Value) -> SnapshotValue:
    return SnapshotValue(value.key, value.name, value.type)
