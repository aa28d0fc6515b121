"""From torch's operators to canonical ones: names, operands and attributes as `Node` shows them."""

# torch has no public name for some of what is used here.
# pyright: reportPrivateUsage=false

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, cast

import torch
from torch import Tensor, fx

from regraft.graph.types import dtype_name
from regraft.graph.view import Attribute

_NAMES: Final[Mapping[str, str]] = {
    "mm": "matmul",
    "bmm": "matmul",
    "t": "transpose",
    "permute": "transpose",
    "numpy_T": "transpose",
    "view": "reshape",
    "_unsafe_view": "reshape",
    "flatten": "reshape",
    "unflatten": "reshape",
    "_softmax": "softmax",
    "_log_softmax": "log_softmax",
    "native_layer_norm": "layer_norm",
    "_native_batch_norm_legit_no_training": "batch_norm",
    "native_group_norm": "group_norm",
    "scaled_dot_product_attention": "attention",
    "_to_copy": "cast",
    "to": "cast",
    "lift_fresh_copy": "identity",
    "native_dropout": "dropout",
    "convolution": "conv",
    "conv1d": "conv",
    "conv2d": "conv",
    "conv3d": "conv",
    "cat": "concat",
    "split_with_sizes": "split",
    "sym_size": "sym_size",
}
"""Names that differ from aten's own."""

_OWN: Final = frozenset(
    """
    linear addmm matmul attention embedding conv softmax log_softmax layer_norm batch_norm group_norm
    add sub mul div pow sqrt rsqrt exp log neg abs erf sin cos gelu relu silu sigmoid tanh eq ne lt le gt ge where
    mean sum amax amin cumsum masked_fill tril triu cast identity clone contiguous detach alias dropout
    transpose reshape concat stack split chunk slice select unsqueeze squeeze expand gather index index_select
    arange full ones zeros sym_size
    """.split()  # noqa: SIM905 - a table, not a list of strings
)
"""Canonical names; operators of aten that are none of these keep their "aten.<name>"."""

_RENAMED: Final[Mapping[tuple[str, str], str]] = {("reshape", "size"): "shape"}
_SILENT: Final = frozenset({"layout", "pin_memory", "memory_format", "device", "dtype", "generator", "out"})
"""Arguments that say nothing when they are None."""

_FULL: Final = 2**63 - 1
_ASSERTIONS: Final = frozenset({"_assert_tensor_metadata", "_assert_scalar", "_assert_async", "sym_constrain_range"})


@dataclass(frozen=True, slots=True)
class Call:
    """One node in canonical terms.

    Attributes:
        op: canonical name.
        native: as torch spells it.
        operands: nodes of tensors; None for an optional one that is absent.
        attributes: the other arguments by name of the schema.
    """

    op: str
    native: str
    operands: Sequence[fx.Node | None]
    attributes: Mapping[str, Attribute]


@dataclass(frozen=True, slots=True)
class _Parameter:
    name: str
    kind: str  # "tensor", "optional", "list" or "other"
    default: Any


def canonical(node: fx.Node) -> Call:
    """Return what a call computes, in canonical terms."""
    target = node.target
    if isinstance(target, torch._ops.OpOverload):
        return _overload_call(node, target)
    native = target if isinstance(target, str) else _qualified(target)
    op = f"sym_{native.removeprefix('operator.')}" if native.startswith("operator.") else native
    literals = {str(place): _literal(value) for place, value in enumerate(node.args) if not isinstance(value, fx.Node)}
    literals.update({name: _literal(value) for name, value in node.kwargs.items() if not isinstance(value, fx.Node)})
    return Call(op, native, node.all_input_nodes, literals)


def is_assertion(node: fx.Node) -> bool:
    """Whether a node only checks something."""
    if node.op == "call_module":
        return node.target == "_guards_fn"
    if node.target is torch._assert:
        return True
    return isinstance(node.target, torch._ops.OpOverload) and _packet_name(node.target) in _ASSERTIONS


def is_type_assertion(node: fx.Node) -> bool:
    """Whether a node only checks an element type that tracing has settled already."""
    return node.target is torch.ops.aten._assert_tensor_metadata.default


def is_getitem(node: fx.Node) -> bool:
    """Whether a node picks one of several results of another."""
    return (
        node.op == "call_function"
        and node.target is operator.getitem
        and isinstance(node.args[0], fx.Node)
        and isinstance(node.args[0].meta.get("val"), tuple | list)
    )


def _overload_call(node: fx.Node, target: torch._ops.OpOverload) -> Call:
    operands: list[fx.Node | None] = []
    attributes: dict[str, Attribute] = {}
    for place, parameter in enumerate(_parameters(target)):
        given = place < len(node.args) or parameter.name in node.kwargs
        value = node.args[place] if place < len(node.args) else node.kwargs.get(parameter.name, parameter.default)
        if parameter.kind == "list" and isinstance(value, Sequence):
            operands.extend(item if isinstance(item, fx.Node) else None for item in value)
        elif parameter.kind in ("tensor", "optional") and (value is None or isinstance(value, fx.Node)):
            operands.append(value)
        elif given or value is not None or parameter.name not in _SILENT:
            attributes[parameter.name] = _literal(value)
    op = _op_name(target)
    return _refined(node, Call(op, str(target), operands, attributes))


def _op_name(target: torch._ops.OpOverload) -> str:
    name = _packet_name(target)
    if target.namespace == "regraft":
        return name
    if target.namespace != "aten":
        return f"{target.namespace}.{name}"
    canonical_name = _NAMES.get(name, name)
    return canonical_name if canonical_name in _OWN else f"aten.{name}"


def _refined(node: fx.Node, call: Call) -> Call:
    """Attributes in one spelling, and operations that change nothing called by their name."""
    attributes = {_RENAMED.get((call.op, name), name): value for name, value in call.attributes.items()}
    op = call.op
    if op == "transpose":
        permutation = _permutation(node, attributes)
        attributes = {} if permutation is None else {"perm": permutation}
    elif (op == "slice" and _is_whole(attributes)) or (op == "cast" and _same_type(node)):
        op = "identity"
    return Call(op, call.native, call.operands, attributes)


def _permutation(node: fx.Node, attributes: Mapping[str, Attribute]) -> tuple[int, ...] | None:
    value = node.meta.get("val")
    if not isinstance(value, Tensor):
        return None
    order = list(range(value.ndim))
    if "dims" in attributes:
        dims = cast("tuple[int, ...]", attributes["dims"])
        return tuple(dim % value.ndim for dim in dims)
    if "dim0" in attributes:
        first, second = cast(int, attributes["dim0"]), cast(int, attributes["dim1"])
        if order:
            order[first], order[second] = order[second], order[first]
        return tuple(order)
    return tuple(reversed(order))


def _is_whole(attributes: Mapping[str, Attribute]) -> bool:
    return (
        attributes.get("start") in (0, None)
        and attributes.get("end") in (_FULL, None)
        and attributes.get("step", 1) == 1
    )


def _same_type(node: fx.Node) -> bool:
    before = node.args[0].meta.get("val") if node.args and isinstance(node.args[0], fx.Node) else None
    after = node.meta.get("val")
    if not isinstance(before, Tensor) or not isinstance(after, Tensor):
        return False
    return before.dtype == after.dtype and before.device == after.device


@lru_cache(maxsize=4096)
def _parameters(target: torch._ops.OpOverload) -> tuple[_Parameter, ...]:
    return tuple(
        _Parameter(argument.name, _kind(str(argument.type)), argument.default_value)
        for argument in target._schema.arguments
    )


def _kind(schema_type: str) -> str:
    kinds = {"Tensor": "tensor", "Optional[Tensor]": "optional"}
    kinds.update({"List[Tensor]": "list", "List[Optional[Tensor]]": "list"})
    return kinds.get(schema_type, "other")


def _packet_name(target: torch._ops.OpOverload) -> str:
    return target._schema.name.split("::")[1]


def _qualified(target: Any) -> str:
    name = getattr(target, "__name__", str(target))
    module = getattr(target, "__module__", None) or ""
    return f"{module.lstrip('_')}.{name}" if module else str(name)


def _literal(value: Any) -> Attribute:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, fx.Node):
        return value.name
    if isinstance(value, torch.dtype):
        return dtype_name(value)
    if isinstance(value, list | tuple):
        return tuple(_literal(item) for item in cast("Sequence[Any]", value))
    return str(value)
