"""Attributes of ONNX nodes as plain data, with the defaults of those operators whose meaning depends on them."""

from collections.abc import Callable, Mapping
from typing import Final, cast

import numpy as np
import onnx_ir as ir

from regraft.frontends.onnx._tensors import dtype_label, tensor_type
from regraft.graph.view import Attribute

_SHOWN_ELEMENTS: Final = 8
_DTYPES: Final = frozenset(int(dtype) for dtype in ir.DataType)

_DEFAULTS: Final[Mapping[str, Mapping[str, Attribute]]] = {
    "gemm": {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 0},
    "softmax": {"axis": -1},
    "gather": {"axis": 0},
    "layer_norm": {"axis": -1, "epsilon": 1e-5},
}


def attributes_of(node: ir.Node, op: str, rank: int | None = None) -> dict[str, Attribute]:
    """Return a node's attributes by name. Bodies of If, Loop and Scan are left out.

    Args:
        node: the node.
        op: its canonical name.
        rank: number of dims of its first operand, as far as it is known.
    """
    own = {name: plain(attribute) for name, attribute in node.attributes.items() if not is_body(attribute)}
    attributes = {**_DEFAULTS.get(op, {}), **own}
    if op == "transpose" and rank is not None:
        attributes.setdefault("perm", tuple(reversed(range(rank))))
    if op == "cast" and attributes.get("to") in _DTYPES:
        attributes["to"] = dtype_label(ir.DataType(cast(int, attributes["to"])))
    return attributes


def is_body(attribute: ir.Attr) -> bool:
    """Whether an attribute holds a nested graph."""
    return attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)


def plain(attribute: ir.Attr) -> Attribute:
    """Return one attribute as plain data; tensors and other opaque things as a string."""
    if attribute.is_ref():
        return f"@{attribute.ref_attr_name}"
    convert = _PLAIN.get(attribute.type)
    return str(attribute.value) if convert is None else convert(attribute)


def _text(value: str | bytes) -> str:
    return value if isinstance(value, str) else repr(value)  # not UTF-8: some custom operators store bytes


def _tensor(tensor: ir.TensorProtocol) -> str:
    described = str(tensor_type(tensor))
    if tensor.size > _SHOWN_ELEMENTS:
        return described
    return f"{described} {np.asarray(tensor.numpy()).tolist()}"


_PLAIN: Final[Mapping[ir.AttributeType, Callable[[ir.Attr], Attribute]]] = {
    ir.AttributeType.INT: lambda attribute: attribute.as_int(),
    ir.AttributeType.FLOAT: lambda attribute: attribute.as_float(),
    ir.AttributeType.STRING: lambda attribute: _text(cast("str | bytes", attribute.value)),
    ir.AttributeType.INTS: lambda attribute: tuple(attribute.as_ints()),
    ir.AttributeType.FLOATS: lambda attribute: tuple(attribute.as_floats()),
    ir.AttributeType.STRINGS: lambda attribute: tuple(_text(text) for text in attribute.as_strings()),
    ir.AttributeType.TENSOR: lambda attribute: _tensor(attribute.as_tensor()),
}
