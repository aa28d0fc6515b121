"""Small ONNX models, written as text, that the tests of the ONNX frontend share."""

import time
from collections.abc import Callable, Mapping

import numpy as np
import onnx
import onnx.parser
import torch
from onnx import TensorProto, helper
from torch import Tensor

from regraft.frontends.onnx import OnnxGraph
from regraft.graph import LinearSite, find_linear_sites
from regraft.ops import get_op

LOWRANK = get_op("lowrank_linear")


def parse(text: str, weights: Mapping[str, tuple[int, ...]] | None = None, opset: int = 18) -> onnx.ModelProto:
    """Return a model; weights are drawn from a seed, as float32. "__" in the text is a dot, which it cannot hold."""
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": {opset}, "custom": 1]> {text}')
    _dot(model.graph)
    for place, (name, shape) in enumerate((weights or {}).items()):
        content = np.random.default_rng(place).standard_normal(shape).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(content, name))
    return model


def _dot(graph: onnx.GraphProto) -> None:
    for node in graph.node:
        if not node.domain:
            node.ClearField("domain")  # the parser writes it out
        node.input[:] = [name.replace("__", ".") for name in node.input]
        for attribute in node.attribute:
            _dot(attribute.g)


def mlp(opset: int = 18) -> onnx.ModelProto:
    """Two linear layers, MatMul + Add and Gemm, with names as the TorchScript exporter leaves them."""
    text = """net (float[batch, 6] x) => (float[batch, 3] y)
    <float[batch, 4] h0, float[batch, 4] h1, float[batch, 4] h2> {
        [up_product] h0 = MatMul(x, w0)
        [up_sum] h1 = Add(h0, up__bias)
        [act] h2 = Relu(h1)
        [down] y = Gemm <transB = 1> (h2, down__weight, down__bias)
    }"""
    weights = {"w0": (6, 4), "up.bias": (4,), "down.weight": (3, 4), "down.bias": (3,)}
    return parse(text, weights, opset)


def branches() -> onnx.ModelProto:
    """An If whose two bodies hold a layer each; one captures a weight and a value from around it."""
    text = """net (float[batch, 6] x, bool flag) => (float[batch, 4] y) {
        [scaled] s = Add(x, x)
        [choice] y = If (flag) <
            then_branch = yes () => (float[batch, 4] z) {
                [product] p = MatMul(s, w)
                [sum] z = Add(p, layer__bias)
            },
            else_branch = no () => (float[batch, 4] z)
            <float[6, 4] v = {1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24}> {
                [product] z = MatMul(x, v)
            }
        >
    }"""
    return parse(text, {"w": (6, 4), "layer.bias": (4,)})


def sites(graph: OnnxGraph) -> dict[str, LinearSite]:
    return {site.name: site for site in find_linear_sites(graph)[0]}


def full_rank(site: LinearSite) -> dict[str, Tensor | None]:
    """Factors that lose nothing, so that a rewritten model computes what it did."""
    u, s, vh = torch.linalg.svd(site.weight.double(), full_matrices=False)
    dtype = site.weight.dtype
    bias = site.bias
    return {"down": (s[:, None] * vh).to(dtype), "up": u.to(dtype), "bias": None if bias is None else bias.clone()}


def rewrite_all(graph: OnnxGraph) -> None:
    for site in find_linear_sites(graph)[0]:
        graph.replace(site, LOWRANK, full_rank(site))


def chain(length: int) -> onnx.ModelProto:
    """Linear layers one behind the other, each of two nodes."""
    nodes: list[onnx.NodeProto] = []
    weights: list[TensorProto] = []
    for place in range(length):
        nodes.append(helper.make_node("MatMul", [f"v{place}", f"w{place}"], [f"p{place}"], name=f"m{place}"))
        nodes.append(helper.make_node("Add", [f"p{place}", f"b{place}"], [f"v{place + 1}"], name=f"a{place}"))
        weights.append(onnx.numpy_helper.from_array(np.eye(8, dtype=np.float32), f"w{place}"))
        weights.append(onnx.numpy_helper.from_array(np.zeros(8, np.float32), f"b{place}"))
    names = [name for place in range(length) for name in (f"p{place}", f"v{place + 1}")][:-1]
    types = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 8]) for name in names]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 8]) for name in ("v0", f"v{length}")]
    graph = helper.make_graph(nodes, "chain", ends[:1], ends[1:], weights, value_info=types)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def seconds(count: int, action: Callable[[], object]) -> float:
    """Least processor time of a few tries, so that a busy machine does not matter."""
    times: list[float] = []
    for _ in range(count):
        start = time.process_time()
        action()
        times.append(time.process_time() - start)
    return min(times)
