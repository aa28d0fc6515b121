"""Monarch layers against dense and low-rank ones of as many parameters, in ONNX Runtime and in PyTorch.

    python benchmarks/bench_monarch.py [--rounds 30] [--threads 2] [--skip layers|quantized|members|spellings ...]

One process; within a table row everything runs in turn. Numbers are the median over the rounds of a layer's time
divided by the dense layer's in the same round: below 1 is faster.

layers      single layers of several shapes and row counts, at 50 % and 25 % of the dense parameters
quantized   what a later llm-int8 or shift-add makes of the blocks, and what llm-int8 makes of the dense layer
members     a weight that is of the class (a Fourier transform, real and imaginary part), which stays exact
spellings   how the op is written out: the one that `regraft.ops.monarch_linear` has, and those that it does not have
"""

import argparse
import inspect
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

import regraft
from regraft.backends import compare
from regraft.frontends.onnx import single_node_model
from regraft.numerics.monarch import project
from regraft.numerics.partition import Partition
from regraft.ops import Builder, Op, evaluate
from regraft.ops.monarch_linear import layer_attributes, op
from regraft.passes import LLMInt8, LowRank, Monarch, ShiftAdd

LAYERS = (
    (1, 1024, 1024),
    (16, 1024, 1024),
    (1024, 384, 384),
    (1024, 384, 1536),
    (1024, 1536, 384),
    (128, 768, 3072),
    (512, 1024, 4096),
)
"""(rows, in, out)."""

COUNTS = (4, 8, 16)
Runs = dict[str, Callable[[], Any]]
Passes = dict[str, tuple[Any, ...]]
"""Passes one after the other, by what they are called in a table."""


def main() -> None:
    """Print the tables that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30, help="measured rounds (30)")
    parser.add_argument("--threads", type=int, default=2, help="threads within an operator (2)")
    parser.add_argument("--skip", nargs="*", default=[], choices=tuple(TABLES))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    for name, table in TABLES.items():
        if name not in options.skip:
            table(options.rounds, options.threads)


def layers(rounds: int, threads: int) -> None:
    """Generic weights: what as many parameters cost in each form."""
    names = ["low-rank", *(f"monarch {count}" for count in COUNTS)]
    print(f"\nlayers: time / dense   {'ONNX Runtime':^44} | {'PyTorch':^44}")
    header = " ".join(f"{name:>10}" for name in names)
    print(f"{'rows x in x out, kept':<22} {header} | {header}   dense ms")
    for keep in (0.5, 0.25):
        for rows, fan_in, fan_out in LAYERS:
            x = torch.randn(rows, fan_in)
            passes: Passes = {"low-rank": (LowRank(keep=keep),)}
            passes |= {
                f"monarch {count}": (Monarch(blocks=count, keep=keep, order="contiguous", slower=True),)
                for count in COUNTS
            }
            dense = nn.Linear(fan_in, fan_out)
            kinds = [timed(rewritten(dense, passes, x, kind, threads), rounds) for kind in ("onnxruntime", "torch")]
            show(f"{rows} x {fan_in} x {fan_out}, {keep:.0%}", names, kinds)


def quantized(rounds: int, threads: int) -> None:
    """Blocks in 8 bits or as powers of two, beside blocks in floating point, at 50 %."""
    int8 = {name: LLMInt8(outliers="none", activations=name, small=True) for name in ("row", "tensor")}
    shift = ShiftAdd(terms=2, activations="tensor", small=True)
    later = {"int8 row": (int8["row"],), "int8 tensor": (int8["tensor"],), "shift": (shift,)}
    names = ["dense int8", *(f"{count} {name}" for count in (4, 16) for name in ("blocks", *later))]
    print(f"\nquantized: time / dense {'ONNX Runtime':^116} | {'PyTorch':^116}")
    header = " ".join(f"{name:>13}" for name in names)
    print(f"{'rows x in x out':<22} {header} | {header}   dense ms")
    for rows, fan_in, fan_out in LAYERS:
        x, dense = torch.randn(rows, fan_in), nn.Linear(fan_in, fan_out)
        passes: Passes = {"dense int8": (int8["tensor"],)}
        for count in (4, 16):
            blocks = Monarch(blocks=count, order="contiguous", slower=True)
            passes |= {f"{count} {name}": (blocks, *items) for name, items in {"blocks": (), **later}.items()}
        kinds = [timed(rewritten(dense, passes, x, kind, threads), rounds) for kind in ("onnxruntime", "torch")]
        show(f"{rows} x {fan_in} x {fan_out}", names, kinds, columns=13)


def members(rounds: int, threads: int) -> None:
    """A Fourier transform: exact, and small."""
    print("\nmembers: a Fourier transform as a linear layer, exact in blocks of rank 2; time / dense")
    print(f"{'rows x points, blocks':<22} {'parameters':>10} {'error':>9} {'ONNX Runtime':>13} {'PyTorch':>8}")
    for rows in (1, 16, 256):
        for points, blocks in ((256, 16), (1024, 32)):
            dense = nn.Linear(points, 2 * points, bias=False)
            spectrum = torch.fft.fft(torch.eye(points, dtype=torch.float64))
            with torch.no_grad():
                dense.weight.copy_(torch.cat([spectrum.real, spectrum.imag]))
            x = torch.randn(rows, points)
            item = Monarch(blocks=blocks, heads=True, slower=True)
            result = regraft.optimize(dense, [item], example_inputs=x.expand(max(rows, 2), -1), progress=False)
            (entry,) = result.ledger.rewritten
            share = (entry.bytes_after or 0) / (entry.bytes_before or 1)
            ratios = [
                timed(rewritten(dense, {"monarch": (item,)}, x, kind, threads), rounds).ratio("monarch")
                for kind in ("onnxruntime", "torch")
            ]
            shown = f"{rows} x {points}, {blocks}"
            print(f"{shown:<22} {share:>10.1%} {entry.measured_error:>9.1e} {ratios[0]:>13.2f} {ratios[1]:>8.2f}")


def spellings(rounds: int, threads: int) -> None:
    """Other ways to write the same layer."""
    forms = {name: replace(op, decompose=decompose) for name, decompose in SPELLINGS.items()}
    names = ["as it is", *forms]
    header = " ".join(f"{name:>10}" for name in names)
    print(f"\nspellings: time / dense {'ONNX Runtime':^54} | {'PyTorch':^54}")
    print(f"{'rows x in x out, blocks':<24} {header} | {header}   dense ms")
    for rows, fan_in, fan_out in LAYERS:
        for blocks in (4, 16):
            x, dense = torch.randn(rows, fan_in), nn.Linear(fan_in, fan_out)
            cut = Partition(fan_in, fan_out, blocks, blocks)
            rank = cut.rank_for(0.5)
            factors = project(dense.weight.detach(), cut, rank, dense.bias.detach())
            tensors = {"x": x, "right": factors.right, "left": factors.left, "bias": dense.bias.detach()}
            kinds = [
                timed(
                    {"dense": dense_run(dense, x, kind, threads), **spelled(forms, tensors, cut, rank, kind, threads)},
                    rounds,
                )
                for kind in ("onnxruntime", "torch")
            ]
            show(f"{rows} x {fan_in} x {fan_out}, {blocks}", names, kinds, width=24)


def rewritten(dense: nn.Linear, passes: Passes, x: Tensor, kind: str, threads: int) -> Runs:
    """The dense layer, and what passes make of it."""
    runs: Runs = {"dense": dense_run(dense, x, kind, threads)}
    example = x if len(x) > 1 else x.expand(2, -1)  # an extent of one would be fixed
    for name, items in passes.items():
        asked = [replace(item, heads=True) for item in items]
        result = regraft.optimize(dense, asked, example_inputs=example, progress=False, strict=False)
        if result.ledger.rewritten:
            runs[name] = compiled(result, x, kind, threads)
    return runs


def dense_run(dense: nn.Linear, x: Tensor, kind: str, threads: int) -> Callable[[], Any]:
    example = x if len(x) > 1 else x.expand(2, -1)
    return compiled(regraft.load(dense, example_inputs=example), x, kind, threads)


def compiled(result: regraft.Optimized, x: Tensor, kind: str, threads: int) -> Callable[[], Any]:
    if kind == "torch":
        run = result.compile("torch")
        return lambda: run(x)
    run, array = result.compile("onnxruntime", threads=threads), x.numpy()
    return lambda: run(array)


def spelled(
    forms: Mapping[str, Op], tensors: Mapping[str, Tensor], cut: Partition, rank: int, kind: str, threads: int
) -> Runs:
    runs: Runs = {}
    attributes = layer_attributes(cut, rank)
    for name, form in {"as it is": op, **forms}.items():
        if kind == "torch":
            # Weights of its own: shared ones would be in the cache for all but the first.
            own = {operand: tensor.clone() for operand, tensor in tensors.items()}
            runs[name] = lambda form=form, own=own: evaluate(form, own, attributes)
        else:
            model = single_node_model(form, tensors, attributes, opset=21, dynamic=(0,))
            runs[name] = compiled(regraft.load(model), tensors["x"], kind, threads)
    return runs


def timed(runs: Runs, rounds: int) -> Any:
    with torch.no_grad():
        return compare(runs, rounds=rounds)


def show(label: str, names: list[str], kinds: list[Any], width: int = 22, columns: int = 10) -> None:
    cells = [
        " ".join(f"{format(found.ratio(name), '.2f') if name in found.timings else '-':>{columns}}" for name in names)
        for found in kinds
    ]
    milliseconds = "/".join(f"{1e3 * found.timings['dense'].median_s:.2f}" for found in kinds)
    print(f"{label:<{width}} {' | '.join(cells)}   {milliseconds}", flush=True)


# Spellings of contiguous blocks that divide their extents; the formula is that of regraft.ops.monarch_linear.


def spelling(decompose: Callable[..., Any]) -> Callable[..., Any]:
    """Declare the operands and attributes that the op has."""
    decompose.__signature__ = inspect.signature(op.decompose)
    return decompose


@spelling
def by_block(b: Builder[Any], x: Any, right: Any, left: Any, bias: Any = None, **cut: Any) -> Any:
    """The intermediate is put in order of groups first, rows second."""
    k, l, rank = cut["in_blocks"], cut["out_blocks"], cut["block_rank"]  # noqa: E741 - the formula's letters
    runs = b.permute(b.reshape(x, [-1, k, cut["in_features"] // k]), [1, 0, 2])
    h = b.reshape(b.matmul(runs, right), [k, -1, l, rank])
    groups = b.matmul(b.reshape(b.permute(h, [2, 1, 0, 3]), [l, -1, k * rank]), left)
    return b.add(b.reshape(b.permute(groups, [1, 0, 2]), [-1, cut["out_features"]]), bias)


@spelling
def published(b: Builder[Any], x: Any, right: Any, left: Any, bias: Any = None, **cut: Any) -> Any:
    """Intermediates are shared out one by one, results are strided (so that this is another matrix of the class)."""
    k, l, rank = cut["in_blocks"], cut["out_blocks"], cut["block_rank"]  # noqa: E741 - the formula's letters
    runs = b.permute(b.reshape(x, [-1, k, cut["in_features"] // k]), [1, 0, 2])
    h = b.reshape(b.matmul(runs, right), [k, -1, rank, l])
    groups = b.matmul(b.reshape(b.permute(h, [3, 1, 0, 2]), [l, -1, k * rank]), left)
    return b.add(b.reshape(b.permute(groups, [1, 2, 0]), [-1, cut["out_features"]]), bias)


@spelling
def split(b: Builder[Any], x: Any, right: Any, left: Any, bias: Any = None, **cut: Any) -> Any:
    """2-D products, one a block of either factor."""
    k, l, rank = cut["in_blocks"], cut["out_blocks"], cut["block_rank"]  # noqa: E741 - the formula's letters
    p, s = cut["in_features"] // k, cut["out_features"] // l
    parts: list[Any] = []
    for a in range(k):
        factor = b.reshape(b.slice(right, 0, a, a + 1), [p, l * rank])
        parts.append(b.reshape(b.matmul(b.slice(x, 1, a * p, a * p + p), factor), [-1, l, rank]))
    h = b.reshape(b.concat(parts, 2), [-1, l * k * rank])
    results: list[Any] = []
    for a in range(l):
        factor = b.reshape(b.slice(left, 0, a, a + 1), [k * rank, s])
        results.append(b.matmul(b.slice(h, 1, a * k * rank, (a + 1) * k * rank), factor))
    return b.add(b.concat(results, 1), bias)


SPELLINGS: Mapping[str, Callable[..., Any]] = {"by block": by_block, "published": published, "split": split}
TABLES = {"layers": layers, "quantized": quantized, "members": members, "spellings": spellings}


if __name__ == "__main__":
    main()
