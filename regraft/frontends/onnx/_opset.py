"""The version of the default domain that a model is written in."""

from functools import lru_cache
from typing import Final

import onnx
import onnx_ir as ir
from onnx.defs import OpSchema, SchemaError

OLDEST: Final = 13
"""Since opset 13 operators of the same name mean the same; before, Softmax and others meant something else."""


def default_opset(model: ir.Model) -> int:
    """Return the version of the default domain, which has two spellings; 0 when the model imports none."""
    return model.opset_imports.get("", model.opset_imports.get("ai.onnx", 0))


@lru_cache(maxsize=4096)
def schema_of(op_type: str, opset: int) -> OpSchema | None:
    """Return the definition of an operator of the default domain; None when that version has none of the name."""
    try:
        return onnx.defs.get_schema(op_type, opset, "")
    except SchemaError:
        return None


def newest_opset() -> int:
    """Return the newest version that the installed onnx knows."""
    return onnx.defs.onnx_opset_version()
