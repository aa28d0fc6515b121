"""Puts one structured op in the place of a site of a program."""

# torch has no public name for the schema of an operator.
# pyright: reportPrivateUsage=false

from collections.abc import Collection, Mapping, Sequence
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

    changed: Sequence[fx.Node]
    added: Sequence[fx.Node]
    erased: Sequence[fx.Node]


@dataclass(frozen=True)
class _Place:
    """One call of the site: the node to turn, the operands that are there already, and all nodes that it covers."""

    layer: str
    output: fx.Node
    operands: Mapping[str, fx.Node]
    covered: Sequence[fx.Node]


def rewrite(
    program: Program,
    site: Replacement,
    op: StructuredOp,
    tensors: Mapping[str, Tensor | Value | None],
    attributes: Attributes,
) -> Rewrite:
    """Turn the nodes of the site's outputs into calls of `op` with one set of weights; drop what only the site needed.

    Raises:
        GraphError: when the site is not in the graph, or operands or attributes do not fit the op.
        UnknownNameError: when torch knows no op of that name.
    """
    target = torch_op(op.name)
    places = [_place(program, call, op.name, target, tensors, attributes) for call in site.calls]
    trainable = _is_trainable(program, [node for place in places for node in place.covered])
    kept = {node for place in places for node in (place.output, *place.operands.values())}
    erased = [node for place in places for node in _clear(program, place, kept)]
    fresh, added = _weights(program, site, tensors, places[0].output, trainable=trainable)
    for place in places:
        _call(place.output, target, {**place.operands, **fresh}, attributes)
    program.changed()
    return Rewrite([place.output for place in places], added, erased)


def insert(
    program: Program, op: StructuredOp, operands: Mapping[str, str], attributes: Attributes, before: str, name: str
) -> fx.Node:
    """Call `op` in front of the node of `before`, unless it is called there already; return the call.

    Raises:
        GraphError: when a key is not in the graph, or an operand comes later.
        UnknownNameError: when torch knows no op of that name.
    """
    target, place = torch_op(op.name), program.node(before, name)
    given = {label: program.node(key, name) for label, key in operands.items()}
    for label, node in given.items():
        if not node < place:
            raise GraphError(f"{name}: operand {label!r} ({node.name}) is computed after {before}")
    args = _arguments(target, given)
    kwargs: dict[str, Any] = dict(attributes)
    for user in next(iter(given.values())).users:
        if user.target == target and user.args == args and user.kwargs == kwargs and user < place:
            return user
    with program.graph.inserting_before(place):
        node = program.graph.create_node("call_function", target, args, kwargs, name=name.replace(".", "_"))
    node.meta = {key: value for key, value in place.meta.items() if key not in ("val", *_STALE_META)}
    fakes: list[Any] = [argument.meta.get("val") if isinstance(argument, fx.Node) else argument for argument in args]
    mode: Any = next((found for value in fakes if (found := getattr(value, "fake_mode", None)) is not None), None)
    if mode is not None:
        with mode:
            node.meta["val"] = target(*fakes, **kwargs)
    program.index[node.name] = node
    program.changed()
    return node


def _place(
    program: Program,
    site: Replacement,
    name: str,
    target: Any,
    tensors: Mapping[str, Tensor | Value | None],
    attributes: Attributes,
) -> _Place:
    output = program.node(site.output, site.name)
    if output.op != "call_function":
        raise GraphError(f"{site.name}: {output.name} is a {output.op}, only a computed value can be replaced")
    _check_arguments(site, name, target, tensors, attributes)
    covered = [output, *(program.index[key] for key in site.nodes if key in program.index)]
    return _Place(site.name, output, _existing(program, site, tensors, output), covered)


def _weights(
    program: Program,
    site: Replacement,
    tensors: Mapping[str, Tensor | Value | None],
    before: fx.Node,
    *,
    trainable: bool,
) -> tuple[dict[str, fx.Node], list[fx.Node]]:
    """Nodes that read the new tensors, by operand; and those among them that were added."""
    nodes: dict[str, fx.Node] = {}
    added: list[fx.Node] = []
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            continue
        shared = program.shared_constant(tensor, before)
        if shared is None:
            full = program.store.free_name(site.name, name)
            program.store.add(full, tensor, requires_grad=trainable)
            shared = program.add_constant(full, before)
            added.append(shared)
        nodes[name] = shared
    return nodes, added


def _clear(program: Program, place: _Place, kept: Collection[fx.Node]) -> list[fx.Node]:
    """Take the operands from the output's node; erase the other covered ones, and what only they needed."""
    constants = _constants_of(place.covered)
    candidates = [*place.output.all_input_nodes, *place.covered]
    place.output.args, place.output.kwargs = (), {}
    erased = program.erase_unread(candidates, kept)
    left = [node for node in constants if node.name in program.index and node not in kept]
    _forget_layer_names(program, place.layer, left)
    return erased


def _call(output: fx.Node, target: Any, operands: Mapping[str, fx.Node], attributes: Attributes) -> None:
    output.target, output.args, output.kwargs = target, _arguments(target, operands), dict(attributes)
    output.meta = {key: value for key, value in output.meta.items() if key not in _STALE_META}


def _arguments(target: Any, operands: Mapping[str, fx.Node]) -> tuple[fx.Node | None, ...]:
    """Operands by position, without the absent ones at the end."""
    names = [argument.name for argument in target._schema.arguments if not argument.kwarg_only]
    args = [operands.get(name) for name in names]
    while args and args[-1] is None:
        args.pop()
    return tuple(args)


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
