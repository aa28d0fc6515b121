"""The passes `llm-int8` and `shift-add` on MiniLM in ONNX Runtime, beside the original and onnxruntime's own.

    python benchmarks/bench_quantized.py [--rounds 40] [--threads 2]

One process, one run, the sessions in turn: batch 8 of 128 tokens. "time" is the median over the rounds of a model's
time divided by the original's in the same round. "cosine" compares sentence embeddings with the original's, for
sentences that were not used for calibration. "bytes" are those of the 36 rewritten layers, weight and bias, divided by
the original's. onnxruntime's quantize_dynamic, per channel, is asked for the same layers, not for the embeddings.
"""

import argparse
import logging
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.quantization.shape_inference import quant_pre_process

import regraft
from regraft.backends import Executable, compare
from regraft.passes import LLMInt8, ShiftAdd

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))
from _minilm import batches, embed, load_model, share_of_bytes, tokenize
from _sentences import CALIBRATION, EVALUATION

BATCH, LENGTH = 8, 128
VARIANTS = {
    "llm-int8, row": LLMInt8(activations="row"),
    "llm-int8, tensor": LLMInt8(activations="tensor"),
    "llm-int8, row, dynamic": LLMInt8(activations="row", outliers="dynamic"),
    "llm-int8, row, none": LLMInt8(activations="row", outliers="none"),
    "llm-int8, tensor, none": LLMInt8(activations="tensor", outliers="none"),
    "shift-add, 2 terms, row": ShiftAdd(terms=2),
    "shift-add, 2 terms, tensor": ShiftAdd(terms=2, activations="tensor"),
    "shift-add, 1 term, row": ShiftAdd(terms=1),
    "shift-add, 1 term, tensor": ShiftAdd(terms=1, activations="tensor"),
}


@dataclass
class Candidate:
    """A model under test.

    Attributes:
        run: the compiled model.
        share: parameter bytes of the rewritten layers, of the original's; None when not known.
    """

    run: Executable
    share: float | None


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40, help="measured rounds (40)")
    parser.add_argument("--threads", type=int, default=2, help="threads within an operator (2)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        report(candidates(Path(folder), options.threads), options.rounds)


def candidates(folder: Path, threads: int) -> dict[str, Candidate]:
    example = tokenize(EVALUATION[:BATCH], LENGTH)
    original = folder / "minilm.onnx"
    regraft.load(load_model(), example_inputs=example).export(original, opset=20)
    found = {"original": Candidate(compiled(original, threads), 1.0)}
    found["quantize_dynamic"] = Candidate(compiled(quantized_by_onnxruntime(original), threads), None)
    calibration = batches(CALIBRATION)
    for name, item in VARIANTS.items():
        optimized = regraft.optimize(original, passes=[item], calibration=calibration, progress=False)
        file = optimized.export(folder / f"{name.replace(', ', '-')}.onnx")
        found[name] = Candidate(compiled(file, threads), share_of_bytes(optimized))
    return found


def quantized_by_onnxruntime(original: Path) -> Path:
    prepared, quantized = original.with_suffix(".prepared.onnx"), original.with_suffix(".quantized.onnx")
    logging.getLogger().setLevel(logging.ERROR)
    quant_pre_process(str(original), str(prepared), skip_symbolic_shape=True)
    quantize_dynamic(
        prepared, quantized, per_channel=True, weight_type=QuantType.QInt8, op_types_to_quantize=["MatMul"]
    )
    return quantized


def compiled(file: Path, threads: int) -> Executable:
    return regraft.load(file).compile("onnxruntime", threads=threads)


def report(found: dict[str, Candidate], rounds: int) -> None:
    inputs = {name: tensor.numpy() for name, tensor in tokenize((EVALUATION * BATCH)[:BATCH], LENGTH).items()}
    timed = {name: lambda run=item.run: run(**inputs) for name, item in found.items()}
    measured = compare(timed, rounds=rounds)
    wanted = embed(found["original"].run, EVALUATION)
    print(f"{'':<28} {'ms':>6}  {'time':>5}  {'cosine':>7}  {'lowest':>7}  {'bytes':>6}")
    for name, item in found.items():
        cosines = (embed(item.run, EVALUATION) * wanted).sum(-1)
        share = "" if item.share is None else f"{item.share:.4f}"
        milliseconds = 1e3 * measured.timings[name].median_s
        print(
            f"{name:<28} {milliseconds:6.1f}  {measured.ratio(name):5.2f}  {float(cosines.mean()):7.5f}  "
            f"{float(cosines.min()):7.5f}  {share:>6}"
        )


if __name__ == "__main__":
    main()
