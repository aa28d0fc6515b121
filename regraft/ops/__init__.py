"""Structured ops: what each one means, one file an op.

An op is found by its file: `regraft/ops/<name>.py` holds `op`. Nothing else needs an edit.
"""

from regraft.ops._activation import erf_gelu, tanh_gelu
from regraft.ops._builder import Builder
from regraft.ops._cost import cost, formulas
from regraft.ops._eager import TorchBuilder, evaluate
from regraft.ops._op import AttributeValue, Example, Ints, Op, Operand
from regraft.ops._registry import all_ops, get_op

__all__ = [
    "AttributeValue",
    "Builder",
    "Example",
    "Ints",
    "Op",
    "Operand",
    "TorchBuilder",
    "all_ops",
    "cost",
    "erf_gelu",
    "evaluate",
    "formulas",
    "get_op",
    "tanh_gelu",
]
