"""A bias that is one number for all features: read as a bias of every feature, on both kinds of graph."""

from typing import Any

import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from regraft.frontends.onnx import load
from regraft.frontends.torch import capture
from regraft.graph import Graph, find_linear_sites
from regraft.passes import LowRank, Monarch, Settings, ShiftAdd, run_passes

WIDTH, OUT = 24, 16


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class Addmm(nn.Module):
    """GPT-2's layer with a bias of one number."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(drawn(0, WIDTH, OUT)), nn.Parameter(drawn(1, *shape))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(torch.addmm(self.bias, x, self.weight, beta=0.5))


def gemm(shape: tuple[int, ...]) -> Graph:
    nodes = [
        helper.make_node("Gemm", ["x", "weight", "bias"], ["h"], "layer", beta=0.5),
        helper.make_node("Tanh", ["h"], ["y"]),
    ]
    weights = [
        numpy_helper.from_array(drawn(0, WIDTH, OUT).numpy(), "weight"),
        numpy_helper.from_array(drawn(1, *shape).numpy(), "bias"),
    ]
    info = helper.make_tensor_value_info
    ends = [info("x", TensorProto.FLOAT, ["batch", WIDTH])], [info("y", TensorProto.FLOAT, ["batch", OUT])]
    graph = helper.make_graph(nodes, "net", *ends, weights)
    return load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8))


@pytest.mark.parametrize("item", [LowRank(rank=4), Monarch(blocks=4, slower=True), ShiftAdd(small=True)])
@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
@pytest.mark.parametrize("kind", ["fx", "onnx"])
def test_a_layer_with_a_bias_of_one_number_is_rewritten_and_keeps_it(
    kind: str, shape: tuple[int, ...], item: Any
) -> None:
    graph = gemm(shape) if kind == "onnx" else capture(Addmm(shape).eval(), (drawn(2, 5, WIDTH),))
    (site,), _ = find_linear_sites(graph)
    assert site.bytes == 4 * (WIDTH * OUT + 1)
    rewritten, (entry,) = run_passes(graph, [item], Settings())
    assert entry.status == "rewritten"
    (at_zero,) = rewritten.evaluate([site.output], {site.input: torch.zeros(3, WIDTH)})
    torch.testing.assert_close(at_zero, 0.5 * drawn(1, *shape).reshape(-1).expand(3, OUT))
