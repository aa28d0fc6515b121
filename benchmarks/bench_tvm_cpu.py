"""Structured ops on the CPU: TVM's kernels beside the composite form in torch and the exported op in ONNX Runtime.

    python benchmarks/bench_tvm_cpu.py [--rounds 21] [--rows 1,16,128,1024] [--ops lowrank_linear,...]

Two threads each (TVM_NUM_THREADS, OMP_NUM_THREADS: set before anything is imported). The three are run in turn, and in
each round each is run once unmeasured and then measured, so that none waits for the idle threads of another.
"tvm/torch" and "tvm/ort" are medians over rounds of the ratio in one round: below 1 the kernel is faster. "best" are
the same ratios of the shortest times, which a busy machine disturbs less.
"""

import argparse
import os
import time
from collections.abc import Callable, Iterator, Mapping
from statistics import median
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("TVM_NUM_THREADS", "2")

import onnxruntime as ort
import torch
from torch import Tensor, nn

from regraft.backends import compile_graph
from regraft.frontends.torch import capture
from regraft.frontends.torch.library import torch_op
from regraft.numerics.partition import Partition
from regraft.numerics.power_of_two import pack
from regraft.ops import get_op
from regraft.ops.monarch_linear import factor_shapes, layer_attributes

THREADS = int(os.environ["OMP_NUM_THREADS"])
WIDTHS = [(384, 384), (384, 1536), (768, 768), (768, 3072), (3072, 768)]
"""(in, out)."""


class OneOp(nn.Module):
    """An op with its weights; what varies comes in."""

    def __init__(self, name: str, weights: Mapping[str, Tensor], attributes: Mapping[str, Any]) -> None:
        super().__init__()
        self.target, self.attributes = torch_op(name), dict(attributes)
        self.names = [operand.name for operand in get_op(name).operands]
        for operand, tensor in weights.items():
            self.register_buffer(operand, tensor)

    def forward(self, x: Tensor, k: Tensor | None = None, v: Tensor | None = None) -> Tensor:
        """Return the op's result."""
        given = {"x": x, "q": x, "k": k, "v": v}
        return self.target(*(given.get(name, getattr(self, name, None)) for name in self.names), **self.attributes)


def scaled(*shape: int) -> Tensor:
    return torch.randn(shape) / shape[-1] ** 0.5


def cases(rows: int) -> Iterator[tuple[str, str, OneOp, tuple[Tensor, ...]]]:
    for width, out in WIDTHS:
        x = (torch.randn(rows, width),)
        shape = f"{width}x{out}"
        rank = width * out // (width + out) // 2
        bias = torch.randn(out)
        factors = {"down": scaled(rank, width), "up": scaled(out, rank), "bias": bias}
        yield "lowrank_linear", f"{shape} rank {rank}", OneOp("lowrank_linear", factors, {}), x
        cut = Partition(width, out, 4, 4)
        block_rank = cut.rank_for(0.5)
        inner, outer = factor_shapes(cut, block_rank)
        blocks = {"right": scaled(*inner), "left": scaled(*outer), "bias": bias}
        monarch = OneOp("monarch_linear", blocks, layer_attributes(cut, block_rank))
        yield "monarch_linear", f"{shape} 4x4 rank {block_rank}", monarch, x
        weight = torch.randint(-127, 128, (out, width), dtype=torch.int8)
        scale = torch.rand(out) / 127
        integers = {"weight": weight, "scale": scale, "bias": bias}
        yield "int8_linear", shape, OneOp("int8_linear", integers, {"per_row": 1}), x
        few = torch.arange(8)
        inliers = torch.ones(width, dtype=torch.bool)
        inliers[few] = False
        outliers = {**integers, "inliers": inliers, "outliers": few, "outlier_weight": scaled(out, 8)}
        yield "int8_outlier_linear", f"{shape}, 8 outliers", OneOp("int8_outlier_linear", outliers, {"per_row": 1}), x
        values = 2 ** torch.randint(0, 7, (out, width)) * (torch.randint(0, 2, (out, width)) * 2 - 1)
        codes = {"codes": pack(values.to(torch.int8), 1), "scale": scale, "bias": bias}
        for activations in (0, 2):
            attributes = {"terms": 1, "in_features": width, "activations": activations}
            yield "shift_linear", f"{shape}, act. {activations}", OneOp("shift_linear", codes, attributes), x
    for width, hidden in ((384, 1536), (768, 3072)):
        rank = width * hidden // (width + hidden) // 2
        factors = {
            "in_down": scaled(rank, width),
            "in_up": scaled(hidden, rank),
            "out_down": scaled(rank, hidden),
            "out_up": scaled(width, rank),
            "in_bias": torch.randn(hidden),
            "out_bias": torch.randn(width),
        }
        mlp = OneOp("lowrank_mlp", factors, {"activation": "gelu", "blocks": 4})
        yield "lowrank_mlp", f"{width}-{hidden} rank {rank}", mlp, (torch.randn(rows, width),)
    for width in (384, 768):
        length = min(rows, 128)
        inputs = tuple(torch.randn(-(-rows // length), length, width) for _ in range(3))
        attributes = {"heads": 12, "kv_heads": 12, "split": 1, "scale": (width / 12) ** -0.5, "causal": 0, "rows": 0}
        yield "multi_head_attention", f"12x{width // 12}", OneOp("multi_head_attention", {}, attributes), inputs


def measured(functions: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            function()
            begin = time.perf_counter()
            function()
            seconds[name].append(time.perf_counter() - begin)
    return seconds


def report(name: str, shape: str, rows: int, layer: OneOp, inputs: tuple[Tensor, ...], rounds: int) -> None:
    dims = dict.fromkeys(range(inputs[0].dim() - 1), torch.export.Dim.AUTO)
    named = dict(zip("xkv", inputs, strict=False))
    graph = capture(layer.eval(), inputs, dynamic_shapes=dict.fromkeys(named, dims))
    kernels, plain = compile_graph(graph, "torch", kernels="tvm"), compile_graph(graph, "torch")
    used = [use for use in kernels.kernels if use.kernel]
    assert used, [str(use) for use in kernels.kernels]
    session = compile_graph(graph, "onnxruntime", threads=THREADS)
    arrays = [tensor.numpy() for tensor in inputs]
    run, whole = kernels.module, plain.module
    with torch.no_grad():
        found = measured(
            {"tvm": lambda: run(*inputs), "torch": lambda: whole(*inputs), "ort": lambda: session(*arrays)}, rounds
        )
    ratios = "  ".join(
        f"{median(mine / its for mine, its in zip(found['tvm'], found[other], strict=True)):9.2f}  "
        f"{min(found['tvm']) / min(found[other]):5.2f}"
        for other in ("torch", "ort")
    )
    times = "  ".join(f"{1e6 * median(found[key]):8.0f}" for key in ("tvm", "torch", "ort"))
    print(f"{name:<21} {shape:<23} {rows:>5}  {times}  {ratios}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--rows", default="1,16,128,1024")
    parser.add_argument("--ops", default="")
    options = parser.parse_args()
    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    print(f"torch {torch.__version__}, onnxruntime {ort.__version__}, {THREADS} threads; microseconds")
    heads = f"{'tvm':>8}  {'torch':>8}  {'ort':>8}  {'tvm/torch':>9}  {'best':>5}  {'tvm/ort':>9}  {'best':>5}"
    print(f"{'op':<21} {'shape':<23} {'rows':>5}  {heads}")
    for rows in map(int, options.rows.split(",")):
        for name, shape, layer, inputs in cases(rows):
            if not options.ops or name in options.ops.split(","):
                report(name, shape, rows, layer, inputs, options.rounds)


if __name__ == "__main__":
    main()
