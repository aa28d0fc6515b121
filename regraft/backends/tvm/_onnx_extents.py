"""What ONNX nodes compute of extents, computed in Python while tracing: numpy arrays of ints and of torch's symbols."""

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np
import torch

from regraft.errors import BackendError

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
    if op_type == "Size":
        return _array(math.prod(operands[0].shape))
    present = [operand for operand in operands if operand is not None]
    if op_type not in _RULES or not present or not all(isinstance(operand, np.ndarray) for operand in present):
        return None
    return _RULES[op_type](operands, attributes)


def as_tensor(value: Any) -> Any:
    """Return extents as an int64 tensor; anything else as it is."""
    if not isinstance(value, np.ndarray):
        return value
    items = value.reshape(-1).tolist()
    if items and all(isinstance(item, bool) for item in items):
        return torch.tensor(value.tolist(), dtype=torch.bool)
    if all(isinstance(item, int) for item in items):
        return torch.tensor(value.tolist(), dtype=torch.int64)
    # A symbol as a tensor: TVM has ranges of symbolic length, but no constants of a symbolic value.
    parts = [torch.arange(item, item + 1) for item in items]
    return torch.cat(parts).reshape(value.shape)


def given(operands: Sequence[Any], count: int) -> list[Any]:
    """Return that many operands; None for each that was left out at the end."""
    return [*operands, *[None] * (count - len(operands))]


def refused(name: str, reason: str) -> BackendError:
    """Return the error of a form of an operator that is not translated."""
    return BackendError(f"tvm backend: {name}: {reason}")


def needed(name: str, attribute: str, attributes: Attributes) -> Any:
    """Return an attribute that has no default here; raises BackendError when it is not there."""
    if attribute not in attributes:
        raise refused(name, f"the attribute {attribute} is needed")
    return attributes[attribute]


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


def _extreme(function: Callable[[Any, Any], Any]) -> Operator:
    def apply(operands: Sequence[Any], _: Attributes) -> Any:
        found = operands[0]
        for other in operands[1:]:
            found = np.frompyfunc(function, 2, 1)(found, other)
        return _array(found)

    return apply


def _is_of_all(operands: Sequence[Any], attributes: Attributes) -> bool:
    """Whether a reduction leaves one number, without a dim."""
    return operands[0].ndim == 1 and not attributes.get("keepdims", 1)


def _cast(operands: Sequence[Any], attributes: Attributes) -> Any:
    """Numbers stay numbers where they can be extents or conditions; None else."""
    if attributes["to"] == _BOOL:
        return _array(np.frompyfunc(lambda item: item != 0, 1, 1)(operands[0]))
    if attributes["to"] != _INT64:
        return None
    return _array(np.frompyfunc(lambda item: int(item) if isinstance(item, bool | float) else item, 1, 1)(operands[0]))


_INT64: Final = 7
_BOOL: Final = 9
"""In the enumeration of ONNX."""

_RULES: Final[Mapping[str, Operator]] = {
    "Abs": _elementwise(operator.abs),
    "Add": _elementwise(operator.add),
    "And": _elementwise(operator.and_),
    "Cast": _cast,
    "Concat": lambda operands, _: np.concatenate(operands),
    "Div": _elementwise(operator.floordiv),
    "Equal": _elementwise(operator.eq),
    "Gather": _gather,
    "Greater": _elementwise(operator.gt),
    "GreaterOrEqual": _elementwise(operator.ge),
    "Identity": lambda operands, _: operands[0],
    "Less": _elementwise(operator.lt),
    "LessOrEqual": _elementwise(operator.le),
    "Max": _extreme(torch.sym_max),
    "Min": _extreme(torch.sym_min),
    "Mod": _elementwise(operator.mod),
    "Mul": _elementwise(operator.mul),
    "Neg": _elementwise(operator.neg),
    "Not": _elementwise(operator.not_),
    "Or": _elementwise(operator.or_),
    "ReduceProd": lambda operands, attributes: (
        _array(np.prod(operands[0])) if _is_of_all(operands, attributes) else None
    ),
    "Reshape": _reshape,
    "Slice": _slice,
    "Squeeze": lambda operands, _: operands[0].reshape(()),
    "Sub": _elementwise(operator.sub),
    "Unsqueeze": lambda operands, _: operands[0].reshape(-1),
    "Where": _elementwise(_choose),
}
