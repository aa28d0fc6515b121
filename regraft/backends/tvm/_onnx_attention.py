"""Attention and rotary positions of ONNX and of ONNX Runtime as functions of torch, for tracing.

A query that sees no key gives 0 (ONNX Attention); the softmax is computed in float32 at least.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor

from regraft.backends.tvm._onnx_extents import Attributes, Operator, as_tensor, given, needed, refused

_FLOAT32: Final = 1
"""In the enumeration of ONNX."""


def _attention(operands: Sequence[Any], attributes: Attributes) -> Any:
    q, k, v, mask, past_k, past_v, lengths = map(as_tensor, given(operands, 7))
    if lengths is not None:
        raise refused("Attention", "nonpad_kv_seqlen is not translated")
    if attributes.get("softmax_precision", _FLOAT32) not in (0, _FLOAT32):
        raise refused("Attention", "softmax_precision must be float32")
    for name in ("left_window_size", "right_window_size"):
        if attributes.get(name, -1) != -1:
            raise refused("Attention", f"{name} is not translated")
    wide = q.dim() == 3
    if wide:
        q = _apart(q, needed("Attention", "q_num_heads", attributes))
        k, v = (_apart(x, needed("Attention", "kv_num_heads", attributes)) for x in (k, v))
    earlier = 0 if past_k is None else past_k.shape[2]
    k, v = (x if past is None else torch.cat([past, x], 2) for x, past in ((k, past_k), (v, past_v)))
    scale = attributes.get("scale", 1 / math.sqrt(q.shape[-1]))
    offset = _offset(q, k, _whole(mask, k), earlier, causal=bool(attributes.get("is_causal", 0)))
    y = _attend(q, k, v, offset, scale, attributes.get("softcap", 0.0))
    return (_together(y) if wide else y), k, v


def _apart(x: Tensor, heads: int) -> Tensor:
    """[batch, rows, heads · n] to [batch, heads, rows, n]."""
    return x.unflatten(-1, (heads, x.shape[-1] // heads)).transpose(1, 2)


def _together(y: Tensor) -> Tensor:
    return y.transpose(1, 2).flatten(2)


def _whole(mask: Tensor | None, k: Tensor) -> Tensor | None:
    """Keys that a mask leaves out at its end are hidden; the mask has either all of them, or a known number."""
    if mask is None:
        return None
    keys: Any = k.shape[2]
    own: Any = mask.shape[-1]
    if not isinstance(keys, int) or not isinstance(own, int) or own in (1, keys):
        return mask
    width = keys - own
    hidden = mask.new_full((*mask.shape[:-1], width), 0.0 if mask.dtype == torch.bool else -math.inf)
    return torch.cat([mask, hidden], -1)


def _offset(q: Tensor, k: Tensor, mask: Tensor | None, earlier: Any, *, causal: bool) -> Tensor | None:
    """What is added to the scores; -inf where a query must not look."""
    parts = [] if mask is None else [_numbers(mask)]
    if causal:
        rows, columns = torch.arange(q.shape[2]).unsqueeze(-1), torch.arange(k.shape[2])
        parts.append(_numbers(columns <= rows + earlier))
    return sum(parts[1:], parts[0]) if parts else None


def _numbers(mask: Tensor) -> Tensor:
    if mask.dtype != torch.bool:
        return mask.to(torch.float32)
    return torch.where(mask, torch.zeros(()), torch.full((), -math.inf))


def _attend(q: Tensor, k: Tensor, v: Tensor, offset: Tensor | None, scale: float, softcap: float = 0.0) -> Tensor:
    k, v = (_repeated(x, q.shape[1] // x.shape[1]) for x in (k, v))
    scores = torch.matmul(q * scale, k.transpose(-1, -2))
    if softcap:
        scores = torch.tanh(scores / softcap) * softcap
    if offset is None:
        return torch.matmul(torch.softmax(scores, -1), v)
    # TVM's maximum begins at the least finite number, so that it is not asked for the infinite one.
    looks = torch.where(offset == -math.inf, torch.zeros(()), torch.ones(()))
    unseen = torch.amax(looks, -1, keepdim=True) == 0
    seen = torch.where(unseen, torch.zeros((), dtype=offset.dtype), offset)  # softmax of -inf alone is no number
    weights = torch.softmax(scores.to(torch.promote_types(q.dtype, offset.dtype)) + seen, -1)
    return torch.matmul(torch.where(unseen, torch.zeros((), dtype=weights.dtype), weights).to(q.dtype), v)


def _repeated(x: Tensor, times: int) -> Tensor:
    """Each head as often as queries read it, beside itself."""
    if times == 1:
        return x
    batch, heads, rows, width = x.shape
    return x.unsqueeze(2).expand(batch, heads, times, rows, width).reshape(batch, heads * times, rows, width)


def _multi_head_attention(operands: Sequence[Any], attributes: Attributes) -> Any:
    q, k, v, bias, keys, added, past_k, past_v, *more = map(as_tensor, given(operands, 10))
    name = "com.microsoft::MultiHeadAttention"
    if any(extra is not None for extra in more):
        raise refused(name, "past_sequence_length and cache_indirection are not translated")
    if k is None or v is None:
        raise refused(name, "packed queries, keys and values are not translated")
    if keys is not None and keys.dim() != 2:
        raise refused(name, "key_padding_mask must be [batch, keys]")
    heads = needed(name, "num_heads", attributes)
    if bias is not None:
        b_q, b_k, b_v = bias.split([q.shape[-1], q.shape[-1], bias.shape[0] - 2 * q.shape[-1]])
        q, k, v = q + b_q, k + b_k if k.dim() == 3 else k, v + b_v if v.dim() == 3 else v
    q = _apart(q, heads)
    k, v = (_apart(x, heads) if x.dim() == 3 else x for x in (k, v))
    earlier = 0 if past_k is None else past_k.shape[2]
    k, v = (x if past is None else torch.cat([past, x], 2) for x, past in ((k, past_k), (v, past_v)))
    hidden = _key_offset(keys, attributes.get("mask_filter_value", -10000.0))
    offsets = [x for x in (added, hidden) if x is not None]
    if attributes.get("unidirectional", 0):
        offsets.append(_offset(q, k, None, earlier, causal=True))
    offset = sum(offsets[1:], offsets[0]) if offsets else None
    return _together(_attend(q, k, v, offset, attributes.get("scale", 0.0) or 1 / math.sqrt(q.shape[-1]))), k, v


def _key_offset(keys: Tensor | None, fill: float) -> Tensor | None:
    """[batch, 1, 1, keys] from 1 for a key and 0 for none."""
    if keys is None:
        return None
    return torch.where(keys == 0, torch.full((), fill), torch.zeros(()))[:, None, None, :]


def _rotary(operands: Sequence[Any], attributes: Attributes) -> Any:
    x, cosines, sines, positions = map(as_tensor, given(operands, 4))
    wide = x.dim() == 3
    x = _apart(x, needed("RotaryEmbedding", "num_heads", attributes)) if wide else x
    if positions is not None:
        cosines, sines = cosines[positions], sines[positions]
    width = attributes.get("rotary_embedding_dim", 0) or x.shape[-1]
    turned, rest = x[..., :width], x[..., width:]
    cosines, sines = (table[..., : width // 2].unsqueeze(1) for table in (cosines, sines))
    turned = _turned(turned, cosines, sines, interleaved=bool(attributes.get("interleaved", 0)))
    y = torch.cat([turned, rest], -1) if width != x.shape[-1] else turned
    return _together(y) if wide else y


def _turned(x: Tensor, cosines: Tensor, sines: Tensor, *, interleaved: bool) -> Tensor:
    half = x.shape[-1] // 2
    if interleaved:
        a, b = x.unflatten(-1, (half, 2)).unbind(-1)
        pair = torch.stack([a * cosines - b * sines, b * cosines + a * sines], -1)
        return pair.flatten(-2)
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * cosines - b * sines, b * cosines + a * sines], -1)


ATTENTION: Final[Mapping[str, Operator]] = {
    "Attention": _attention,
    "RotaryEmbedding": _rotary,
    "com.microsoft::MultiHeadAttention": _multi_head_attention,
}
"""By their names as ONNX spells them."""
