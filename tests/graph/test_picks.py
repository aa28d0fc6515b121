"""Parts of a tensor along one dim: found in every spelling of both graph languages, with their places."""

from collections.abc import Callable
from functools import lru_cache

import pytest
import torch
from torch import Tensor, nn

from regraft.backends.onnxruntime._from_torch import to_onnx
from regraft.frontends.torch import capture
from regraft.graph import Graph
from regraft.graph.picks import picked, stacked

PICKS: dict[str, tuple[Callable[[Tensor], Tensor], tuple[int, int, int, bool]]] = {
    "split": (lambda x: x.split((2, 5, 5), -1)[1], (2, 2, 7, False)),
    "even split": (lambda x: x.split(5, 2)[2], (2, 10, 12, False)),
    "chunk": (lambda x: x.chunk(3, -1)[2], (2, 8, 12, False)),
    "slice": (lambda x: x[..., 3:7], (2, 3, 7, False)),
    "slice from the end": (lambda x: x[..., -3:], (2, 9, 12, False)),
    "rows": (lambda x: x[:, 1:3], (1, 1, 3, False)),
    "place": (lambda x: x[:, 3], (1, 3, 4, True)),
    "last place": (lambda x: x[:, -1], (1, 3, 4, True)),
    "unbound": (lambda x: x.unbind(1)[2], (1, 2, 3, True)),
    "one wide": (lambda x: x[:, 2:3].squeeze(1), (1, 2, 3, True)),
}


class Picks(nn.Module):
    """Returns a part of what it computes."""

    def __init__(self, part: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.part = part

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(self.part(torch.cos(x)))


@lru_cache(maxsize=32)
def _graph(name: str, kind: str) -> Graph:
    parts = {key: part for key, (part, _) in PICKS.items()}
    fx = capture(Picks({**parts, **NONE}[name]), (torch.randn(3, 4, 12),), None)
    return fx if kind == "fx" else to_onnx(fx, 18)


@pytest.mark.parametrize("kind", ["fx", "onnx"])
@pytest.mark.parametrize("name", PICKS)
def test_every_spelling_says_which_places_it_picks(name: str, kind: str) -> None:
    graph = _graph(name, kind)
    (last,) = graph.outputs()
    assert last.producer is not None
    (part,) = (value for value in last.producer.inputs if value is not None)
    found = picked(graph, part)
    assert found is not None
    assert (found.dim, found.start, found.stop, found.dropped) == PICKS[name][1]
    assert found.whole.producer is not None
    assert found.whole.producer.op == "cos" or found.whole.producer.native in ("aten.cos.default", "Cos")
    # The very numbers: what the places say is what the graph picks.
    x = torch.randn(3, 4, 12)
    wanted = torch.sin(torch.cos(x).narrow(found.dim, found.start, found.stop - found.start))
    wanted = wanted.squeeze(found.dim) if found.dropped else wanted
    torch.testing.assert_close(graph.run((x,))[0][0], wanted)


NONE: dict[str, Callable[[Tensor], Tensor]] = {
    "every other": lambda x: x[..., ::2],
    "gathered": lambda x: x[..., torch.tensor([0, 3])],
    "turned": lambda x: x.transpose(1, 2),
}


@pytest.mark.parametrize("kind", ["fx", "onnx"])
@pytest.mark.parametrize("name", ["every other", "gathered", "turned"])
def test_what_is_no_run_of_places_is_none(name: str, kind: str) -> None:
    graph = _graph(name, kind)
    (last,) = graph.outputs()
    assert last.producer is not None
    (part,) = (value for value in last.producer.inputs if value is not None)
    assert picked(graph, part) is None


class Stack(nn.Module):
    """Cuts a wide tensor in heads that lie behind each other, in an order of dims."""

    def __init__(self, order: tuple[int, ...]) -> None:
        super().__init__()
        self.order = order

    def forward(self, x: Tensor) -> Tensor:
        apart = torch.cos(x).reshape(3, 4, 3, 2, 2).permute(self.order)
        return torch.sin(apart[1])


@pytest.mark.parametrize("kind", ["fx", "onnx"])
def test_heads_behind_each_other_are_places_of_the_last_dim(kind: str) -> None:
    for order, places in (((2, 0, 3, 1, 4), (4, 8)), ((2, 0, 1, 3, 4), None)):
        fx = capture(Stack(order), (torch.randn(3, 4, 12),), None)
        graph: Graph = fx if kind == "fx" else to_onnx(fx, 18)
        (last,) = graph.outputs()
        assert last.producer is not None
        (part,) = (value for value in last.producer.inputs if value is not None)
        found = stacked(graph, part)
        assert (None if found is None else (found.start, found.stop)) == places
