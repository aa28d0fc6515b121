"""Canonical names of ONNX operators: what passes see, the same as for torch.

A new name is one line in the table; an operator that is not in it keeps its own name, in lower case.
"""

import re
from collections.abc import Mapping
from functools import lru_cache
from itertools import combinations
from typing import Final

from regraft.ops import Op, all_ops

DOMAIN: Final = "regraft"
"""Domain of structured ops in ONNX files."""

_CANONICAL: Final[Mapping[str, str]] = {
    "Add": "add",
    "Attention": "attention",
    "Cast": "cast",
    "Concat": "concat",
    "Conv": "conv",
    "Div": "div",
    "Dropout": "dropout",
    "Erf": "erf",
    "Exp": "exp",
    "Gather": "gather",
    "Gelu": "gelu",
    "Gemm": "gemm",
    "Identity": "identity",
    "LayerNormalization": "layer_norm",
    "MatMul": "matmul",
    "Mul": "mul",
    "Pow": "pow",
    "ReduceMean": "mean",
    "Relu": "relu",
    "Reshape": "reshape",
    "Sigmoid": "sigmoid",
    "Slice": "slice",
    "Softmax": "softmax",
    "Split": "split",
    "Sqrt": "sqrt",
    "Squeeze": "squeeze",
    "Sub": "sub",
    "Tanh": "tanh",
    "Transpose": "transpose",
    "Unsqueeze": "unsqueeze",
    "Where": "where",
    "com.microsoft::Gelu": "gelu",
    "com.microsoft::MultiHeadAttention": "attention",
}


def native_name(node_domain: str, op_type: str) -> str:
    """Return an operator as ONNX spells it: "MatMul", "com.microsoft::Gelu"."""
    return f"{node_domain}::{op_type}" if node_domain else op_type


def canonical_name(domain: str, op_type: str) -> str:
    """Return the canonical name of an operator."""
    if domain == DOMAIN:
        structured = structured_op(op_type)
        if structured is not None:
            return structured[0].name
    native = native_name(domain, op_type)
    if native in _CANONICAL:
        return _CANONICAL[native]
    snake = _snake_case(op_type)
    return f"{domain}.{snake}" if domain else snake


def structured_op(function_name: str) -> tuple[Op, frozenset[str]] | None:
    """Return which op a function of the domain `regraft` is, and its optional operands that are absent; None for none.

    What follows an underscore are attributes that the body was made for ("MonarchLinear_blocks4").
    """
    return _functions().get(function_name.split("_", maxsplit=1)[0])


def function_stem(op: Op, absent: frozenset[str]) -> str:
    """Return the function's name before its attributes: "LowrankLinear", "LowrankLinearNoBias"."""
    missing = [operand.name for operand in op.operands if operand.name in absent]
    return op.onnx_name + "".join(f"No{_camel_case(name)}" for name in missing)


@lru_cache(maxsize=1)
def _functions() -> Mapping[str, tuple[Op, frozenset[str]]]:
    return {
        function_stem(op, frozenset(absent)): (op, frozenset(absent))
        for op in all_ops().values()
        for absent in _subsets([operand.name for operand in op.operands if operand.optional])
    }


def _subsets(names: list[str]) -> list[tuple[str, ...]]:
    return [subset for count in range(len(names) + 1) for subset in combinations(names, count)]


def _camel_case(name: str) -> str:
    return "".join(part.capitalize() for part in name.split("_"))


def _snake_case(name: str) -> str:
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name)
    return spaced.lower()
