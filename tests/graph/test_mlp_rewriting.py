"""Feed-forward layers of PyTorch and ONNX models in the form that never holds the hidden width: the same function."""

from io import BytesIO
from typing import Literal

import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from regraft.backends.onnxruntime._from_torch import to_onnx
from regraft.frontends.onnx import load
from regraft.frontends.torch import capture
from regraft.graph import Graph
from regraft.graph.mlp import MlpSite, find_mlp_sites, with_residual
from regraft.ops import get_op

WIDTH, HIDDEN = 12, 40
"""The hidden width is no other extent of the models."""

Kind = Literal["fx", "onnx"]


class Bert(nn.Module):
    """Linear, GELU, linear, dropout, the sum with the input, and a norm."""

    def __init__(self, activation: str = "none") -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, WIDTH)
        self.norm, self.dropout, self.approximate = nn.LayerNorm(WIDTH), nn.Dropout(0.1), activation

    def forward(self, x: Tensor) -> Tensor:
        hidden = functional.gelu(self.fc1(x), approximate=self.approximate)
        return self.norm(self.dropout(self.fc2(hidden)) + x)


class Llama(nn.Module):
    """SwiGLU behind a norm, without biases."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up = (nn.Linear(WIDTH, HIDDEN, bias=False) for _ in range(2))
        self.down, self.norm = nn.Linear(HIDDEN, WIDTH, bias=False), nn.LayerNorm(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x)
        return x + self.down(functional.silu(self.gate(normed)) * self.up(normed))


class Gpt2(nn.Module):
    """Products of rows with weights that are stored transposed, and GELU written out."""

    def __init__(self) -> None:
        super().__init__()
        self.w1, self.b1 = nn.Parameter(torch.randn(WIDTH, HIDDEN) / 4), nn.Parameter(torch.randn(HIDDEN))
        self.w2, self.b2 = nn.Parameter(torch.randn(HIDDEN, WIDTH) / 4), nn.Parameter(torch.randn(WIDTH))
        self.norm = nn.LayerNorm(WIDTH)

    def layer(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return torch.addmm(bias, x.view(-1, x.shape[-1]), weight).view(*x.shape[:-1], weight.shape[1])

    def forward(self, x: Tensor) -> Tensor:
        inner = self.layer(self.norm(x), self.w1, self.b1)
        hidden = 0.5 * inner * (1 + torch.tanh(0.7978845608028654 * (inner + 0.044715 * torch.pow(inner, 3.0))))
        return self.layer(hidden, self.w2, self.b2) + x


MODELS = (Bert, Llama, Gpt2)


def seeded(cls: type[nn.Module]) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return cls().eval(), torch.randn(2, 5, WIDTH)


def graph_of(cls: type[nn.Module], kind: Kind) -> tuple[Graph, Tensor]:
    model, x = seeded(cls)
    if kind == "fx":
        return capture(model.double(), (x.double(),)), x.double()
    file = BytesIO()
    torch.onnx.export(model, (x,), file, dynamo=False, opset_version=17)  # type: ignore[arg-type]
    return load(onnx.load_from_string(file.getvalue())), x


def rewritten(graph: Graph, site: MlpSite, blocks: int) -> Graph:
    copy = graph.copy()
    copy.replace(site, get_op("lowrank_mlp"), site.tensors(), {"activation": site.activation, "blocks": blocks})
    copy.validate()
    return copy


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("along", [False, True])
@pytest.mark.parametrize("kind", ["fx", "onnx"])
@pytest.mark.parametrize("cls", MODELS)
def test_the_rewritten_model_computes_the_same_and_holds_no_hidden_width(
    cls: type[nn.Module], kind: Kind, along: bool
) -> None:
    graph, x = graph_of(cls, kind)
    (found,), misses = find_mlp_sites(graph)
    assert not misses
    site = with_residual(found) if along else found
    assert site is not None
    after = rewritten(graph, site, blocks=3)
    tolerance = 1e-12 if kind == "fx" else 1e-5
    torch.testing.assert_close(after.run((x,))[0][0], graph.run((x,))[0][0], rtol=tolerance, atol=tolerance)
    held = [value for node in after.nodes() for value in node.outputs if HIDDEN in (value.type.shape or ())]
    assert not held
    assert [node.op for node in after.nodes()].count("lowrank_mlp") == 1
    assert not find_mlp_sites(after)[0]


@pytest.mark.parametrize("cls", MODELS)
def test_a_site_is_what_the_graph_computes_there(cls: type[nn.Module]) -> None:
    graph, x = graph_of(cls, "fx")
    (site,), _ = find_mlp_sites(graph)
    _, tapped = graph.run((x,), taps=(site.operands["x"], site.output))
    torch.testing.assert_close(site.reference(tapped[site.operands["x"]]), tapped[site.output])


def test_a_rewritten_torch_model_is_written_as_onnx_with_its_texts_and_numbers() -> None:
    model, x = seeded(Bert)
    graph = capture(model, (x,))
    (site,), _ = find_mlp_sites(graph)
    wider = with_residual(site)
    assert wider is not None
    written = to_onnx(rewritten(graph, wider, blocks=4))  # type: ignore[arg-type]
    (node,) = [node for node in written.nodes() if node.op == "lowrank_mlp"]
    assert dict(node.attributes) == {"activation": "gelu", "blocks": 4}
    torch.testing.assert_close(written.run((x,))[0][0], model(x), rtol=1e-5, atol=1e-5)
    wide = torch.cat([x, x + 1])
    torch.testing.assert_close(written.run((wide,))[0][0], model(wide), rtol=1e-5, atol=1e-5)
