"""Memory and time of low-rank encoder layers: one product after the other, against the pass flash-svd.

    python benchmarks/bench_flash_svd.py [--batch 32] [--sequence 256] [--layers 2] [--rounds 9] [--device cuda]

Layers of BERT-Base (hidden 768, 12 heads, feed-forward 3072) whose weights are exactly of rank 40 a head for queries,
keys and values, and 240 elsewhere, so that all forms compute the same function:

    dense      as it was trained
    unfused    each projection as two products, per head for queries, keys and values (what FlashSVD compares with)
    flash-svd  what the pass makes of the dense layers at these ranks; "own" with ONNX Runtime's own operators

Peak: bytes of activations alive at once beyond the input. In torch every allocation is seen by a dispatch mode, on a
GPU by its allocator; in ONNX Runtime it is the growth of the resident set over one run in a process of its own, with
the arena off and an allocator that returns memory at once (exact to the megabyte; page faults cost time, so time is
taken in a normal process).
Buffer: the largest single tensor that is not an input, an output or a weight.
"""

import argparse
import copy
import os
import subprocess
import sys
import tempfile
import warnings
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import regraft
from regraft.backends import compare
from regraft.passes import FlashSVD

HIDDEN, HEADS, WIDE = 768, 12, 3072
HEAD_RANK, RANK = 40, 240
EXACT_MALLOC = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


class TwoProducts(nn.Module):
    """y = (x · downᵀ) · upᵀ + bias."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(inputs, RANK, bias=False), nn.Linear(RANK, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Multiply twice."""
        return self.up(self.down(x))

    def dense(self) -> nn.Linear:
        """Return the layer that is the same in one product."""
        merged = nn.Linear(self.down.in_features, self.up.out_features)
        merged.weight.copy_((self.up.weight.double() @ self.down.weight.double()).float())
        merged.bias.copy_(self.up.bias)
        return merged


class PerHead(nn.Module):
    """A projection with two factors for each head; gives [batch, heads, rows, head]."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Linear(HIDDEN, HEADS * HEAD_RANK, bias=False)
        self.up = nn.Parameter(torch.randn(HEADS, HEAD_RANK, HIDDEN // HEADS) / HEAD_RANK**0.5)
        self.bias = nn.Parameter(torch.randn(HEADS, 1, HIDDEN // HEADS) * 0.1)

    def forward(self, x: Tensor) -> Tensor:
        """Multiply twice, the second time per head."""
        return self.down(x).unflatten(-1, (HEADS, HEAD_RANK)).transpose(1, 2) @ self.up + self.bias

    def dense(self) -> nn.Linear:
        """Return the layer that is the same in one product, heads side by side."""
        merged = nn.Linear(HIDDEN, HIDDEN)
        down = self.down.weight.double().reshape(HEADS, HEAD_RANK, HIDDEN)
        merged.weight.copy_((self.up.double().transpose(1, 2) @ down).flatten(0, 1).float())
        merged.bias.copy_(self.bias.flatten())
        return merged


class SplitHeads(nn.Module):
    """A dense projection; gives [batch, heads, rows, head]."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        """Multiply once and split the heads."""
        return self.layer(x).unflatten(-1, (HEADS, -1)).transpose(1, 2)


class Layer(nn.Module):
    """One encoder layer, norms behind the sums, as in BERT."""

    def __init__(self, parts: dict[str, nn.Module], norms: tuple[nn.LayerNorm, nn.LayerNorm]) -> None:
        super().__init__()
        self.parts, self.norms = nn.ModuleDict(parts), nn.ModuleList(norms)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """[batch, rows, hidden] to the same; mask: booleans [batch, 1, 1, rows]."""
        q, k, v = (self.parts[name](x) for name in ("query", "key", "value"))
        attended = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        del q, k, v
        x = self.norms[0](x + self.parts["output"](attended.transpose(1, 2).flatten(2)))
        return self.norms[1](x + self.parts["outer"](nn.functional.gelu(self.parts["inner"](x))))


class Encoder(nn.Module):
    """Layers one after the other; the mask is 1 for tokens that are there."""

    def __init__(self, layers: list[Layer]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        """[batch, rows, hidden] to the same; tokens [batch, rows]."""
        mask = tokens.bool()[:, None, None, :]
        for layer in self.layers:
            x = layer(x, mask)
        return x


@torch.no_grad()
def make_models(layers: int) -> tuple[Encoder, Encoder]:
    """Return the unfused encoder and the dense one of the same function."""
    torch.manual_seed(0)
    unfused, dense = [], []
    for _ in range(layers):
        parts: dict[str, Any] = {name: PerHead() for name in ("query", "key", "value")}
        parts |= {"output": TwoProducts(HIDDEN, HIDDEN), "inner": TwoProducts(HIDDEN, WIDE)}
        parts |= {"outer": TwoProducts(WIDE, HIDDEN)}
        norms = (nn.LayerNorm(HIDDEN), nn.LayerNorm(HIDDEN))
        merged = {name: part.dense() for name, part in parts.items()}
        merged |= {name: SplitHeads(merged[name]) for name in ("query", "key", "value")}
        unfused.append(Layer(parts, norms))
        dense.append(Layer(merged, norms))
    return Encoder(unfused).eval(), Encoder(dense).eval()


class Allocations(TorchDispatchMode):
    """Counts the bytes of tensors that operators make, for as long as these live."""

    def __init__(self) -> None:
        super().__init__()
        self.alive = self.peak = self.largest = 0
        self._known: set[int] = set()

    def know(self, *tensors: Tensor) -> None:
        """Leave these out."""
        self._known.update(tensor.untyped_storage().data_ptr() for tensor in tensors)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        place, size = storage.data_ptr(), storage.nbytes()
        if place in self._known or not size:
            return
        self._known.add(place)
        self.alive += size
        self.peak, self.largest = max(self.peak, self.alive), max(self.largest, size)
        weakref.finalize(storage, self._forget, place, size)

    def _forget(self, place: int, size: int) -> None:
        self._known.discard(place)
        self.alive -= size


@torch.no_grad()
def torch_memory(model: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[int, int]:
    """Return the peak of activations, and the largest one; on a GPU the peak is that of torch's allocator."""
    seen, peak = Allocations(), 0
    on_gpu = inputs[0].is_cuda
    if on_gpu:
        model(*inputs)
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        model(*inputs)
        torch.cuda.synchronize()
        peak = torch.cuda.max_memory_allocated() - before
    seen.know(*inputs, *model.parameters(), *model.buffers())
    with seen:
        model(*inputs)
    return peak if on_gpu else seen.peak, seen.largest


def onnx_memory(path: Path, batch: int, sequence: int, threads: int) -> int:
    """Return the growth of the resident set over one run, in a process of its own."""
    command = [sys.executable, __file__, "--measure", str(path)]
    command += ["--batch", str(batch), "--sequence", str(sequence), "--threads", str(threads)]
    done = subprocess.run(command, env=os.environ | EXACT_MALLOC, capture_output=True, text=True, check=True)
    return int(done.stdout.split()[-1])


def measure_one(path: str, batch: int, sequence: int, threads: int) -> None:
    """Print the growth of the resident set over one run (what the process above runs)."""
    options = ort.SessionOptions()
    options.enable_cpu_mem_arena, options.enable_mem_pattern = False, False
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    session.run(None, onnx_inputs(1, 8))
    feeds = onnx_inputs(batch, sequence)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    before = _status("VmRSS")
    result = session.run(None, feeds)
    print(_status("VmHWM") - before - result[0].nbytes)


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def onnx_inputs(batch: int, sequence: int) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    tokens = np.ones((batch, sequence), np.int64)
    tokens[:, sequence - sequence // 8 :] = 0
    return {"x": generator.standard_normal((batch, sequence, HIDDEN), np.float32), "tokens": tokens}


def largest_tensor(path: Path, batch: int, sequence: int) -> int:
    """Return the bytes of the largest tensor between the nodes that ONNX Runtime runs."""
    with tempfile.TemporaryDirectory() as folder:
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        options.optimized_model_filepath = str(Path(folder) / "run.onnx")
        options.log_severity_level = 3
        ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        model = onnx.load(options.optimized_model_filepath)
    outputs = {value.name for value in model.graph.output}
    names = [name for node in model.graph.node for name in node.output if name and name not in outputs]
    model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    # A batch of one, since every tensor is kept here; all that is large grows with the batch.
    results = session.run(names, onnx_inputs(1, sequence))
    return max(np.asarray(result).nbytes for result in results) * batch


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("batch", 32), ("sequence", 256), ("layers", 2), ("rounds", 9), ("threads", 2)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where torch runs (cpu)")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        measure_one(given.measure, given.batch, given.sequence, given.threads)
        return
    torch.set_num_threads(given.threads)
    unfused, dense = make_models(given.layers)
    inputs = tuple(torch.from_numpy(array) for array in onnx_inputs(given.batch, given.sequence).values())
    small = tuple(torch.from_numpy(array) for array in onnx_inputs(2, 16).values())
    flash = regraft.optimize(
        dense, FlashSVD(head_rank=HEAD_RANK, rank=RANK), example_inputs=dict(zip(("x", "tokens"), small, strict=True))
    )
    print(flash.ledger)
    with torch.no_grad():
        wanted, got = unfused(*small), flash.model(*small)
    print(f"flash-svd differs from unfused by {float((wanted - got).norm() / wanted.norm()):.1e}\n")
    models = {"unfused": unfused, "dense": dense, "flash-svd": flash.model}
    if given.device == "cuda":
        moved = {name: copy.deepcopy(model).cuda() for name, model in models.items()}
        _torch_table("torch, cuda", moved, tuple(tensor.cuda() for tensor in inputs), given.rounds)
        return
    _torch_table("torch", models, inputs, given.rounds)
    _onnx_table(models, flash, small, given)


def _torch_table(title: str, models: dict[str, Any], inputs: tuple[Tensor, ...], rounds: int) -> None:
    figures = {name: torch_memory(model, inputs) for name, model in models.items()}
    with torch.no_grad():
        times = compare({name: _caller(model, inputs) for name, model in models.items()}, rounds=rounds)
    _print(title, figures, times)


def _caller(model: Any, inputs: tuple[Tensor, ...]) -> Callable[[], Any]:
    def call() -> None:
        model(*inputs)
        if inputs[0].is_cuda:
            torch.cuda.synchronize()

    return call


def _onnx_table(
    models: dict[str, Any], flash: regraft.Optimized, small: tuple[Tensor, ...], given: argparse.Namespace
) -> None:
    feeds = onnx_inputs(given.batch, given.sequence)
    with tempfile.TemporaryDirectory() as folder:
        figures: dict[str, tuple[int, int]] = {}
        calls: dict[str, Callable[[], Any]] = {}
        for name, model in {**models, "flash-svd, own": flash.model}.items():
            path = Path(folder) / f"{name.replace(', ', '-')}.onnx"
            if model is flash.model:
                flash.export(path, target="onnxruntime" if name.endswith("own") else None)
            else:
                _export(model, small, path)
            peak = onnx_memory(path, given.batch, given.sequence, given.threads)
            figures[name] = (peak, largest_tensor(path, given.batch, given.sequence))
            options = ort.SessionOptions()
            options.intra_op_num_threads = given.threads
            options.add_session_config_entry("session.force_spinning_stop", "1")
            session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
            calls[name] = lambda session=session: session.run(None, feeds)
        times = compare(calls, rounds=given.rounds)
    _print("ONNX Runtime", figures, times)


def _export(model: nn.Module, small: tuple[Tensor, ...], path: Path) -> None:
    batch, sequence = torch.export.Dim("batch"), torch.export.Dim("sequence")
    shapes = {name: {0: batch, 1: sequence} for name in ("x", "tokens")}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model, small, path, dynamo=True, opset_version=21, dynamic_shapes=shapes, external_data=False, verbose=False
        )


def _print(title: str, figures: dict[str, tuple[int, int]], times: Any) -> None:
    print(
        f"{title:14} {'peak MB':>9} {'of unfused':>11} {'buffer MB':>10} {'of unfused':>11}"
        f" {'ms':>8} {'of unfused':>11}"
    )
    peak, largest = figures["unfused"]
    for name, (one, other) in figures.items():
        seconds = times.timings[name].median_s
        print(
            f"{name:14} {one / 1e6:9.0f} {one / peak:11.2f} {other / 1e6:10.0f} {other / largest:11.2f} "
            f"{seconds * 1e3:8.0f} {times.ratio(name):11.2f}"
        )
    print()


if __name__ == "__main__":
    main()
