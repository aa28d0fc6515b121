"""Tiny models with attention for tests: of transformers, from configurations, and written by hand; captured once."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from regraft.backends.onnxruntime import as_onnx
from regraft.frontends.onnx import OnnxGraph
from regraft.frontends.torch import FxGraph, capture

WIDTH, HEADS, TOKENS = 24, 4, 40
_SMALL = {"vocab_size": TOKENS, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


@dataclass(frozen=True)
class Case:
    """A model, captured.

    Attributes:
        graph: the captured program.
        sites: modules whose attention is to be found.
        split: whether the heads are split off inside.
    """

    graph: FxGraph
    sites: tuple[str, ...]
    split: bool = True


def tokens(batch: int, length: int, seed: int = 0) -> Tensor:
    return torch.randint(3, TOKENS, (batch, length), generator=torch.Generator().manual_seed(seed))


def padding(batch: int, length: int) -> Tensor:
    """Rows of ones that end in more and more zeros; the second is zeros throughout."""
    mask = (torch.arange(length) < (length - torch.arange(batch))[:, None].clamp_min(1)).long()
    mask[1:2] = 0
    return mask


def inputs(name: str, batch: int, length: int) -> dict[str, Tensor]:
    """Inputs of a model, padded where it takes a mask."""
    if name == "vit":
        return {"pixel_values": torch.randn(batch, 3, 8, 8, generator=torch.Generator().manual_seed(length))}
    ids = {"input_ids": tokens(batch, length), "attention_mask": padding(batch, length)}
    return ids | ({"decoder_input_ids": tokens(batch, length + 2, 1)} if name == "bart" else {})


def _bert(attention: str) -> tuple[nn.Module, tuple[str, ...]]:
    config = transformers.BertConfig(
        hidden_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=HEADS,
        intermediate_size=16,
        attn_implementation=attention,
        **_SMALL,
    )
    model = transformers.BertModel(config, add_pooling_layer=False)
    return model, ("encoder.layer.0.attention.self", "encoder.layer.1.attention.self")


def _gpt2(attention: str) -> tuple[nn.Module, tuple[str, ...]]:
    config = transformers.GPT2Config(
        n_embd=WIDTH, n_layer=1, n_head=HEADS, n_positions=16, use_cache=False, attn_implementation=attention, **_SMALL
    )
    return transformers.GPT2Model(config), ("h.0.attn",)


def _llama(attention: str) -> tuple[nn.Module, tuple[str, ...]]:
    config = transformers.LlamaConfig(
        hidden_size=WIDTH,
        num_hidden_layers=1,
        num_attention_heads=HEADS,
        num_key_value_heads=2,
        intermediate_size=16,
        use_cache=False,
        attn_implementation=attention,
        **_SMALL,
    )
    return transformers.LlamaModel(config), ("layers.0.self_attn",)


def _t5(attention: str) -> tuple[nn.Module, tuple[str, ...]]:
    config = transformers.T5Config(
        d_model=WIDTH, num_layers=1, num_heads=HEADS, d_kv=5, d_ff=16, attn_implementation=attention, **_SMALL
    )
    return transformers.T5EncoderModel(config), ("encoder.block.0.layer.0.SelfAttention",)


def _vit(attention: str) -> tuple[nn.Module, tuple[str, ...]]:
    config = transformers.ViTConfig(
        hidden_size=WIDTH,
        num_hidden_layers=1,
        num_attention_heads=HEADS,
        intermediate_size=16,
        image_size=8,
        patch_size=4,
        attn_implementation=attention,
    )
    return transformers.ViTModel(config, add_pooling_layer=False), ("layers.0.attention",)


def _bart(attention: str) -> tuple[nn.Module, tuple[str, ...]]:
    config = transformers.BartConfig(
        d_model=WIDTH,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=HEADS,
        decoder_attention_heads=HEADS,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        max_position_embeddings=32,
        use_cache=False,
        attn_implementation=attention,
        **_SMALL,
    )
    sites = ("encoder.layers.0.self_attn", "decoder.layers.0.self_attn", "decoder.layers.0.encoder_attn")
    return transformers.BartModel(config), sites


_MAKERS = {"bert": _bert, "gpt2": _gpt2, "llama": _llama, "t5": _t5, "vit": _vit, "bart": _bart}
NAMES = tuple(_MAKERS)


@lru_cache(maxsize=16)
def case(name: str, attention: str = "sdpa", dtype: torch.dtype = torch.float32) -> Case:
    """A model whose scores are far from equal, so that a wrong scale or mask shows."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, sites = _MAKERS[name](attention)
        for weight in model.parameters():
            if weight.dim() > 1:
                nn.init.normal_(weight, std=0.3)
    graph = capture(model.to(dtype).eval(), inputs(name, 2, 6))
    return Case(graph, sites, split=name != "llama")


@lru_cache(maxsize=16)
def exported(name: str, opset: int, attention: str = "sdpa") -> OnnxGraph:
    return as_onnx(case(name, attention).graph, opset)


def captured(module: nn.Module, *example: Any) -> FxGraph:
    return capture(module.eval(), example)


class Calls(nn.Module):
    """Calls a function of queries, keys and values, each behind a layer."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def forward(self, *given: Tensor) -> Tensor:
        return self.function(*(layer(x) for layer, x in zip(self.layers, given, strict=True)))


def merged(y: Tensor) -> Tensor:
    return y.transpose(1, 2).flatten(2)


def apart(x: Tensor) -> Tensor:
    return x.unflatten(-1, (HEADS, -1)).transpose(1, 2)


def operands(batch: int, queries: int, keys: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(queries)
    shapes = ((batch, queries, WIDTH), (batch, keys, WIDTH), (batch, keys, WIDTH))
    return tuple(torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes)
