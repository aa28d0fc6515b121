"""Optimize a real, trained model, from PyTorch and from ONNX, and see what it cost and what it gained.

    make demo            (or: python examples/quickstart.py [--out FOLDER] [--rounds N])

Everything printed is measured in this run, on this machine. Low-rank factors of half the parameters cost this small
model much of its quality; the script says so, and ends with a setting that keeps it.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from _minilm import batches, cosine, embed, load_model, print_speed, tokenize
from _sentences import CALIBRATION, EVALUATION

import regraft
from regraft.passes import LowRank

HALF = LowRank(keep=0.5, ridge=0.1)
GENTLE = LowRank(keep=0.75, targets=("*.query", "*.key"), ridge=0.1)


def main() -> None:
    """Run the main job twice, and a gentler setting once."""
    options = _options()
    options.out.mkdir(parents=True, exist_ok=True)
    model = load_model()
    calibration = batches(CALIBRATION)
    example = tokenize(EVALUATION[:8])

    _title("1. From PyTorch: every encoder layer at half of its parameters")
    half = regraft.optimize(model, passes=[HALF], example_inputs=example, calibration=calibration)
    print(half.ledger)
    print()
    print("\n".join([*str(half.diff).splitlines()[:8], "  ..."]))
    half.diff.save(options.out / "diff.txt")
    plain = regraft.optimize(model, passes=[LowRank(keep=0.5)], example_inputs=example)
    _quality(model, {"calibrated": half, "from the weights alone": plain})
    file = half.export(options.out / "minilm-half.onnx")

    _title("2. From ONNX: the same model as a file, the same rewrite")
    original_file = options.out / "minilm.onnx"
    _export_original(model, example, original_file)
    from_onnx = regraft.optimize(original_file, passes=[HALF], calibration=calibration)
    print("\n".join(str(from_onnx.ledger).splitlines()[-1:]))
    onnx_file = from_onnx.export(options.out / "minilm-half-from-onnx.onnx")
    _agreement(half, from_onnx, example)

    _title("3. Both files in ONNX Runtime, beside the original, in one run")
    print_speed(
        {"original": original_file, "half, from torch": file, "half, from ONNX": onnx_file}, example, options.rounds
    )

    _title("4. A setting that keeps the embeddings: only query and key, at 75 % of their parameters")
    gentle = regraft.optimize(original_file, passes=[GENTLE], calibration=calibration)
    gentle_file = gentle.export(options.out / "minilm-gentle.onnx")
    _quality(model, {"query and key at 75 %": gentle})
    print_speed({"original": original_file, "gentle": gentle_file}, example, options.rounds)
    print(f"\nFiles are in {options.out}/. Look at one: regraft diff {original_file} {file}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("demo-output"), help="folder for the files (demo-output)")
    parser.add_argument("--rounds", type=int, default=15, help="measured rounds of each comparison (15)")
    return parser.parse_args()


def _title(text: str) -> None:
    print(f"\n== {text}\n")


def _quality(model: torch.nn.Module, results: dict[str, Any]) -> None:
    wanted = embed(model, EVALUATION)
    for name, result in results.items():
        value = cosine(wanted, embed(result, EVALUATION))
        print(f"cosine to the original's embeddings, {len(EVALUATION)} sentences not used before, {name}: {value:.4f}")


def _agreement(ours: Any, theirs: Any, example: dict[str, torch.Tensor]) -> None:
    with torch.no_grad():
        difference = float((ours(**example).last_hidden_state - theirs(**example)[0]).abs().max())
    same = [entry.site for entry in ours.ledger.rewritten] == [entry.site for entry in theirs.ledger.rewritten]
    print(
        f"the same {len(theirs.ledger.rewritten)} layers as from PyTorch: {same}; largest difference {difference:.1e}"
    )


def _export_original(model: torch.nn.Module, example: dict[str, torch.Tensor], path: Path) -> None:
    regraft.load(model, example_inputs=example).export(path)


if __name__ == "__main__":
    main()
