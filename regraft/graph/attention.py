"""Finding attention, as one node and spelled out, with the splitting and merging of heads around it.

y = softmax(scale · q · kᵀ + bias) · v        torch scaled_dot_product_attention, ONNX Attention,
                                              com.microsoft MultiHeadAttention, and the two products themselves
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final

from regraft.graph._attention_nodes import MASK_DIMS, SPELLED_FROM, Core, fused_core, spelled_core, without_factors
from regraft.graph.graph import Graph
from regraft.graph.heads import merged, packed, shape_of, unrepeated
from regraft.graph.site import NearMiss, Numbering, Site
from regraft.graph.types import Dim
from regraft.graph.view import Node, Value

FUSED: Final = frozenset({"attention", "multi_head_attention"})


@dataclass(frozen=True, eq=False)
class AttentionSite(Site):
    """y = softmax(scale · q · kᵀ + bias, masked) · v, however the graph spells it.

    Its operands are "q", "k", "v", "mask" (booleans) and "bias" (numbers) where there are any; several of a kind are
    "mask", "mask#2", ... They have 4 dims or fewer, and hold together.

    Attributes:
        heads: number of query heads.
        kv_heads: number of key and value heads.
        head_size: width of a query's or key's head.
        scale: factor of the scores.
        causal: whether a query sees only the keys up to its own place.
        split: whether q, k and v are [batch, rows, heads · head_size], else [batch, heads, rows, head_size].
        rows: whether its result is [batch · rows, heads · head_size] at once.
        op: the operation that it was found by ("attention", "multi_head_attention", or "softmax" when spelled out).
        native: that operation as its own language spells it ("aten.scaled_dot_product_attention.default").
        mask_heads: heads that the mask and the bias tell apart; 1 when all have the same, or there is none.
        nested: whether it lives in a nested body (If, Loop, Scan).
    """

    heads: int
    kv_heads: int
    head_size: int
    scale: float
    causal: bool
    split: bool
    op: str
    native: str
    mask_heads: Dim = 1
    nested: bool = False
    rows: bool = False

    def describe(self) -> str:
        """Return the heads, and how many nodes compute them."""
        groups = "" if self.heads == self.kv_heads else f" on {self.kv_heads}"
        return f"{self.heads}{groups} heads of {self.head_size}, {len(self.nodes)} nodes"

    @property
    def attributes(self) -> Mapping[str, int | float]:
        """Attributes of the op `multi_head_attention`."""
        return {
            "heads": self.heads,
            "kv_heads": self.kv_heads,
            "split": int(self.split),
            "scale": self.scale,
            "causal": int(self.causal),
            "rows": int(self.rows),
        }


def find_attention_sites(graph: Graph) -> tuple[list[AttentionSite], list[NearMiss]]:
    """Return every attention in graph order, and what looked like one and is none, with the reasons.

    Several in one module get "#2", "#3" behind the module's name.
    """
    sites: list[AttentionSite] = []
    misses: list[NearMiss] = []
    numbering = Numbering()
    for node in graph.nodes():
        recognize = _recognizer(node)
        if recognize is None:
            continue
        core = recognize(graph, node)
        found = core if isinstance(core, str) else _site(graph, node, core)
        if isinstance(found, str):
            misses.append(NearMiss(node.scope or node.key, found))
            continue
        sites.append(numbering.apart(found))
    return sites, misses


def _recognizer(node: Node) -> Callable[[Graph, Node], Core | str] | None:
    if node.op in FUSED or node.native in ("com.microsoft::Attention", "com.microsoft::GroupQueryAttention"):
        return fused_core
    return spelled_core if node.op == SPELLED_FROM else None


def _site(graph: Graph, node: Node, core: Core) -> AttentionSite | str:
    if core.packed:
        heads, kv_heads = core.packed
        width = shape_of(core.q)[-1:]
        if not width or not isinstance(width[0], int):
            return f"the width of its queries is not known ({core.q.type})"
        return _made(node, core, heads, kv_heads, width[0] // heads, split=True)
    core = without_factors(graph, _unrepeated(core))
    return (_with_packed_keys if len(shape_of(core.k)) == 3 else _of_heads)(graph, node, core)


def _of_heads(graph: Graph, node: Node, core: Core) -> AttentionSite | str:
    for value in (core.q, core.k, core.v):
        if len(shape_of(value)) != 4 or not isinstance(shape_of(value)[1], int):
            return f"the heads of {value.key} are not known ({value.type})"
    heads, kv_heads, head_size = shape_of(core.q)[1], shape_of(core.k)[1], shape_of(core.q)[3]
    if not isinstance(head_size, int):
        return f"the width of a head of {core.q.key} is not known ({core.q.type})"
    if shape_of(core.v)[1] != kv_heads or int(heads) % int(kv_heads):
        return f"{heads} query heads do not share {kv_heads} key and {shape_of(core.v)[1]} value heads evenly"
    whole = _widened(graph, core)
    return _made(node, core if whole is None else whole, int(heads), int(kv_heads), head_size, split=whole is not None)


def _with_packed_keys(graph: Graph, node: Node, core: Core) -> AttentionSite | str:
    """Keys that were split and turned at once: only with queries and values whose splits are there too."""
    whole, shape = _widened(graph, core), shape_of(core.q)
    if whole is None or len(shape) != 4 or not isinstance(shape[1], int) or not isinstance(shape[3], int):
        return f"its keys are split into heads and turned at once, its queries {core.q.key} are not split beside them"
    if shape_of(whole.k)[2] != shape_of(whole.q)[2]:
        return f"its keys {whole.k.type} are not as wide as its queries {whole.q.type}"
    return _made(node, whole, shape[1], shape[1], shape[3], split=True)


def _unrepeated(core: Core) -> Core:
    """Keys and values before their heads were repeated for the queries, where both were."""
    k, k_nodes = unrepeated(core.k)
    v, v_nodes = unrepeated(core.v)
    if not k_nodes or not v_nodes or shape_of(k)[1] != shape_of(v)[1]:
        return core
    return replace(core, k=k, v=v, nodes=(*core.nodes, *k_nodes, *v_nodes))


def _widened(graph: Graph, core: Core) -> Core | None:
    """With the splitting and merging of heads, where all of it is there."""
    nodes = core.nodes
    operands: list[Value] = []
    for value in (core.q, core.k, core.v):
        wide, passed = (value, ()) if len(shape_of(value)) == 3 else packed(value)
        if wide is None:
            return None
        operands.append(wide)
        nodes += passed
    output, passed = merged(core.output)
    if output is None:
        return None
    q, k, v = operands
    return without_factors(graph, replace(core, q=q, k=k, v=v, output=output, nodes=(*nodes, *passed)))


def _made(node: Node, core: Core, heads: int, kv_heads: int, head_size: int, *, split: bool) -> AttentionSite | str:
    problem = next((reason for mask in core.masks if (reason := _mask_problem(core, heads, mask))), "")
    if problem:
        return problem
    operands = {"q": core.q.key, "k": core.k.key, "v": core.v.key}
    for mask in core.masks:
        kind = "mask" if mask.type.dtype == "bool" else "bias"
        count = sum(name.split("#")[0] == kind for name in operands) + 1
        operands[kind if count == 1 else f"{kind}#{count}"] = mask.key
    return AttentionSite(
        name=node.scope or node.key,
        operands=operands,
        output=core.output.key,
        nodes=tuple(dict.fromkeys(covered.key for covered in core.nodes)),
        heads=heads,
        kv_heads=kv_heads,
        head_size=head_size,
        scale=1 / math.sqrt(head_size) if core.scale is None else core.scale,
        causal=core.causal,
        mask_heads=next((extent for extent in map(_mask_heads, core.masks) if extent != 1), 1),
        split=split,
        op=node.op,
        native=node.native,
        nested=core.output.nested,
        rows=split and len(shape_of(core.output)) == 2,
    )


def _mask_problem(core: Core, heads: int, mask: Value) -> str:
    shape = mask.type.shape
    if shape is None or len(shape) > MASK_DIMS:
        return f"its mask {mask.key} is {mask.type}, {MASK_DIMS} dims are needed or fewer"
    q, k = shape_of(core.q), shape_of(core.k)
    scores = (q[0], heads, q[-2], k[-2]) if q and k else ()
    wider = any(own == 1 and other != 1 for own, other in zip(reversed(scores), reversed(shape), strict=False))
    if not wider:
        return ""
    extents = ", ".join(map(str, scores))
    return f"its mask {mask.key} ({mask.type}) has more than its scores [{extents}], which it would widen"


def _mask_heads(mask: Value) -> Dim:
    shape = shape_of(mask)
    return shape[-3] if len(shape) >= 3 else 1
