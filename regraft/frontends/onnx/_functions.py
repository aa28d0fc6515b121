"""Structured ops as model-local functions of standard operators, so that any runtime can run the file.

One function stands for an op at an opset, for the optional operands that are present ("LowrankLinearNoBias") and for
the attributes, which shapes in the body may depend on ("MonarchLinear_blocks4"). The call keeps the attributes too, for
readers and for runtimes with a kernel of their own. Operands in `Op.linear_weights` are stored transposed, [in, out],
the way ONNX stores the right operand of a product.
"""

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import onnx
import onnx_ir as ir
import torch

from regraft.errors import GraphError
from regraft.frontends.onnx._attention import AttentionBuilder
from regraft.frontends.onnx._builder import operand_syms
from regraft.frontends.onnx._canonical import DOMAIN, function_stem
from regraft.frontends.onnx._tensors import from_torch, onnx_dtype_of
from regraft.graph.types import dtype_name
from regraft.ops import AttributeValue, Op

VERSION: Final = 1
"""Version of the domain `regraft` that files import."""

FUNCTIONS_SINCE_IR: Final = 8
"""IR version that introduced model-local functions."""

Values = Mapping[str, AttributeValue]
"""Attributes of an op by name."""

_CONVERT: Final[Mapping[str, Callable[[Any], AttributeValue]]] = {"int": int, "float": float, "str": str}


def function_for(
    op: Op,
    present: frozenset[str],
    opset: int,
    attributes: Values | None = None,
    dtypes: Mapping[str, str] | None = None,
    spelling: type[AttentionBuilder] = AttentionBuilder,
) -> ir.Function:
    """Return the op as an ONNX function; the same arguments give the same function.

    Args:
        op: what to express.
        present: names of the optional operands that the call has.
        opset: version of the default domain, the same as the model's (ONNX Runtime's inliner demands it).
        attributes: values of the op's attributes; all of them.
        dtypes: element types of the operands by name; needed only where the opset has no CastLike (before 15).
        spelling: how core operations are written; the default writes standard operators.

    Raises:
        GraphError: when an attribute is missing or unknown.
        DtypeError: when an element type is needed and not given.
    """
    values = complete_attributes(op, attributes or {})
    names = [operand.name for operand in op.operands if not operand.optional or operand.name in present]
    builder = spelling(opset)
    syms = operand_syms(names, dtypes or {}, op.linear_weights)
    by_name = dict(zip(names, syms, strict=True))
    result = builder.result(op.decompose(builder, *(by_name.get(operand.name) for operand in op.operands), **values))
    result.name = "y" if "y" not in by_name else "result"
    absent = frozenset(operand.name for operand in op.operands) - frozenset(names)
    typed_as = [dtypes.get(name, "") for name in names] if builder.is_typed and dtypes else []
    suffix = "".join(f"_{label}" for label in typed_as)
    body = ir.Graph([sym.value for sym in syms], [result], nodes=builder.nodes, doc_string=_doc(op, names))
    body.opset_imports.update({"": opset} | {node.domain: 1 for node in body.all_nodes() if node.domain})
    return ir.Function(
        domain=DOMAIN,
        name=function_stem(op, absent) + _attribute_suffix(values) + suffix,
        graph=body,
        attributes=[ir.Attr(name, ir.AttributeType.UNDEFINED, None) for name in values],
    )


def call_of(function: ir.Function, inputs: Sequence[ir.Value | None], attributes: Values, name: str) -> ir.Node:
    """Return a node that calls the function."""
    return ir.node(function.name, inputs, dict(attributes) or None, domain=DOMAIN, name=name)


def single_node_model(
    op: Op,
    tensors: Mapping[str, torch.Tensor],
    attributes: Values | None = None,
    opset: int = 18,
    dynamic: Sequence[int] = (),
) -> ir.Model:
    """Return a model of one node: the first operand is its input "x", the others are weights, "y" is its output.

    Args:
        op: what the node is.
        tensors: operands by name, in the layout of the op's file.
        attributes: values of the op's attributes.
        opset: version of the default domain.
        dynamic: dims of the input that are symbolic ("dim0", "dim1", ...).
    """
    first, *rest = [operand.name for operand in op.operands if operand.name in tensors]
    dtypes = {name: dtype_name(tensor.dtype) for name, tensor in tensors.items()}
    present = frozenset(operand.name for operand in op.operands if operand.optional and operand.name in tensors)
    function = function_for(op, present, opset, attributes, dtypes)
    x = tensors[first]
    dims = [f"dim{axis}" if axis in dynamic else extent for axis, extent in enumerate(x.shape)]
    source = ir.Value(name="x", shape=ir.Shape(dims), type=ir.TensorType(onnx_dtype_of(x)))
    weights = [weight_value(op, name, tensors[name], f"node.{name}") for name in rest]
    values = complete_attributes(op, attributes or {})
    node = call_of(function, [source, *weights], values, "node")
    output = node.outputs[0]
    output.name, output.type = "y", ir.TensorType(onnx_dtype_of(x))
    graph = ir.Graph(
        [source], [output], nodes=[node], initializers=weights, opset_imports={"": opset, DOMAIN: VERSION}, name=op.name
    )
    minimum = onnx.helper.find_min_ir_version_for([onnx.helper.make_opsetid("", opset)])
    return ir.Model(graph, ir_version=max(minimum, FUNCTIONS_SINCE_IR), functions=[function])


def weight_value(op: Op, operand: str, tensor: torch.Tensor, name: str) -> ir.Value:
    """Return an initializer that holds an operand, transposed where the function wants it so."""
    stored = tensor.detach().t() if operand in op.linear_weights else tensor
    content = from_torch(stored, name)
    return ir.Value(
        name=name, const_value=content, shape=ir.Shape(stored.shape), type=ir.TensorType(onnx_dtype_of(stored))
    )


def complete_attributes(op: Op, attributes: Values) -> dict[str, AttributeValue]:
    """Return all attributes of an op, in order: the given ones, and defaults for the rest.

    Raises:
        GraphError: when one is unknown, or missing and without a default.
    """
    parameters = inspect.signature(op.decompose).parameters
    defaults = {name: parameters[name].default for name in op.attributes}
    known = {name: value for name, value in defaults.items() if value is not inspect.Parameter.empty}
    filled = {**known, **attributes}
    if filled.keys() != op.attributes.keys():
        wanted, given = ", ".join(op.attributes) or "none", ", ".join(attributes) or "none"
        raise GraphError(f"{op.name}: the attributes {wanted} are needed; got {given}")
    return {name: _CONVERT[kind](filled[name]) for name, kind in op.attributes.items()}


def _attribute_suffix(values: Values) -> str:
    """What the body was made for, as a part of its name: "_blocks4_scale0p5_activationgelu"."""
    return "".join(f"_{name}{_value_text(value)}" for name, value in values.items())


def _value_text(value: AttributeValue) -> str:
    text = value if isinstance(value, str) else repr(value).replace(".", "p").replace("-", "m").replace("+", "")
    return re.sub(r"\W", "_", text)


def _doc(op: Op, names: Sequence[str]) -> str:
    turned = [name for name in names if name in op.linear_weights]
    return op.doc + (f" ({', '.join(turned)} stored transposed: [in, out])" if turned else "")
