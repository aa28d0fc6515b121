"""Small PyTorch models for the tests of the torch frontend, with seeded weights; captures are made once a session."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import torch
import transformers
from torch import Tensor, nn

from regraft.frontends.torch import FxGraph, capture
from regraft.graph import LinearSite, find_linear_sites
from regraft.ops import get_op

VOCABULARY = 100
_SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
_NO_TOKENS = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 2}


class Mlp(nn.Module):
    """Two named layers, the second one without a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(8, 16)
        self.act = nn.ReLU()
        self.down = nn.Linear(16, 4, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.act(self.up(x)))


class Branches(nn.Module):
    """Buffers of every kind, an operation with two results, a constant of the code, nested outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.register_buffer("saved", torch.ones(4))
        self.register_buffer("unsaved", torch.full((4,), 2.0), persistent=False)
        self.unused = nn.Linear(3, 3)

    def forward(self, x: Tensor, scale: float = 1.0, shift: Tensor | None = None) -> dict[str, object]:
        y = self.fc(x) * scale + self.saved + self.unsaved + torch.tensor([1.0, 2.0, 3.0, 4.0])
        if shift is not None:
            y = y + shift
        top, where = torch.max(y, dim=0)
        return {"twice": (self.fc(y), None), "top": top, "where": where, "x": x}


class Conv1D(nn.Module):
    """GPT-2's layer, used with a weight stored [in, out]: addmm."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 10))
        self.bias = nn.Parameter(torch.randn(10))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x.view(-1, 6), self.weight).view(*x.shape[:-1], 10)


@dataclass(frozen=True)
class Case:
    """A model and its capture."""

    model: nn.Module
    graph: FxGraph


def seeded(cls: type[nn.Module], seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return cls().eval()


def token_inputs(batch: int = 2, length: int = 8, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, VOCABULARY, (batch, length), generator=generator)
    mask = torch.ones_like(ids)
    mask[0, -1] = 0
    return {"input_ids": ids, "attention_mask": mask}


def _bert() -> nn.Module:
    return transformers.BertModel(transformers.BertConfig(**_SIZES, **_NO_TOKENS))


def _gpt2() -> nn.Module:
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, **_NO_TOKENS))


def _llama() -> nn.Module:
    config = transformers.LlamaConfig(**_SIZES, **_NO_TOKENS, num_key_value_heads=1)
    return transformers.LlamaForCausalLM(config)


TRANSFORMERS: Mapping[str, object] = {"bert": _bert, "gpt2": _gpt2, "llama": _llama}


@lru_cache(maxsize=8)
def transformer(name: str) -> Case:
    """A captured model with two layers; tests rewrite copies of the graph only."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = TRANSFORMERS[name]().eval()  # type: ignore[operator]
    return Case(model, capture(model, token_inputs(batch=1)))


@lru_cache(maxsize=8)
def small(cls: type[nn.Module], *shape: int) -> Case:
    model = seeded(cls)
    return Case(model, capture(model, torch.randn(*shape, generator=torch.Generator().manual_seed(1))))


def mlp() -> Case:
    return small(Mlp, 2, 8)


def site_of(graph: FxGraph, name: str) -> LinearSite:
    return next(site for site in find_linear_sites(graph)[0] if site.name == name)


def factorize(graph: FxGraph, site: LinearSite, *, share_bias: bool = True) -> None:
    """Replace a layer by one that computes the same: two factors of full rank, one of them the weight itself."""
    weight = site.weight.clone()
    wide = weight.shape[0] >= weight.shape[1]
    down, up = (torch.eye(weight.shape[1]), weight) if wide else (weight, torch.eye(weight.shape[0]))
    bias = site.bias_value if share_bias else site.bias
    graph.replace(site, get_op("lowrank_linear"), {"down": down, "up": up, "bias": bias})


def rewritten(graph: FxGraph) -> FxGraph:
    """A copy of the graph with every linear layer factorized."""
    copy = graph.copy()
    for site in find_linear_sites(graph)[0]:
        factorize(copy, site)
    return copy
