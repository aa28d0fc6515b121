"""The core of attention, from its operands to its result, in each of its spellings."""

import math
from dataclasses import dataclass, replace
from typing import Final, cast

from regraft.graph._choices import choice_of, operands, sides_of
from regraft.graph.graph import Graph
from regraft.graph.heads import SPLIT_TURNED, Nodes, origin, packed, unturned
from regraft.graph.scalars import scalar_of, scalar_operand
from regraft.graph.view import Node, Value

MASK_DIMS: Final = 4
"""Dims of a mask beside scores; one of fewer is broadcast."""

SPELLED_FROM: Final = "softmax"
"""The operation that attention spelled out is found by."""


@dataclass(frozen=True, eq=False)
class Core:
    """Operands and result of softmax(scale · q · kᵀ + masks) · v.

    Attributes:
        masks: booleans, or numbers that are added; all of them hold together.
        scale: None for 1 / sqrt(width of a head).
        packed: query heads, and key and value heads, when they lie side by side in the last dim; else they are the
            second dim.
    """

    q: Value
    k: Value
    v: Value
    masks: tuple[Value, ...]
    output: Value
    nodes: Nodes
    scale: float | None
    causal: bool = False
    packed: tuple[int, int] | None = None


def fused_core(graph: Graph, node: Node) -> Core | str:
    """Return the core of a node that is attention, or why it cannot be read."""
    del graph
    if node.op == "multi_head_attention":
        return _ours(node)
    if node.native.startswith("aten."):
        return _torch(node)
    if node.native == "Attention":
        return _standard(node)
    if node.native == "com.microsoft::MultiHeadAttention":
        return _multi_head(node)
    return f"{node.native} projects queries, keys and values itself"


def _plain(node: Node, *masks: Value | None) -> Core | str:
    q, k, v, *_ = operands(node, 3)
    if q is None or k is None or v is None:
        return "its queries, keys and values are packed into one tensor"
    given = tuple(mask for mask in masks if mask is not None)
    return Core(q, k, v, given, node.outputs[0], (node,), None)


def _ours(node: Node) -> Core | str:
    _, _, _, mask, bias = operands(node, 5)
    core = _plain(node, mask, bias)
    if isinstance(core, str):
        return core
    split, scale = node.attributes["split"], cast(float, node.attributes["scale"])
    counts = (cast(int, node.attributes["heads"]), cast(int, node.attributes["kv_heads"]))
    return replace(
        core,
        scale=scale,
        causal=bool(node.attributes["causal"]),
        packed=counts if split else None,
    )


def _torch(node: Node) -> Core | str:
    core = _plain(node, operands(node, 4)[3])
    if isinstance(core, str):
        return core
    if node.attributes.get("dropout_p", 0.0):
        return f"it drops out {node.attributes['dropout_p']} of its weights, as in training; call model.eval() first"
    scale = node.attributes.get("scale")
    causal = bool(node.attributes.get("is_causal", False))
    return replace(core, scale=None if scale is None else cast(float, scale), causal=causal)


def _standard(node: Node) -> Core | str:
    _, _, _, offset, *past = operands(node, 6)
    core = _plain(node, offset)
    if isinstance(core, str):
        return core
    if any(value is not None for value in past) or any(value.users or value.is_output for value in node.outputs[1:]):
        return "it reads or returns a cache of keys and values"
    if node.attributes.get("softcap", 0.0):
        return f"it caps its scores (softcap={node.attributes['softcap']})"
    scale, heads = node.attributes.get("scale"), node.attributes.get("q_num_heads")
    packed = None if core.q.type.rank != 3 else (cast(int, heads), cast(int, node.attributes.get("kv_num_heads")))
    causal = bool(node.attributes.get("is_causal", 0))
    return replace(core, scale=None if scale is None else cast(float, scale), causal=causal, packed=packed)


def _multi_head(node: Node) -> Core | str:
    _, _, _, bias, key_mask, offset, *past = operands(node, 8)
    core = _plain(node, offset)
    if isinstance(core, str):
        return core
    if bias is not None or key_mask is not None:
        return "it adds biases to its projections, or has a mask of lengths"
    if any(value is not None for value in past) or any(value.users or value.is_output for value in node.outputs[1:]):
        return "it reads or returns a cache of keys and values"
    if core.k.type.rank not in (None, 3) or node.attributes.get("unidirectional", 0):
        return "its keys are split into heads already, or it is causal"
    heads, scale = cast(int, node.attributes["num_heads"]), node.attributes.get("scale")
    return replace(core, scale=None if scale in (None, 0.0) else cast(float, scale), packed=(heads, heads))


def spelled_core(graph: Graph, softmax: Node) -> Core | str:
    """Return the core of attention around a softmax, or why there is none."""
    weights, after = _weights_used(graph, softmax)
    if weights is None:
        return "what its softmax gives is not the left operand of one product"
    axis = softmax.attributes.get("axis", softmax.attributes.get("dim", -1))
    rank = softmax.outputs[0].type.rank
    if axis != -1 and (rank is None or axis != rank - 1):
        return f"its softmax is over dim {axis}, not the last"
    v = weights.inputs[1]
    scores = softmax.inputs[0]
    if v is None or scores is None:
        return "its product has no right operand"
    found = _scores(graph, scores)
    if isinstance(found, str):
        return found
    q, k, masks, scale, nodes = found
    return Core(q, k, v, masks, weights.outputs[0], (weights, *after, softmax, *nodes), scale)


def _weights_used(graph: Graph, softmax: Node) -> tuple[Node | None, Nodes]:
    """The product that reads the softmax, and the nodes between: dropout, and the guard for rows of NaN."""
    value, passed = softmax.outputs[0], ()
    while not value.is_output:
        users = value.users
        guard = _guarded(graph, value)
        if guard:
            passed += guard
            value = guard[-1].outputs[0]
        elif len(users) == 1 and users[0].op == "matmul" and users[0].inputs[0] is value:
            return users[0], passed
        elif len(users) == 1 and origin(users[0].outputs[0])[0] is origin(value)[0]:
            passed += (users[0],)
            value = users[0].outputs[0]
        else:
            break
    return None, ()


def _guarded(graph: Graph, value: Value) -> Nodes:
    """The nodes of where(isnan(value), 0, value), or none."""
    tests = [node for node in value.users if node.op in ("is_na_n", "aten.isnan")]
    choices = [node for node in value.users if node.op == "where"]
    if len(value.users) != 2 or len(tests) != 1 or len(choices) != 1:
        return ()
    condition, sides, numbers = sides_of(graph, choices[0])
    return (tests[0], choices[0]) if condition is tests[0].outputs[0] and sides[1] is value and numbers[0] == 0 else ()


Scores = tuple[Value, Value, tuple[Value, ...], float, Nodes]


def _scores(graph: Graph, value: Value) -> Scores | str:
    """q, k, the masks and the scale that scores come from: a product, scaled, to which masks were added."""
    value, passed = origin(value)
    node = value.producer
    if node is None:
        return "its scores are not computed"
    if _read_elsewhere(value):
        return f"its scores {value.key} are read elsewhere too"
    if node.op == "add" and node.attributes.get("alpha", 1) == 1 and None not in node.inputs and len(node.inputs) == 2:
        return _masked(graph, node, passed)
    return _chosen(graph, node, passed) if node.op in ("where", "masked_fill") else _product(graph, value, passed)


def _product(graph: Graph, value: Value, passed: Nodes) -> Scores | str:
    found = _scaled(graph, value)
    if isinstance(found, str):
        return found
    node, scale, nodes = found
    q, k = operands(node, 2)
    if q is None or k is None:
        return "its scores are no product of two operands"
    q, q_scale, q_nodes = _factored(graph, q)
    turned, k_scale, k_nodes = _factored(graph, k)
    k, k_more = unturned(graph, turned)
    if k is None:  # from [batch, keys, heads, head] at once: without the split, there is no other value to read
        k, k_more = packed(turned, SPLIT_TURNED)
    if k is None:
        return f"its right operand {turned.key} is not turned from [batch, heads, keys, head]"
    return q, k, (), scale * q_scale * k_scale, (*passed, *nodes, *q_nodes, *k_nodes, *k_more)


def without_factors(graph: Graph, core: Core) -> Core:
    """With the multiplications of its queries and keys by numbers in its scale."""
    if core.scale is None:
        return core
    q, q_scale, q_nodes = _factored(graph, core.q)
    k, k_scale, k_nodes = _factored(graph, core.k)
    return replace(core, q=q, k=k, scale=core.scale * q_scale * k_scale, nodes=(*core.nodes, *q_nodes, *k_nodes))


def _read_elsewhere(value: Value) -> bool:
    return value.is_output or len(value.users) != 1


def _masked(graph: Graph, node: Node, passed: Nodes) -> Scores | str:
    first, second = cast("tuple[Value, Value]", tuple(node.inputs))
    reasons: list[str] = []
    for scores, offset in ((first, second), (second, first)):
        found = _scores(graph, scores)
        if isinstance(found, str):
            reasons.append(found)
        else:
            q, k, masks, scale, nodes = found
            return q, k, (*masks, _choice_behind(offset, graph)), scale, (*passed, node, *nodes)
    return reasons[0]


def _choice_behind(offset: Value, graph: Graph) -> Value:
    """The booleans behind where(mask, 0, -inf), which say the same in a quarter of the bytes; else the offset."""
    node = origin(offset)[0].producer
    if node is None or node.op != "where":
        return offset
    mask, yes, no = operands(node, 3)
    if mask is None or yes is None or no is None or mask.type.rank not in range(MASK_DIMS + 1):
        return offset
    return mask if scalar_of(graph, yes) == 0.0 and scalar_of(graph, no) == -math.inf else offset


def _chosen(graph: Graph, node: Node, passed: Nodes) -> Scores | str:
    choice = choice_of(graph, node)
    if choice is None:
        return "its scores are chosen between two tensors"
    allowed, scores, fill = choice
    if fill != -math.inf:
        return (
            f"what it must not look at is filled with {fill:g}, not with -inf; a row that is hidden throughout differs"
        )
    if allowed is None:
        return "what it must not look at is marked, not what it may look at"
    found = _scores(graph, scores)
    if isinstance(found, str):
        return found
    q, k, masks, scale, nodes = found
    return q, k, (*masks, allowed), scale, (*passed, node, *nodes)


def _scaled(graph: Graph, value: Value) -> tuple[Node, float, Nodes] | str:
    value, scale, nodes = _factored(graph, value)
    node = value.producer
    if node is None or node.op != "matmul":
        return f"its scores {value.key} are no product of queries and keys"
    if _read_elsewhere(value):
        return f"its scores {value.key} are read elsewhere too"
    return node, scale, (*nodes, node)


def _factored(graph: Graph, value: Value) -> tuple[Value, float, Nodes]:
    """Where a value comes from through multiplications by numbers, and their product."""
    scale, nodes = 1.0, ()
    while True:
        value, passed = origin(value)
        nodes += passed
        node = value.producer
        step = None if node is None else _scaling(graph, node)
        if node is None or step is None:
            return value, scale, nodes
        value, factor = step
        scale *= factor
        nodes += (node,)


def _scaling(graph: Graph, node: Node) -> tuple[Value, float] | None:
    """Return what a node multiplies by a number, and the number; None when it does something else."""
    found = scalar_operand(graph, node) if node.op in ("mul", "div") else None
    if found is None or node.op == "mul":
        return None if found is None else (found.value, found.number)
    return None if found.number_first or not found.number else (found.value, 1 / found.number)
