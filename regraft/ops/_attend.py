"""Attention of split heads on torch tensors, through torch's own fused operator."""

import math

import torch
from torch import Tensor


def attend(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, bias: Tensor | None, *, scale: float, causal: bool
) -> Tensor:
    """Return softmax(scale · q · kᵀ + bias, masked) · v; 0 for a query that sees nothing.

    Args:
        q: [batch, heads, queries, head].
        k: [batch, kv_heads, keys, head].
        v: [batch, kv_heads, keys, value].
        mask: booleans that broadcast to [batch, heads, queries, keys]; true: look there.
        bias: numbers of that shape, added to the scaled scores.
        scale: of the scores.
        causal: whether query i sees only the keys up to i.
    """
    alone = causal and mask is None and bias is None
    if causal and not alone:
        earlier = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool, device=q.device).tril()
        mask = earlier if mask is None else mask & earlier
    return torch.nn.functional.scaled_dot_product_attention(
        q,
        k,
        v,
        attn_mask=_combined(mask, bias, q),
        is_causal=alone,
        scale=scale,
        enable_gqa=q.shape[1] != k.shape[1],
    )


def _combined(mask: Tensor | None, bias: Tensor | None, like: Tensor) -> Tensor | None:
    if bias is None:
        return mask
    bias = bias.to(like.dtype)
    return bias if mask is None else torch.where(mask, bias, -math.inf)
