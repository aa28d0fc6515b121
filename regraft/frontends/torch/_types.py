"""Types of traced values, with the names that people use for symbolic dims."""

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

import sympy
import torch
from torch import Tensor

from regraft.graph.types import Dim, TensorType, dtype_name

_POWER: Final = re.compile(r"\b([A-Za-z_]\w*)\*\*([2-9])\b")
_SCALARS: Final[Mapping[type, str]] = {
    torch.SymInt: "int64",
    torch.SymFloat: "float64",
    torch.SymBool: "bool",
    int: "int64",
    float: "float64",
    bool: "bool",
}


class Typer:
    """Reads types off fake tensors; remembers how each expression prints."""

    def __init__(self, names: Mapping[str, str]) -> None:
        self.names: Final = dict(names)
        self._texts: Final[dict[Any, str]] = {}

    def type_of(self, value: Any) -> TensorType:
        """Return the type of what a node's `meta["val"]` holds; nothing is known of other things."""
        if isinstance(value, Tensor):
            return TensorType(dtype_name(value.dtype), tuple(self._dim(extent) for extent in value.shape))
        dtype = _SCALARS.get(type(value))
        return TensorType() if dtype is None else TensorType(dtype, ())

    def _dim(self, extent: Any) -> Dim:
        if isinstance(extent, int):
            return extent
        expression = extent.node.expr
        if expression.is_Integer:
            return int(expression)
        text = self._texts.get(expression)
        if text is None:
            text = self._texts[expression] = self._print(expression)
        return text

    def _print(self, expression: Any) -> str:
        # Renamed before it is printed: sympy orders the factors of a product by their names.
        renamed = {
            symbol: sympy.Symbol(self.names[str(symbol)], integer=True, positive=True)
            for symbol in expression.free_symbols
            if str(symbol) in self.names
        }
        # The dims of Regraft are products and sums: s0**2 is written s0*s0.
        return _POWER.sub(lambda found: "*".join([found[1]] * int(found[2])), str(expression.xreplace(renamed)))


def name_dims(inputs: Iterable[tuple[str, Any]]) -> dict[str, str]:
    """Return a name for each symbol in the shapes of inputs.

    Dim 0 is "batch" and dim 1 "sequence"; other symbols at these places are "batch_2", "sequence_2" and so on, and
    symbols that stand only further back are called after the input and the place ("pixels_2").

    Args:
        inputs: name and fake tensor of each input, in order; others than tensors are skipped.
    """
    tensors = [(name, value) for name, value in inputs if isinstance(value, Tensor)]
    found: dict[str, str] = {}
    for place, base in ((0, "batch"), (1, "sequence")):
        count = 0
        for _, value in tensors:
            symbol = _symbol(value, place)
            if symbol and symbol not in found:
                count += 1
                found[symbol] = base if count == 1 else f"{base}_{count}"
    for name, value in tensors:
        for place in range(2, value.ndim):
            symbol = _symbol(value, place)
            if symbol and symbol not in found:
                found[symbol] = f"{name}_{place}"
    return found


def _symbol(value: Tensor, place: int) -> str:
    extent: Any = value.shape[place] if place < value.ndim else 0
    if isinstance(extent, int):
        return ""
    return str(extent.node.expr) if extent.node.expr.is_Symbol else ""
