"""What the pass `shift-add` is good for, and what it costs: weights as sums of powers of two, on a trained model.

    python examples/shift_add.py            (after `make demo`, which installs what it needs)

Times and cosines are measured in this run, on this machine. Energies are modelled, for hardware that has shifters; an
ordinary processor runs these layers on its 8-bit kernels, and draws what `llm-int8` draws.
"""

import argparse
from pathlib import Path

from _minilm import batches, cosine, embed, load_model, print_speed, share_of_bytes, tokenize
from _sentences import CALIBRATION, EVALUATION

import regraft
from regraft.graph import Graph
from regraft.graph.energy import energy_table
from regraft.ops import cost
from regraft.passes import ShiftAdd

PASSES = {"two terms": ShiftAdd(terms=2), "one term": ShiftAdd(terms=1)}
DIMS = {"batch": 8, "sequence": 128}


def main() -> None:
    """Optimize MiniLM with two terms and with one; print quality, speed and the modelled energy."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("demo-output"), help="folder for the files (demo-output)")
    parser.add_argument("--rounds", type=int, default=15, help="measured rounds (15)")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    model, calibration, example = load_model(), batches(CALIBRATION), tokenize(EVALUATION[:8], length=128)
    wanted = embed(model, EVALUATION)

    files = {"original": regraft.load(model, example_inputs=example).export(options.out / "minilm-128.onnx")}
    results = {
        name: regraft.optimize(model, passes=[item], example_inputs=example, calibration=calibration)
        for name, item in PASSES.items()
    }
    print(f"== Cosine to the original's embeddings, {len(EVALUATION)} sentences not used before\n")
    for name, result in results.items():
        size = f"{share_of_bytes(result):.1%} of {len(result.ledger.rewritten)} layers' bytes"
        print(f"{name}: {cosine(wanted, embed(result, EVALUATION)):.4f}, {size}")
        files[name] = result.export(options.out / f"minilm-shift-{name.split()[0]}.onnx")

    print("\n== In ONNX Runtime, 8 sentences of 128 tokens, in one run\n")
    print_speed(files, example, options.rounds)

    print("\n== Two terms, first block and total\n")
    print(_energies(results["two terms"]))


def _energies(result: regraft.Optimized) -> str:
    assert result.original is not None
    dense, rewritten = (
        cost(graph.snapshot()).energy({name: DIMS.get(name.split("_")[0], 1) for name in _dims(graph)})
        for graph in (result.original, result.graph)
    )
    layers = [entry.site for entry in result.ledger.rewritten if entry.site.startswith("encoder.layer.0.")]
    return energy_table(dense, rewritten, layers)


def _dims(graph: Graph) -> set[str]:
    return {str(dim) for value in graph.inputs() for dim in value.type.shape or () if isinstance(dim, str)}


if __name__ == "__main__":
    main()
