"""What ONNX nodes compute of extents, computed in Python while tracing: numpy arrays of ints and of torch's symbols."""

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np
import torch

Attributes = Mapping[str, Any]
Operator = Callable[[Sequence[Any], Attributes], Any]
"""Operands (None where absent) and attributes to a result, or a tuple of several."""


def on_extents(op_type: str, operands: Sequence[Any], attributes: Attributes) -> Any:
    """Return the result of a node that computes extents, or None when it computes tensors.

    Args:
        op_type: of the default domain.
        operands: tensors, and arrays of objects, which are extents.
        attributes: by name.
    """
    if op_type == "Shape":
        shape = list(operands[0].shape)
        return _array(shape[attributes.get("start", 0) : attributes.get("end", len(shape))])
    given = [operand for operand in operands if operand is not None]
    if op_type not in _RULES or not given or not all(isinstance(operand, np.ndarray) for operand in given):
        return None
    return _RULES[op_type](operands, attributes)


def as_tensor(value: Any) -> Any:
    """Return extents as an int64 tensor; anything else as it is."""
    if not isinstance(value, np.ndarray):
        return value
    items = value.reshape(-1).tolist()
    if all(isinstance(item, int) for item in items):
        return torch.tensor(value.tolist(), dtype=torch.int64)
    # A symbol as a tensor: TVM has ranges of symbolic length, but no constants of a symbolic value.
    parts = [torch.arange(item, item + 1) for item in items]
    return torch.cat(parts).reshape(value.shape)


def as_integers(value: Any) -> list[Any] | None:
    """Return extents as a list; None for a tensor, whose content is not known while tracing."""
    return value.reshape(-1).tolist() if isinstance(value, np.ndarray) else None


def _array(items: Any) -> np.ndarray:
    result = np.empty(np.shape(items) if not isinstance(items, list) else len(items), dtype=object)
    result[...] = items
    return result


def _elementwise(function: Callable[..., Any]) -> Operator:
    def apply(operands: Sequence[Any], _: Attributes) -> Any:
        return _array(np.frompyfunc(function, len(operands), 1)(*operands))

    return apply


def _gather(operands: Sequence[Any], _: Attributes) -> Any:
    return _array(operands[0][operands[1].astype(np.int64)])


def _slice(operands: Sequence[Any], _: Attributes) -> Any:
    x, start, stop = operands[0], int(operands[1].item()), int(operands[2].item())
    step = int(operands[4].item()) if len(operands) > 4 else 1
    return x[start:stop:step]


def _reshape(operands: Sequence[Any], _: Attributes) -> Any:
    return operands[0].reshape(tuple(map(int, operands[1])))


def _choose(condition: Any, one: Any, other: Any) -> Any:
    return one if bool(condition) else other


def _largest(operands: Sequence[Any], _: Attributes) -> Any:
    found = operands[0]
    for other in operands[1:]:
        found = np.frompyfunc(torch.sym_max, 2, 1)(found, other)
    return _array(found)


_INT64: Final = 7
"""In the enumeration of ONNX."""

_RULES: Final[Mapping[str, Operator]] = {
    "Add": _elementwise(operator.add),
    "Cast": lambda operands, attributes: operands[0] if attributes["to"] == _INT64 else None,
    "Concat": lambda operands, _: np.concatenate(operands),
    "Div": _elementwise(operator.floordiv),
    "Equal": _elementwise(operator.eq),
    "Gather": _gather,
    "Identity": lambda operands, _: operands[0],
    "Max": _largest,
    "Mul": _elementwise(operator.mul),
    "Reshape": _reshape,
    "Slice": _slice,
    "Squeeze": lambda operands, _: operands[0].reshape(()),
    "Sub": _elementwise(operator.sub),
    "Unsqueeze": lambda operands, _: operands[0].reshape(-1),
    "Where": _elementwise(_choose),
}
