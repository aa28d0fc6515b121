"""What the pass `monarch` is good for, and what it costs, on a trained sentence encoder.

    python examples/monarch.py [--out FOLDER] [--rounds N] [--steps N]

Everything printed is measured in this run, on this machine. A Monarch layer holds a weight as a grid of blocks of low
rank. MiniLM's weights are not made of such blocks, so that projecting them costs much of the model's quality: more than
low-rank factors of the same size do, which are faster, too. Fitting the blocks to calibration inputs mends a good part.
The pass is for the other two cases that the script shows: weights that are of the class, which stay exact, and models
that are trained further.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from _minilm import batches, cosine, embed, load_model, print_speed, share_of_bytes, tokenize
from _sentences import CALIBRATION, EVALUATION
from torch import Tensor, nn

import regraft
from regraft.backends import compare
from regraft.passes import LowRank, Monarch


def main() -> None:
    """Project, compare, fine-tune; then a weight that needs none of it."""
    options = _options()
    options.out.mkdir(parents=True, exist_ok=True)
    model, example = load_model(), tokenize(EVALUATION[:8])
    wanted = embed(model, EVALUATION)

    _title("1. MiniLM's 36 encoder layers, at most half of their parameters")
    results = _projected(model, example)
    print("\n".join(str(results["monarch, refitted"].ledger).splitlines()[:6]))
    print("...\n")
    for name, result in results.items():
        quality = cosine(wanted, embed(result, EVALUATION))
        print(f"{name:<26} {share_of_bytes(result):.0%} of the layers' bytes  cosine {quality:.3f}")
    print(f"(cosine to the original's embeddings, {len(EVALUATION)} sentences that were not used before)")

    _title("2. Time in ONNX Runtime, beside the original, in one run")
    files = {"original": regraft.load(model, example_inputs=example).export(options.out / "minilm.onnx")}
    for name in ("low-rank, calibrated", "monarch, refitted"):
        files[name] = results[name].export(options.out / f"minilm-{name.partition(',')[0]}.onnx")
    print_speed(files, example, options.rounds)

    _title(f"3. A start for training: {options.steps} steps of distillation on the calibration sentences")
    _fine_tune(model, results["monarch, refitted"], options.steps)

    _title("4. A weight of the class: a Fourier transform of 1024 points as a linear layer")
    _fourier(options.rounds)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("demo-output"), help="folder for the files (demo-output)")
    parser.add_argument("--rounds", type=int, default=15, help="measured rounds of each comparison (15)")
    parser.add_argument("--steps", type=int, default=60, help="training steps (60)")
    return parser.parse_args()


def _title(text: str) -> None:
    print(f"\n== {text}\n")


def _projected(model: nn.Module, example: Mapping[str, Tensor]) -> dict[str, regraft.Optimized]:
    calibration = batches(CALIBRATION)
    passes = {
        "monarch, weights alone": Monarch(refit=False),
        "monarch, refitted": Monarch(),
        "low-rank, weights alone": LowRank(),
        "low-rank, calibrated": LowRank(ridge=0.1),
    }
    return {
        name: regraft.optimize(
            model,
            passes=[item],
            example_inputs=example,
            calibration=None if "alone" in name else calibration,
        )
        for name, item in passes.items()
    }


def _fine_tune(teacher: nn.Module, result: regraft.Optimized, steps: int) -> None:
    """Train the rewritten model towards the states of the original: the factors are parameters like any other."""
    wanted, student = embed(teacher, EVALUATION), result.model
    print(f"cosine before: {cosine(wanted, embed(student, EVALUATION)):.3f}")
    optimizer = torch.optim.AdamW(student.parameters(), lr=3e-4)
    pairs = [(tokens, _states(teacher, tokens)) for tokens in batches(CALIBRATION)]
    for step in range(steps):
        tokens, target = pairs[step % len(pairs)]
        mask = tokens["attention_mask"].unsqueeze(-1)
        difference = (student(**tokens).last_hidden_state - target) * mask
        optimizer.zero_grad()
        (difference.square().sum() / mask.sum()).backward()
        optimizer.step()
    print(f"cosine after:  {cosine(wanted, embed(student, EVALUATION)):.3f}, at the same size")


def _states(model: nn.Module, tokens: Mapping[str, Tensor]) -> Tensor:
    with torch.no_grad():
        return model(**tokens).last_hidden_state


def _fourier(rounds: int) -> None:
    points = 1024
    spectrum = torch.fft.fft(torch.eye(points, dtype=torch.float64))
    dense = nn.Linear(points, 2 * points, bias=False)
    with torch.no_grad():
        dense.weight.copy_(torch.cat([spectrum.real, spectrum.imag]))
    x = torch.randn(64, points, generator=torch.Generator().manual_seed(0))
    result = regraft.optimize(dense, passes=[Monarch(blocks=32, heads=True)], example_inputs=x)
    print(result.ledger)
    transform = torch.fft.fft(x.double())
    exact = torch.cat([transform.real, transform.imag], dim=-1)
    for name, run in {"dense": dense, "monarch": result}.items():
        with torch.no_grad():
            error = float((run(x).double() - exact).norm() / exact.norm())
        print(f"{name}: relative error {error:.1e} against torch.fft in double precision")
    runs: dict[str, Any] = {
        "dense": regraft.load(dense, example_inputs=x).compile("onnxruntime"),
        "monarch": result.compile("onnxruntime"),
    }
    measured = compare({name: lambda run=run: run(x.numpy()) for name, run in runs.items()}, rounds=rounds)
    print(f"time for 64 rows in ONNX Runtime: {measured.ratio('monarch'):.2f} of the dense layer's")


if __name__ == "__main__":
    main()
