"""What the framework itself costs: matcher and manager on generated graphs of growing size.

    python benchmarks/bench_overhead.py [--nodes 10000] [--kind onnx|fx] [--shared]

A graph is a chain of blocks of ten nodes, one of them a linear layer, as in transformers. "match" finds the layers;
"manage" is a whole run of a pass, less the numeric work (planning factorizes, and checks run the graph), which is shown
apart. Times are the best of three; a linear framework doubles them with the nodes. With --shared all layers read one
weight and one bias: 1,000 calls of one layer in 10,000 nodes.
"""

import argparse
import gc
import time
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
import torch
from torch import fx

from regraft.frontends.onnx import load
from regraft.frontends.torch import FxGraph, capture
from regraft.graph import Graph, find_linear_sites
from regraft.passes import LowRank, Settings, _check, _manager, run_passes

WIDTH = 8
PER_BLOCK = 10


def main() -> None:
    """Print a table of sizes and times."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=10_000)
    parser.add_argument("--kind", choices=("onnx", "fx", "both"), default="both")
    parser.add_argument("--shared", action="store_true")
    options = parser.parse_args()
    for kind in ("onnx", "fx") if options.kind == "both" else (options.kind,):
        print(f"{kind:>5}  nodes  calls  match s  manage s  numeric s")
        for nodes in (options.nodes // 4, options.nodes // 2, options.nodes):
            report(kind, nodes, shared=options.shared)


def report(kind: str, nodes: int, *, shared: bool) -> None:
    graph = onnx_chain(nodes, shared=shared) if kind == "onnx" else fx_chain(nodes, shared=shared)
    # One full collection goes through everything that torch and the others imported: that is no cost of the graph.
    gc.collect()
    gc.freeze()
    begin = time.perf_counter()
    sites, _ = find_linear_sites(graph)
    matched = time.perf_counter() - begin
    clock = min((managed(graph) for _ in range(3)), key=lambda item: item.total - item.numeric)
    managing = clock.total - clock.numeric
    calls = sum(len(site.calls) for site in sites)
    print(f"{'':>5}  {nodes:>5}  {calls:>5}  {matched:7.2f}  {managing:8.2f}  {clock.numeric:9.2f}")


@dataclass
class Clock:
    """Seconds of a run, and of the numeric work in it."""

    total: float = 0.0
    numeric: float = 0.0
    seen: dict[str, float] = field(default_factory=dict)

    def timed(self, function):
        """Return the function with its time counted as numeric."""

        def run(*args, **kwargs):
            begin = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.numeric += time.perf_counter() - begin

        return run


def managed(graph: Graph) -> Clock:
    clock = Clock()
    plan, check = LowRank.plan, _manager.check_sites
    LowRank.plan, _manager.check_sites = clock.timed(plan), clock.timed(_check.check_sites)
    try:
        begin = time.perf_counter()
        run_passes(graph, [LowRank(rank=2)], Settings(strict=False))
        clock.total = time.perf_counter() - begin
    finally:
        LowRank.plan, _manager.check_sites = plan, check
    return clock


def onnx_chain(nodes: int, *, shared: bool) -> Graph:
    rng = np.random.default_rng(0)
    x = ir.Value(name="x", shape=ir.Shape(["rows", WIDTH]), type=ir.TensorType(ir.DataType.FLOAT))
    value, made, weights = x, [], []

    def constant(name: str, shape: tuple[int, ...]) -> ir.Value:
        array = rng.standard_normal(shape, dtype=np.float32)
        made_value = ir.Value(name=name, const_value=ir.tensor(array, name=name), shape=ir.Shape(shape))
        made_value.type = ir.TensorType(ir.DataType.FLOAT)
        weights.append(made_value)
        return made_value

    def node(op: str, inputs: list[ir.Value]) -> ir.Value:
        item = ir.node(op, inputs, name=f"n{len(made)}")
        out = item.outputs[0]
        out.name, out.shape, out.type = f"v{len(made)}", x.shape, x.type
        made.append(item)
        return out

    for block in range(nodes // PER_BLOCK):
        if block == 0 or not shared:
            weight = constant(f"layers.{block}.weight", (WIDTH, WIDTH))
            bias = constant(f"layers.{block}.bias", (WIDTH,))
        value = node("MatMul", [value, weight])
        value = node("Add", [value, bias])
        for _ in range(PER_BLOCK - 2):
            value = node("Relu", [value])
    graph = ir.Graph([x], [value], nodes=made, initializers=weights, opset_imports={"": 21}, name="chain")
    return load(ir.Model(graph, ir_version=10))


def fx_chain(nodes: int, *, shared: bool) -> Graph:
    root, graph = torch.nn.Module(), fx.Graph()
    sample = capture(torch.nn.Linear(WIDTH, WIDTH), (torch.randn(3, WIDTH),), "auto")
    meta = next(node for node in sample.module.graph.nodes if node.op == "placeholder").meta
    x = graph.placeholder("x")
    x.meta = dict(meta)
    value = x
    for block in range(nodes // PER_BLOCK):
        if block == 0 or not shared:
            layer = torch.nn.Linear(WIDTH, WIDTH)
            root.add_module(f"layer{block}", layer)
            weight, bias = graph.get_attr(f"layer{block}.weight"), graph.get_attr(f"layer{block}.bias")
            weight.meta["val"], bias.meta["val"] = layer.weight.detach(), layer.bias.detach()
        value = graph.call_function(torch.ops.aten.linear.default, (value, weight, bias))
        value.meta = dict(meta)
        for _ in range(PER_BLOCK - 1):
            value = graph.call_function(torch.ops.aten.relu.default, (value,))
            value.meta = dict(meta)
    graph.output(value)
    return FxGraph.of(fx.GraphModule(root, graph), "chain")


if __name__ == "__main__":
    main()
