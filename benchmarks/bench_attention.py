"""MiniLM in ONNX Runtime with attention as torch's exporter spells it, and as one node, dense and in 8-bit integers.

    python benchmarks/bench_attention.py [--rounds 40] [--threads 2]

One process, one run, the sessions in turn: batch 8 of 128 tokens. "time" is the median over the rounds of a model's
time divided by the first row's in the same round. "error" is ‖y − ŷ‖ / ‖y‖ of the hidden states against that row.

raw                       the file as exported, in a session as everybody opens it
raw, compiled             the same file through `compile`, attention left as it is
fused file                exported with target="onnxruntime", in a session as everybody opens it
fused                     the raw file through `compile`: attention fused and spelled for ONNX Runtime
llm-int8 tensor           the pass, attention left as it is
llm-int8 tensor + fused   the pass, attention fused
"""

import argparse
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch

import regraft
from regraft.backends import compare
from regraft.passes import LLMInt8

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))
from _minilm import batches, load_model, tokenize
from _sentences import CALIBRATION, EVALUATION

BATCH, LENGTH = 8, 128
Inputs = Mapping[str, np.ndarray]
Runs = Mapping[str, Callable[[], Sequence[np.ndarray]]]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40, help="measured rounds (40)")
    parser.add_argument("--threads", type=int, default=2, help="threads within an operator (2)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    inputs = {name: tensor.numpy() for name, tensor in tokenize((EVALUATION * BATCH)[:BATCH], LENGTH).items()}
    with tempfile.TemporaryDirectory() as folder:
        report(candidates(Path(folder), options.threads, inputs), options.rounds)


def candidates(folder: Path, threads: int, inputs: Inputs) -> Runs:
    raw = folder / "raw.onnx"
    regraft.load(load_model(), example_inputs=tokenize(EVALUATION[:BATCH], LENGTH)).export(raw)
    fused = regraft.load(raw).export(folder / "fused.onnx", target="onnxruntime")
    item = LLMInt8(activations="tensor")
    quantized = regraft.optimize(raw, passes=[item], calibration=batches(CALIBRATION), progress=False)
    return {
        "raw": plain(raw, threads, inputs),
        "raw, compiled": compiled(regraft.load(raw), threads, inputs, fuse=False),
        "fused file": plain(fused, threads, inputs),
        "fused": compiled(regraft.load(raw), threads, inputs, fuse=True),
        "llm-int8 tensor": compiled(quantized, threads, inputs, fuse=False),
        "llm-int8 tensor + fused": compiled(quantized, threads, inputs, fuse=True),
    }


def plain(file: Path, threads: int, inputs: Inputs) -> Callable[[], Sequence[np.ndarray]]:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.force_spinning_stop", "1")  # the others are alive beside it
    session = ort.InferenceSession(str(file), options)
    return lambda: session.run(None, dict(inputs))


def compiled(
    model: regraft.Optimized, threads: int, inputs: Inputs, *, fuse: bool
) -> Callable[[], Sequence[np.ndarray]]:
    executable = model.compile("onnxruntime", threads=threads, fuse_attention=fuse)
    return lambda: executable(**inputs)


def report(runs: Runs, rounds: int) -> None:
    measured = compare(runs, rounds=rounds)
    wanted = runs["raw"]()[0]
    print(f"{'':<26} {'ms':>7}  {'fastest':>7}  {'time':>5}  {'error':>8}")
    for name, run in runs.items():
        seconds = measured.timings[name].seconds
        error = np.linalg.norm(run()[0] - wanted) / np.linalg.norm(wanted)
        middle, fastest = 1e3 * measured.timings[name].median_s, 1e3 * min(seconds)
        print(f"{name:<26} {middle:7.1f}  {fastest:7.1f}  {measured.ratio(name):5.2f}  {error:8.1e}")


if __name__ == "__main__":
    main()
