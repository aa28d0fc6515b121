"""Tiny PyTorch models as graphs, captured once a test session."""

from functools import lru_cache
from itertools import pairwise

import torch
from torch import Tensor, nn

from regraft.frontends.torch import FxGraph, capture
from regraft.graph import LinearSite, find_linear_sites

WIDTH = 12


class Chain(nn.Module):
    """Linear layers with a tanh between them, closed by something that is no layer: no head."""

    def __init__(self, *widths: int, bias: bool = True) -> None:
        super().__init__()
        pairs = pairwise(widths)
        self.layers = nn.ModuleList(nn.Linear(fan_in, fan_out, bias=bias) for fan_in, fan_out in pairs)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return x


class Straight(nn.Module):
    """Layers whose results are read by the next one directly."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = (nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.third(self.second(self.first(x))))


class Shared(nn.Module):
    """Two layers that read one activation, and a head behind them."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH, bias=False)
        self.classifier = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(torch.relu(self.query(x)) * torch.sigmoid(self.key(x)))


class Weightless(nn.Module):
    """Nothing to rewrite, and one product of two activations."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x) @ x.transpose(-1, -2)


def batch(seed: int, rows: int = 6, width: int = WIDTH) -> Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


@lru_cache(maxsize=32)
def graph_of(cls: type[nn.Module], *args: int, bias: bool = True, seed: int = 0) -> FxGraph:
    """Return a captured model with seeded weights; tests must not rewrite it, passes work on copies."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = cls(*args) if bias else cls(*args, bias=False)
    return capture(model, (batch(0, width=args[0] if args else WIDTH),))


def chain(depth: int = 4, width: int = WIDTH, *, bias: bool = True, seed: int = 0) -> FxGraph:
    return graph_of(Chain, *[width] * (depth + 1), bias=bias, seed=seed)


def site_of(graph: FxGraph, name: str) -> LinearSite:
    sites, _ = find_linear_sites(graph)
    return next(site for site in sites if site.name == name)
