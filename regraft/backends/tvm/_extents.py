"""Extents as torch writes them (sympy) and as TVM does, and the limits that tracing found for them."""

from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Any, Final

import sympy
import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.utils._sympy import functions as torch_functions

from regraft.backends.tvm._compat import module
from regraft.backends.tvm._ports import Port
from regraft.errors import BackendError

tirx: Final[Any] = module("tvm.tirx")

_DIVISIONS: Final = (torch_functions.FloorDiv, torch_functions.CleanDiv)
_REMAINDERS: Final = (torch_functions.Mod, torch_functions.PythonMod, sympy.Mod)
_LARGEST: Final = (torch_functions.Max, sympy.Max)
_SMALLEST: Final = (torch_functions.Min, sympy.Min)


def prim_expr(expression: Any, symbols: Mapping[str, Any]) -> Any:
    """Return a sympy expression over extents as a TVM expression of int64.

    Args:
        expression: integers and symbols under sums, products, powers, floor division, remainders, max and min.
        symbols: TVM's variables by the names of torch's symbols.

    Raises:
        BackendError: for anything else: an extent that depends on the content of a tensor.
    """
    if isinstance(expression, sympy.Integer):
        return tirx.IntImm("int64", int(expression))
    if isinstance(expression, sympy.Symbol) and str(expression) in symbols:
        return symbols[str(expression)]
    operands = [prim_expr(operand, symbols) for operand in expression.args]
    if not operands:
        raise BackendError(f"tvm backend: the extent {expression} is not known from the shapes of the inputs")
    if isinstance(expression, sympy.Add):
        return reduce(lambda one, other: one + other, operands)
    if isinstance(expression, sympy.Mul):
        return reduce(lambda one, other: one * other, operands)
    if isinstance(expression, sympy.Pow) and isinstance(expression.exp, sympy.Integer) and expression.exp > 0:
        return reduce(lambda one, other: one * other, [operands[0]] * int(expression.exp))
    return _by_function(expression, operands)


def _by_function(expression: Any, operands: list[Any]) -> Any:
    if isinstance(expression, _DIVISIONS):
        return tirx.floordiv(*operands)
    if isinstance(expression, _REMAINDERS):
        return tirx.floormod(*operands)
    if isinstance(expression, _LARGEST):
        return reduce(tirx.max, operands)
    if isinstance(expression, _SMALLEST):
        return reduce(tirx.min, operands)
    raise BackendError(f"tvm backend: the extent {expression} has no form in TVM")


def limits_of(program: ExportedProgram, inputs: Sequence[Port]) -> dict[str, tuple[int, int | None]]:
    """Return least and largest extent by the name of a dim, where tracing found some: a table's length, say.

    Compiled code reads beyond its tables for other extents, so that they are checked before it runs.
    """
    names = set(program.graph_signature.user_inputs)
    values = [node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder" and node.name in names]
    limits: dict[str, tuple[int, int | None]] = {}
    for port, value in zip(inputs, [value for value in values if isinstance(value, Tensor)], strict=True):
        for name, extent in zip(port.type.shape, value.shape, strict=True):
            bounds = program.range_constraints.get(extent.node.expr) if isinstance(extent, torch.SymInt) else None
            if bounds is not None and isinstance(name, str):
                limits[name] = (_least(bounds.lower), _largest(bounds.upper))
    return limits


def _least(bound: Any) -> int:
    """2 says nothing: tracing takes extents of 0 and 1 for constants, which the program does not."""
    return int(bound) if bound > 2 else 1


def _largest(bound: Any) -> int | None:
    return int(bound) if isinstance(bound, sympy.Integer) else None
