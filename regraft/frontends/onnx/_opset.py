"""The version of the default domain that a model is written in."""

from typing import Final

import onnx
import onnx_ir as ir

OLDEST: Final = 13
"""Since opset 13 operators of the same name mean the same; before, Softmax and others meant something else."""


def default_opset(model: ir.Model) -> int:
    """Return the version of the default domain, which has two spellings; 0 when the model imports none."""
    return model.opset_imports.get("", model.opset_imports.get("ai.onnx", 0))


def newest_opset() -> int:
    """Return the newest version that the installed onnx knows."""
    return onnx.defs.onnx_opset_version()
