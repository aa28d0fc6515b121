"""What the pass `llm-int8` is good for, and what it costs, on a trained sentence encoder.

    python examples/llm_int8.py [--out FOLDER] [--rounds N]

Everything printed is measured in this run, on this machine. In 8 bits MiniLM's layers take a quarter of their bytes and
the model runs faster. A few columns of its activations are many times as large as the others: what they cost when they
are quantized like the others, and what keeping them apart costs, is what the script shows.
"""

import argparse
from pathlib import Path

from _minilm import batches, cosine, embed, load_model, print_speed, share_of_bytes, tokenize
from _sentences import CALIBRATION, EVALUATION
from torch import Tensor

import regraft
from regraft.passes import LLMInt8

VARIANTS = {
    "outliers apart, a step a row": LLMInt8(),
    "outliers apart, one step": LLMInt8(activations="tensor"),
    "no outliers, a step a row": LLMInt8(outliers="none"),
    "no outliers, one step": LLMInt8(outliers="none", activations="tensor"),
}


def main() -> None:
    """Quantize in several ways, compare embeddings, bytes and times; then do without calibration."""
    options = _options()
    options.out.mkdir(parents=True, exist_ok=True)
    model, example = load_model(), tokenize(EVALUATION[:8], 128)
    wanted = embed(model, EVALUATION)
    calibration = batches(CALIBRATION)

    _title("1. Which columns stand out, and how far each layer is off")
    results = {
        name: regraft.optimize(model, passes=[item], example_inputs=example, calibration=calibration)
        for name, item in VARIANTS.items()
    }
    print("\n".join(str(results["outliers apart, a step a row"].ledger).splitlines()[:6]))
    print("...")

    _title("2. What is left of the embeddings, in how many bytes")
    for name, result in results.items():
        _quality(name, result, wanted)
    print(f"(cosine to the original's, {len(EVALUATION)} sentences that were not used for calibration)")

    _title("3. Without calibration, the outliers of each call are looked for")
    dynamic = regraft.optimize(model, passes=["llm-int8"], example_inputs=example)
    print(str(dynamic.ledger).splitlines()[0])
    _quality("outliers of each call", dynamic, wanted)

    _title("4. Time in ONNX Runtime, 8 sentences of 128 tokens, beside the original in one run")
    files = {"original": regraft.load(model, example_inputs=example).export(options.out / "minilm.onnx")}
    for place, (name, result) in enumerate({**results, "outliers of each call": dynamic}.items()):
        files[name] = result.export(options.out / f"minilm-int8-{place}.onnx")
    print_speed(files, example, options.rounds)
    print(
        f"\nFiles are in {options.out}/. Look at one: regraft diff {files['original']} {options.out}/minilm-int8-0.onnx"
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("demo-output"), help="folder for the files (demo-output)")
    parser.add_argument("--rounds", type=int, default=15, help="measured rounds of the comparison (15)")
    return parser.parse_args()


def _title(text: str) -> None:
    print(f"\n== {text}\n")


def _quality(name: str, result: regraft.Optimized, wanted: Tensor) -> None:
    share = share_of_bytes(result)
    print(f"{name:<30} {share:.1%} of the layers' bytes  cosine {cosine(wanted, embed(result, EVALUATION)):.5f}")


if __name__ == "__main__":
    main()
