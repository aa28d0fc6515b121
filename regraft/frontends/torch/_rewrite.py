"""Puts one structured op in the place of a site of a program."""

# torch has no public name for the schema of an operator.
# pyright: reportPrivateUsage=false

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx, nn

from regraft.errors import GraphError
from regraft.frontends.torch._program import Program
from regraft.frontends.torch.library import torch_op
from regraft.graph.graph import Attributes, Replacement, StructuredOp
from regraft.graph.view import Value

_STALE_META = ("torch_fn", "source_fn_stack", "original_aten", "tensor_meta")


@dataclass(frozen=True)
class Rewrite:
    """What became of the nodes."""

    changed: fx.Node
    added: Sequence[fx.Node]
    erased: Sequence[fx.Node]


def rewrite(
    program: Program,
    site: Replacement,
    op: StructuredOp,
    tensors: Mapping[str, Tensor | Value | None],
    attributes: Attributes,
) -> Rewrite:
    """Turn the node of the site's output into a call of `op`; drop what only the site needed.

    Raises:
        GraphError: when the site is not in the graph, or operands or attributes do not fit the op.
        UnknownNameError: when torch knows no op of that name.
    """
    output = program.node(site.output, site.name)
    if output.op != "call_function":
        raise GraphError(f"{site.name}: {output.name} is a {output.op}, only a computed value can be replaced")
    target = torch_op(op.name)
    _check_arguments(site, op.name, target, tensors, attributes)
    operands = _existing(program, site, tensors, output)
    replaced = [output, *(program.index[key] for key in site.nodes if key in program.index)]
    trainable = _is_trainable(program, replaced)
    erased = _clear(program, site.name, replaced, [*operands.values()])
    added: list[fx.Node] = []
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            continue
        shared = program.shared_constant(tensor, output)
        if shared is None:
            full = program.store.free_name(site.name, name)
            program.store.add(full, tensor, requires_grad=trainable)
            shared = program.add_constant(full, output)
            added.append(shared)
        operands[name] = shared
    _call(output, target, operands, attributes)
    program.changed()
    return Rewrite(output, added, erased)


def _clear(program: Program, layer: str, replaced: Sequence[fx.Node], kept: Sequence[fx.Node]) -> list[fx.Node]:
    """Take the operands from the first of the replaced nodes; erase the others, and what only they needed."""
    output, *_ = replaced
    constants = _constants_of(replaced)
    candidates = [*output.all_input_nodes, *replaced]
    output.args, output.kwargs = (), {}
    erased = program.erase_unread(candidates, {output, *kept})
    _forget_layer_names(program, layer, [node for node in constants if node.name in program.index])
    return erased


def _call(output: fx.Node, target: Any, operands: Mapping[str, fx.Node], attributes: Attributes) -> None:
    names = [argument.name for argument in target._schema.arguments if not argument.kwarg_only]
    args = [operands.get(name) for name in names]
    while args and args[-1] is None:
        args.pop()
    output.target, output.args, output.kwargs = target, tuple(args), dict(attributes)
    output.meta = {key: value for key, value in output.meta.items() if key not in _STALE_META}


def _check_arguments(
    site: Replacement,
    name: str,
    target: Any,
    tensors: Mapping[str, Tensor | Value | None],
    attributes: Attributes,
) -> None:
    arguments = target._schema.arguments
    operands = {argument.name for argument in arguments if not argument.kwarg_only}
    needed = {argument.name for argument in arguments if not argument.has_default_value()}
    given = {*site.operands, *(key for key, value in tensors.items() if value is not None), *attributes}
    unknown = sorted({*site.operands, *tensors} - operands) + sorted(
        set(attributes) - {argument.name for argument in arguments if argument.kwarg_only}
    )
    if unknown:
        raise GraphError(f"{site.name}: {name} takes {', '.join(a.name for a in arguments)}; got {unknown[0]!r}")
    missing = [argument.name for argument in arguments if argument.name in needed - given]
    if missing:
        raise GraphError(f"{site.name}: {name} needs {missing[0]!r}, it was not given")


def _existing(
    program: Program, site: Replacement, tensors: Mapping[str, Tensor | Value | None], output: fx.Node
) -> dict[str, fx.Node]:
    """Nodes of the operands that are in the graph already, all of them before the output."""
    keys = dict(site.operands)
    keys.update({name: value.key for name, value in tensors.items() if isinstance(value, Value)})
    found = {name: program.node(key, site.name) for name, key in keys.items()}
    for name, node in found.items():
        if output < node and node.op == "get_attr":
            output.prepend(node)
        elif not node < output:
            raise GraphError(f"{site.name}: operand {name!r} ({node.name}) is computed after {output.name}")
    return found


def _constants_of(nodes: Sequence[fx.Node]) -> list[fx.Node]:
    return [operand for node in nodes for operand in node.all_input_nodes if operand.op == "get_attr"]


def _is_trainable(program: Program, nodes: Sequence[fx.Node]) -> bool:
    """Whether new weights take gradients: as the ones that they replace do, and yes where there are none."""
    replaced = [program.store.get(str(node.target)) for node in _constants_of(nodes)]
    parameters = [tensor for tensor in replaced if isinstance(tensor, nn.Parameter)]
    return any(parameter.requires_grad for parameter in parameters) or not parameters


def _forget_layer_names(program: Program, layer: str, constants: Sequence[fx.Node]) -> None:
    """Take the layer's own names from tied weights that other layers go on reading."""
    for node in constants:
        names = program.store.aliases(str(node.target))
        own = [name for name in names if name.startswith(f"{layer}.")]
        if own and len(own) < len(names):
            node.target = next(name for name in names if name not in own)
            for name in own:
                program.store.forget(name)
