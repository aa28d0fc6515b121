"""Weights that a graph lists among its inputs: constants up to IR version 3, defaults of an input since then."""

from collections.abc import Sequence
from typing import Final

import onnx_ir as ir

_NOT_LISTED_SINCE: Final = 4
"""IR version in which an initializer need not be an input; ONNX Runtime lets callers override one that is."""

_TOOL: Final = "python -m onnxruntime.tools.remove_initializer_from_input"
_MOST_NAMES: Final = 3


def settle_defaults(model: ir.Model) -> list[str]:
    """Read weights that are listed as inputs as ONNX Runtime does; return what to tell of it, one line each.

    A model of IR version 3, which has to list them, becomes one of version 4 that does not. In later versions a listed
    weight is a default that a caller may override, and stays one.

    Args:
        model: changed in place.
    """
    listed = [value for value in model.graph.inputs if value.is_initializer()]
    if not listed:
        return []
    names = ", ".join(str(value.name) for value in listed[:_MOST_NAMES]) + (
        ", ..." if len(listed) > _MOST_NAMES else ""
    )
    if (model.ir_version or 0) >= _NOT_LISTED_SINCE:
        remedy = f"{_TOOL} makes them constants"
        return [f"{len(listed)} weights are inputs with a default, and so no constants: {names}; {remedy}"]
    _unlist(model.graph, listed)
    model.ir_version = _NOT_LISTED_SINCE
    return [f"read as IR version 4, for version 3 lists weights among the inputs ({len(listed)}): {names}"]


def _unlist(graph: ir.Graph, listed: Sequence[ir.Value]) -> None:
    for value in listed:
        graph.inputs.remove(value)
