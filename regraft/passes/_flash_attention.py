"""How the pass flash-svd makes attention walk its heads: in rank space, or with the projections as they are."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from regraft.graph import AttentionBlock
from regraft.graph.attention_block import Part
from regraft.numerics.moments import Moments
from regraft.numerics.rank_space import Shared, joint_factors, joint_rank, most_rank, root_of
from regraft.ops.lowrank_attention import op as lowrank_attention
from regraft.passes._flash_mlp import Ranks, cut
from regraft.passes._flash_plan import FlashPlan, bytes_of
from regraft.passes._pass import Reject

FLOOR: Final = 1e-14
"""Share of a product's largest singular value that rounding in float64 leaves of a zero."""

GROUP_WIDTH: Final = 128
"""Width up to which heads are computed together: wide enough for a fast product, and a fraction of the hidden state."""


@dataclass(frozen=True, eq=False)
class _Form:
    """One way to write a block: its weights, what it says of itself, and the error of the products that were cut.

    `shared` tells whose first factor is that of others, too; see the op.
    """

    tensors: dict[str, Tensor]
    text: str
    head: int
    error: float = 0.0
    shared: str = "none"

    @property
    def size(self) -> int:
        """Parameters, which are the multiply-adds of a token beside those of the scores."""
        return sum(tensor.numel() for tensor in self.tensors.values() if tensor.dim() == 2)


def plan_attention(
    block: AttentionBlock, ranks: Ranks, head_rank: int | None, blocks: int, moments: Mapping[str, Moments]
) -> FlashPlan | Reject:
    """Plan a block, or say why not; `moments` are of what its layers read, by key."""
    site = block.attention
    problem = _blocks_problem(block, blocks)
    if problem:
        return Reject(problem)
    if head_rank is not None and head_rank > site.head_size:
        return Reject(f"head_rank={head_rank} is above the size of its heads, {site.head_size}")
    outer = cut(block.outer, ranks, moments)
    if isinstance(outer, Reject):
        return outer
    first, last = (outer.up, None) if outer.down is None else (outer.down, outer.up)
    behind = {"out": first} | ({} if last is None else {"out_up": last})
    rank = head_rank or _kept(block, ranks.keep)
    forms = [_rank_space(block, rank, behind, outer.error, {}, moments)]
    if rank is None:
        forms.append(_as_it_is(block, behind, outer.error))
    bases = _bases(block)
    if bases:
        forms.append(_rank_space(block, rank, behind, outer.error, bases, moments))
    form = min(forms, key=lambda item: item.size)
    present = sum(_parameters(layer.down) + _parameters(layer.up) for layer in block.projections)
    factored = any(layer.is_factored for layer in block.projections)
    if not (factored or ranks.cuts or head_rank) and form.size >= present:
        return Reject("its projections are dense; run low-rank before, or give keep= or head_rank=")
    if form.size > present:
        figures = " and ".join(f"{item.text} would take {item.size:,}" for item in forms)
        return Reject(f"{figures} multiply-adds a token, its projections take {present:,}")
    tensors = form.tensors | _biases(block, behind, outer.bias)
    count = blocks or _groups(site.kv_heads, site.heads, form.head, one=_by_head(block))
    return FlashPlan(
        lowrank_attention.name,
        f"{form.text}, {count} group{'s' if count > 1 else ''}",
        form.error,
        "calibration" if moments else "isotropic",
        bytes_of(tensors),
        tensors=tensors,
        attributes={
            "heads": site.heads,
            "kv_heads": site.kv_heads,
            "scale": site.scale,
            "causal": int(site.causal),
            "blocks": count,
            "shared": form.shared,
            "bias_inside": int(_bias_inside(block)),
        },
        insert=lowrank_attention,
    )


def _parameters(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.numel()


def _kept(block: AttentionBlock, keep: float | None) -> int | None:
    """The head size that keeps a share of the parameters, which are proportional to it; factors are not cut again."""
    factored = all(part.projection.is_factored for part in (block.query, block.key, block.value))
    return None if keep is None or factored else max(1, int(keep * block.attention.head_size + 1e-9))


@dataclass(frozen=True, eq=False)
class _Base:
    """The factors of a projection, the first one [rank, in] with orthonormal rows.

    What is closest to a product behind such rows is closest to it on x.
    """

    rows: Tensor
    up: Tensor


def _bases(block: AttentionBlock) -> dict[str, _Base]:
    """The bases of the projections that are in factors, by name; those of one layer are one."""
    found: dict[str, _Base] = {}
    layers: dict[str, _Base] = {}
    for name, part in _parts(block).items():
        layer = part.projection
        if layer.down is None:
            continue
        if layer.output.key not in layers:
            columns, triangle = torch.linalg.qr(layer.down.double().t())
            layers[layer.output.key] = _Base(columns.t(), layer.up.double() @ triangle.t())
        base = layers[layer.output.key]
        found[name] = _Base(base.rows, base.up[part.start : part.stop])
    return found


def _parts(block: AttentionBlock) -> dict[str, Part]:
    return {"query": block.query, "key": block.key, "value": block.value}


def _sharing(block: AttentionBlock) -> str:
    """Which projections have one first factor, as the op's attribute `shared` says it."""
    query, key, value = (part.projection for part in _parts(block).values())
    if key.output is not value.output or not key.is_factored:
        return "none"
    return "qkv" if query.output is key.output else "kv"


def _downs(block: AttentionBlock, factors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The first factors as operands, each once."""
    readers = {"none": (), "kv": ("value",), "qkv": ("key", "value")}[_sharing(block)]
    return {f"{name}_down": factor for name, factor in factors.items() if name not in readers}


def _rank_space(
    block: AttentionBlock,
    rank: int | None,
    behind: dict[str, Tensor],
    error: float,
    bases: Mapping[str, _Base],
    moments: Mapping[str, Moments],
) -> _Form:
    """Heads as wide as the products of the projections need, or as `rank` leaves them.

    They read x, or what the first factors of `bases` make of it.
    """
    site = block.attention
    heads, kv_heads, head = site.heads, site.kv_heads, site.head_size
    counts = {"query": heads, "key": kv_heads, "value": kv_heads}
    query, key, value = (_heads(part, counts[name], bases.get(name)) for name, part in _parts(block).items())
    bias = block.query.bias
    if bias is not None:  # one more input of the query, so that it is cut together with its weight
        query = torch.cat([query, bias.double().reshape(heads, head, 1)], dim=2)
    inside = block.value.bias if _bias_inside(block) else None
    if inside is not None:
        value = torch.cat([value, inside.double().reshape(kv_heads, head, 1)], dim=2)
    first = behind["out"]
    out = first.double().reshape(first.shape[0], heads, -1).permute(1, 2, 0)  # [heads, value, r]
    tolerance = FLOOR if first.dtype == torch.float64 else torch.finfo(torch.float32).eps
    widths = {"query": query.shape[2], "key": key.shape[2], "value": value.shape[2]}
    roots = {name: _root(part, widths[name], bases.get(name), moments) for name, part in _parts(block).items()}
    scores = _joint(query, key, rank, tolerance, roots["query"], roots["key"])
    values = _joint(out, value, rank, tolerance, None, roots["value"])
    left = scores.left if bias is None else scores.left[:, :, :-1]
    tensors = {
        "query": left.flatten(0, 1),
        "key": scores.right.flatten(0, 1),
        "value": (values.right if inside is None else values.right[:, :, :-1]).flatten(0, 1),
        "out": values.left.permute(2, 0, 1).flatten(1),
    }
    if bias is not None:
        tensors["query_bias"] = scores.left[:, :, -1].flatten()
    if inside is not None:
        tensors["value_bias"] = values.right[:, :, -1].flatten()
    tensors |= _downs(block, {name: base.rows for name, base in bases.items()})
    tensors = {name: tensor.to(first.dtype).contiguous() for name, tensor in tensors.items()}
    tensors |= {name: tensor for name, tensor in behind.items() if name != "out"}
    heads_of = (scores.left.shape[1], values.left.shape[1])
    text = f"rank space{' of the factors' if bases else ''}, heads of {heads_of[0]}"
    text += "" if heads_of[0] == heads_of[1] else f" and {heads_of[1]}"
    shared = _sharing(block) if bases else "none"
    return _Form(tensors, text, max(heads_of), max(scores.error, values.error, error), shared)


def _heads(part: Part, count: int, base: _Base | None) -> Tensor:
    """The weight of a projection, [count, head, in], in float64: products of factors have their very rank."""
    down = part.projection.down
    if base is not None:
        weight = base.up
    else:
        weight = part.weight.double() if down is None else part.weight.double() @ down.double()
    return weight.reshape(count, -1, weight.shape[1])


def _root(part: Part, width: int, base: _Base | None, moments: Mapping[str, Moments]) -> Tensor | None:
    """The root of the second moment of what a weight is applied to; of one more input that is 1 where it is wider."""
    found = moments.get(part.projection.x.key)
    if found is None:
        return None
    moment, mean = found.gram, found.mean
    if base is not None:
        moment, mean = base.rows @ moment.to(base.rows) @ base.rows.t(), base.rows @ mean.to(base.rows)
    if width > len(moment):
        ones = torch.ones(1, 1, dtype=moment.dtype, device=moment.device)
        moment = torch.cat([torch.cat([moment, mean[:, None]], 1), torch.cat([mean[None], ones], 1)])
    return root_of(moment)


def _joint(
    left: Tensor, right: Tensor, rank: int | None, tolerance: float, left_root: Tensor | None, right_root: Tensor | None
) -> Shared:
    wanted = joint_rank(left, right, tolerance) if rank is None else rank
    return joint_factors(left, right, min(wanted, most_rank(left, right)), left_root, right_root)


def _as_it_is(block: AttentionBlock, behind: dict[str, Tensor], error: float) -> _Form:
    """The projections with the factors that they have."""
    parts = _parts(block)
    tensors = {name: part.weight for name, part in parts.items()}
    downs = {name: part.projection.down for name, part in parts.items()}
    tensors |= _downs(block, {name: down for name, down in downs.items() if down is not None})
    bias = block.query.bias
    tensors |= {} if bias is None else {"query_bias": bias}
    inside = block.value.bias if _bias_inside(block) else None
    tensors |= {} if inside is None else {"value_bias": inside}
    head = block.attention.head_size
    return _Form(tensors | behind, f"factors kept, heads of {head}", head, error, _sharing(block))


def _biases(block: AttentionBlock, behind: dict[str, Tensor], last: Tensor | None) -> dict[str, Tensor]:
    """The bias behind the last product, and what the bias of the values gives there when it does not stay inside."""
    found = {} if last is None else {"out_bias": last}
    bias = block.value.bias
    if bias is None or _bias_inside(block):
        return found
    site = block.attention
    each = bias.reshape(site.kv_heads, -1).repeat_interleave(site.heads // site.kv_heads, dim=0).flatten().double()
    through = behind["out"].double() @ each
    if "out_up" in behind:
        through = behind["out_up"].double() @ through
    return found | {"value_bias": through.to(bias.dtype)}


def _by_head(block: AttentionBlock) -> bool:
    """Whether heads have masks of their own, which cannot be walked in groups."""
    return block.attention.mask_heads != 1


def _bias_inside(block: AttentionBlock) -> bool:
    """Whether the bias of the values stays with them: behind the sum, one mask must tell which queries see a key."""
    hiding = [name for name in ("mask", "bias") if name in block.operands]
    hiding += ["causal"] if block.attention.causal else []
    return block.value.bias is not None and (_by_head(block) or len(hiding) > 1)


def _blocks_problem(block: AttentionBlock, blocks: int) -> str:
    if blocks > 1 and _by_head(block):
        return f"its heads have masks of their own and are walked at once, not in blocks={blocks}"
    kv_heads = block.attention.kv_heads
    return f"blocks={blocks} does not divide its {kv_heads} key and value heads" if blocks and kv_heads % blocks else ""


def _groups(kv_heads: int, heads: int, head: int, *, one: bool) -> int:
    if one:
        return 1
    fitting = [
        count for count in range(1, kv_heads + 1) if kv_heads % count == 0 and heads // count * head <= GROUP_WIDTH
    ]
    return fitting[0] if fitting else kv_heads
