"""Every structured op as a torch op, `torch.ops.regraft.<name>`, from its one declaration.

An op is registered as a composite of what its `decompose` calls: torch.export keeps it as one node (also through
`run_decompositions({})`), autograd, fake tensors and inductor see through it.
"""

from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor

from regraft.errors import UnknownNameError
from regraft.ops import AttributeValue, Op, TorchBuilder, all_ops

NAMESPACE: Final = "regraft"
_LIBRARY: Final = torch.library.Library(NAMESPACE, "FRAGMENT")  # ops vanish when their library is collected


def register_ops() -> None:
    """Register every op of `regraft.ops` that is not registered yet."""
    for op in all_ops().values():
        if not hasattr(getattr(torch.ops, NAMESPACE), op.name):
            _LIBRARY.define(schema_of(op), tags=(torch.Tag.pt2_compliant_tag,))
            _LIBRARY.impl(op.name, _implementation(op), "CompositeImplicitAutograd")


def schema_of(op: Op) -> str:
    """Return the op's schema: operands by position, attributes by keyword.

    `lowrank_linear(Tensor x, Tensor down, Tensor up, Tensor? bias=None) -> Tensor`
    """
    operands = [
        f"Tensor? {operand.name}=None" if operand.optional else f"Tensor {operand.name}" for operand in op.operands
    ]
    attributes = [f"{kind} {name}" for name, kind in op.attributes.items()]
    parameters = ", ".join([*operands, *(["*", *attributes] if attributes else [])])
    return f"{op.name}({parameters}) -> Tensor"


def torch_op(name: str) -> Any:
    """Return the torch op of a structured op (its default overload).

    Raises:
        UnknownNameError: when `regraft.ops` has none of that name and nobody else registered one.
    """
    namespace = getattr(torch.ops, NAMESPACE)
    if not hasattr(namespace, name):
        raise UnknownNameError(f"torch.ops.{NAMESPACE} has no {name!r}; it has: {', '.join(all_ops())}")
    return getattr(namespace, name).default


def _implementation(op: Op) -> Callable[..., Tensor]:
    builder = TorchBuilder()

    def compute(*operands: Tensor | None, **attributes: AttributeValue) -> Tensor:
        return op.decompose(builder, *operands, **attributes)

    return compute
