"""Batches of calibration inputs: one that does not fit is named by its place, with the remedy where it is known."""

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from torch import Tensor

from regraft.errors import InputError
from regraft.graph import Graph


@contextmanager
def calibration_batch(graph: Graph, batch: Any, place: int) -> Generator[None]:
    """Name the batch in what is raised inside because its inputs do not fit.

    Args:
        graph: what the batch is given to.
        batch: inputs by position or by name.
        place: number of the batch, from 0.

    Raises:
        InputError: also when an input of the batch has no rows.
    """
    where = f"calibration[{place}]"
    for name, value in _named(graph, batch):
        if isinstance(value, Tensor | np.ndarray) and value.ndim > 0 and not len(value):
            shape = list(value.shape)
            raise InputError(f"{where}: input {name!r} has no rows (its shape is {shape}); at least one is needed")
    try:
        yield
    except InputError as error:
        raise InputError(f"{where}: {error}", hint=_remedy(graph, batch) or error.hint) from error


def _named(graph: Graph, batch: Any) -> Sequence[tuple[str, Any]]:
    if isinstance(batch, Mapping):
        return [(str(name), value) for name, value in batch.items()]
    by_place: Sequence[Any] = batch if isinstance(batch, list | tuple) else (batch,)
    return [(value.name, given) for value, given in zip(graph.inputs(), by_place, strict=False)]


def _remedy(graph: Graph, batch: Any) -> str | None:
    """What to do about labels that a training set's batches hold beside the inputs."""
    names = [value.name for value in graph.inputs()]
    if isinstance(batch, Mapping):
        # The tensors of an input that is a container are called after it ("x_0").
        unknown = [
            key for key in map(str, batch) if not any(name == key or name.startswith(f"{key}_") for name in names)
        ]
        kept = f"({{key: value for key, value in batch.items() if key not in {unknown}}} for batch in loader)"
        return f"leave {', '.join(map(repr, unknown))} out: calibration={kept}" if unknown else None
    if isinstance(batch, list | tuple) and len(batch) > len(names):
        some = "batch[0]" if len(names) == 1 else f"batch[:{len(names)}]"
        return f"when labels stand behind the inputs, leave them out: calibration=({some} for batch in loader)"
    return None
