"""Tiny transformers, seeded, as graphs: those of the library of that name, and one that can be given any shape.

Weights are large enough for attention to tell keys apart, and no bias is zero, so that nothing of them can be lost.
"""

from functools import lru_cache
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2Model,
    LlamaConfig,
    LlamaModel,
    T5Config,
    T5EncoderModel,
    ViTConfig,
    ViTModel,
)

from regraft.backends.onnxruntime._from_torch import to_onnx
from regraft.frontends.torch import FxGraph, capture
from regraft.graph import Graph

Kind = Literal["fx", "onnx"]
Example = tuple[Tensor | None, ...]

WIDTH, HEADS, HEAD, HIDDEN = 14, 4, 5, 36
"""Of `Block`: its heads together (20) are no other extent."""


class Attention(nn.Module):
    """Self- or cross-attention with a mask, causal or not, with grouped heads or not."""

    def __init__(self, *, kv_heads: int = HEADS, inner: int = WIDTH, bias: bool = True, causal: bool = False) -> None:
        super().__init__()
        self.kv_heads, self.causal = kv_heads, causal
        self.query, self.out = nn.Linear(WIDTH, HEADS * HEAD, bias=bias), nn.Linear(HEADS * HEAD, WIDTH, bias=bias)
        self.key, self.value = (nn.Linear(inner, kv_heads * HEAD, bias=bias) for _ in range(2))

    def heads(self, layer: nn.Module, x: Tensor, count: int) -> Tensor:
        return layer(x).view(x.shape[0], x.shape[1], count, HEAD).transpose(1, 2)

    def repeated(self, x: Tensor) -> Tensor:
        batch, few, keys, width = x.shape
        times = HEADS // few
        return (
            x if times == 1 else x[:, :, None].expand(batch, few, times, keys, width).reshape(batch, HEADS, keys, width)
        )

    def forward(self, x: Tensor, mask: Tensor | None = None, context: Tensor | None = None) -> Tensor:
        read = x if context is None else context
        q = self.heads(self.query, x, HEADS)
        k, v = (self.repeated(self.heads(layer, read, self.kv_heads)) for layer in (self.key, self.value))
        y = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=self.causal)
        return self.out(y.transpose(1, 2).reshape(*x.shape[:2], HEADS * HEAD))


class Mlp(nn.Module):
    """Linear, GELU, linear."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(functional.gelu(self.fc1(x)))


class Block(nn.Module):
    """Attention with the sum and the norm behind it, and a feed-forward layer likewise: as BERT, of any shape."""

    def __init__(self, **shape: Any) -> None:
        super().__init__()
        self.attention, self.mlp = Attention(**shape), Mlp()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)

    def forward(self, x: Tensor, mask: Tensor | None = None, context: Tensor | None = None) -> Tensor:
        x = self.norm1(self.attention(x, mask, context) + x)
        return self.norm2(self.mlp(x) + x)


def seeded(model: nn.Module, dtype: torch.dtype = torch.float32) -> nn.Module:
    """Return the model in evaluation mode, its parameters drawn anew."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1 and "norm" in name.lower() and name.endswith("weight"):
            continue
        scale = 0.5 if parameter.dim() == 1 else 1.2 / parameter.shape[-1] ** 0.5
        parameter.data = torch.randn(parameter.shape, generator=generator) * scale
    return model.eval().to(dtype)


def rows(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return random numbers."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def mask_of(*lengths: int, keys: int) -> Tensor:
    """Return which keys are there, [batch, 1, 1, keys]; a length of 0 leaves a row that sees nothing."""
    return (torch.arange(keys)[None] < torch.tensor(lengths)[:, None])[:, None, None]


@lru_cache(maxsize=32)
def block_graph(kind: Kind = "fx", form: str = "mask", dtype: torch.dtype = torch.float32) -> Graph:
    """Return a captured `Block`; passes work on copies. Its inputs are those of `block_example`."""
    if kind == "onnx":
        fx = block_graph("fx", form, dtype)
        assert isinstance(fx, FxGraph)
        return to_onnx(fx, 18)
    shapes: dict[str, dict[str, Any]] = {
        "causal": {"causal": True},
        "grouped": {"kv_heads": 2},
        "cross": {"inner": 11},
        "unbiased": {"bias": False},
    }
    return capture(seeded(Block(**shapes.get(form, {})), dtype), block_example(form, dtype=dtype))


def block_example(
    form: str, batch: int = 2, sequence: int = 7, dtype: torch.dtype = torch.float32, seed: int = 0
) -> Example:
    """Return inputs of a form of `Block`: causal, cross, grouped, mask or unbiased."""
    x = rows(batch, sequence, WIDTH, seed=seed, dtype=dtype)
    if form == "causal":
        return (x,)
    keys = sequence + 2 if form == "cross" else sequence
    mask = mask_of(*[max(1, keys - 2 * place) for place in range(batch)], keys=keys)
    return (x, mask, rows(batch, keys, 11, seed=seed + 1, dtype=dtype)) if form == "cross" else (x, mask)


@lru_cache(maxsize=16)
def library_model(name: str) -> nn.Module:
    """Return a model of the library: one layer of 4 heads of 6, 56 wide inside (grouped by two for llama)."""
    sizes: dict[str, Any] = {"vocab_size": 40, "num_hidden_layers": 1, "num_attention_heads": 4, "hidden_size": 24}
    inner: dict[str, Any] = {"intermediate_size": 56}
    made: dict[str, Any] = {
        "bert": lambda: BertModel(BertConfig(**sizes, **inner)),
        "vit": lambda: ViTModel(ViTConfig(**{**sizes, "image_size": 12, "patch_size": 4, "qkv_bias": True}, **inner)),
        "llama": lambda: LlamaModel(LlamaConfig(**sizes, **inner, num_key_value_heads=2)),
        "gpt2": lambda: GPT2Model(
            GPT2Config(vocab_size=40, n_layer=1, n_head=4, n_embd=24, n_positions=16, bos_token_id=0, eos_token_id=0)
        ),
        "t5": lambda: T5EncoderModel(T5Config(vocab_size=40, num_layers=1, num_heads=4, d_model=24, d_kv=5, d_ff=56)),
    }
    return seeded(made[name]())


def library_example(name: str, batch: int = 2, sequence: int = 7, seed: int = 0) -> Example:
    """Return inputs of a model of the library; BERT's last sequence is padded."""
    if name == "vit":
        return (rows(batch, 3, 12, 12, seed=seed),)
    ids = torch.randint(0, 40, (batch, sequence), generator=torch.Generator().manual_seed(seed))
    if name != "bert":
        return (ids,)
    seen = torch.ones_like(ids)
    seen[-1, (sequence + 1) // 2 :] = 0
    return ids, seen


@lru_cache(maxsize=16)
def library_graph(name: str, kind: Kind = "fx") -> Graph:
    """Return a captured model of the library; passes work on copies."""
    if kind == "fx":
        return capture(library_model(name), library_example(name))
    fx = library_graph(name)
    assert isinstance(fx, FxGraph)
    return to_onnx(fx, 18)
