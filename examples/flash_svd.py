"""What the pass `flash-svd` is good for, and what it costs: layers in factors without full-size activations.

    python examples/flash_svd.py            (after `make demo`, which installs what it needs)

Times and cosines are measured in this run, on this machine. Peaks of activations are modelled, from the types in the
graph: what values and the buffers inside of an op take at the worst point.
"""

import argparse
from pathlib import Path

from _minilm import batches, cosine, embed, load_model, print_speed, tokenize
from _sentences import CALIBRATION, EVALUATION

import regraft
from regraft.graph import Graph
from regraft.ops import cost
from regraft.passes import FlashSVD, LowRank

HALF = LowRank(keep=0.5)
PASSES = {"low-rank": [HALF], "low-rank, flash-svd": [HALF, FlashSVD()], "flash-svd alone": [FlashSVD(keep=0.5)]}
DIMS = {"batch": 8, "sequence": 128}


def main() -> None:
    """Optimize MiniLM with low-rank, with flash-svd behind it and alone; print quality, size, speed and peaks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("demo-output"), help="folder for the files (demo-output)")
    parser.add_argument("--rounds", type=int, default=15, help="measured rounds (15)")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    model, calibration, example = load_model(), batches(CALIBRATION), tokenize(EVALUATION[:8], length=128)
    wanted = embed(model, EVALUATION)

    results = {
        name: regraft.optimize(model, passes=chosen, example_inputs=example, calibration=calibration)
        for name, chosen in PASSES.items()
    }
    print(f"== Cosine to the original's embeddings, {len(EVALUATION)} sentences not used before\n")
    for name, result in results.items():
        print(f"{name}: {cosine(wanted, embed(result, EVALUATION)):.4f}")

    print("\n== Modelled peak of activations and largest buffer, 8 sentences of 128 tokens\n")
    original = results["low-rank"].original
    assert original is not None
    for name, graph in {"original": original, **{name: result.graph for name, result in results.items()}}.items():
        print(f"{name:<19}  {_peaks(graph)}")

    print("\n== In ONNX Runtime, 8 sentences of 128 tokens, in one run\n")
    files = {"original": regraft.load(model, example_inputs=example).export(options.out / "minilm-128.onnx")}
    for name, result in results.items():
        files[name] = result.export(options.out / f"minilm-{name.replace(', ', '-')}.onnx")
    print_speed(files, example, options.rounds)


def _peaks(graph: Graph) -> str:
    program = cost(graph.snapshot())
    found = program.at({name: DIMS.get(name.split("_")[0], 1) for name in program.dims})
    return f"{found.peak_activation_bytes / 1e6:6.2f} MB  {found.largest_buffer_bytes / 1e6:6.2f} MB"


if __name__ == "__main__":
    main()
