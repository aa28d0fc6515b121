"""Checks and times the CUDA kernels of a bundle; needs an NVIDIA GPU and torch, and nothing of Regraft.

    python run.py [--bundle .] [--check] [--time] [--sanitize] [--only lowrank] [--rounds 30] [--out table.md]

--check     every kernel on random operands at odd numbers of rows, against its formula in float64; memory around the
            results must stay as it was, and a captured CUDA graph must give the same numbers
--time      every kernel against the dense layer (cuBLAS), the same products one by one, torch.compile of those, and
            both as CUDA graphs; ratios are times divided by the kernel's, so that above 1 the kernel is faster. "roof"
            is the share of what this card reaches in a large product or a large copy, measured here, too
--sanitize  the check under compute-sanitizer's memcheck and racecheck

Without any of them: --check and --time. Exits 1 where a result is wrong.
"""

import argparse
import shutil
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import torch
from _bundle import KernelError, Library, entries
from _cases import CASES, TOLERANCES, Case
from _timing import Run, card_rates, graphed, medians, rotated
from torch import Tensor

CHECKED_ROWS = (1, 2, 3, 7, 16, 17, 63, 64, 65, 127, 129, 255, 257, 511, 1000)
SMALL_ROWS = (1, 17, 65, 130)
TIMED_ROWS = (1, 4, 16, 64, 256, 512, 1024, 2048, 4096, 8192)
MOST_GRAPHS = 16
GUARD = 4096
"""Elements around a result that no kernel may touch."""


def main() -> int:
    """Do what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, default=Path(__file__).parent, help="folder with manifest.json")
    parser.add_argument("--check", action="store_true", help="check the results")
    parser.add_argument("--time", action="store_true", help="measure")
    parser.add_argument("--sanitize", action="store_true", help="check under compute-sanitizer")
    parser.add_argument("--small", action="store_true", help="check few numbers of rows")
    parser.add_argument("--only", default="", help="kernels whose title contains this")
    parser.add_argument("--rounds", type=int, default=30, help="measured rounds (30)")
    parser.add_argument("--out", type=Path, help="write the table there, too")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("error: torch sees no CUDA device here", file=sys.stderr)
        return 1
    if options.sanitize:
        return sanitized(options)
    libraries = fitting(options.bundle, options.only)
    if not libraries:
        print(
            f"error: {options.bundle}: no kernel for {arch_here()} whose title contains {options.only!r}",
            file=sys.stderr,
        )
        return 1
    everything = not (options.check or options.time)
    wrong = check_all(libraries, SMALL_ROWS if options.small else CHECKED_ROWS) if options.check or everything else 0
    if options.time or everything:
        report(libraries, options.rounds, options.out)
    return 1 if wrong else 0


def arch_here() -> str:
    """Return the architecture of the bundle that this card runs."""
    major, minor = torch.cuda.get_device_capability()
    return "sm_90a" if (major, minor) == (9, 0) else "sm_80" if major == 8 else f"sm_{major}{minor}"


def fitting(folder: Path, only: str) -> list[Library]:
    libraries = [Library(entry, folder) for entry in entries(folder, arch_here())]
    return [library for library in libraries if only in library.title]


def sanitized(options: argparse.Namespace) -> int:
    """Run the check again under both tools."""
    tool = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    if not Path(tool).exists():
        print("error: compute-sanitizer is not on PATH and not in /usr/local/cuda/bin", file=sys.stderr)
        return 1
    inner = [sys.executable, __file__, "--bundle", str(options.bundle), "--check", "--small", "--only", options.only]
    worst = 0
    for kind in ("memcheck", "racecheck"):
        done = subprocess.run([tool, "--tool", kind, "--error-exitcode", "7", *inner], check=False)
        print(f"compute-sanitizer {kind}: {'clean' if done.returncode == 0 else f'exit {done.returncode}'}")
        worst = worst or done.returncode
    return 1 if worst else 0


def check_all(libraries: Sequence[Library], rows: Sequence[int]) -> int:
    """Check every kernel; return how many are wrong."""
    wrong = 0
    for library in libraries:
        problems = [found for count in rows if (found := problem_of(library, count))]
        worst = "; ".join(problems[:3])
        print(f"{'WRONG' if problems else 'ok   '} {library.title} [{library.tiling}] {worst}", flush=True)
        wrong += bool(problems)
    print(f"{len(libraries) - wrong} of {len(libraries)} kernels are right")
    return wrong


def problem_of(library: Library, rows: int) -> str:
    """Return what is wrong with a kernel at that many rows; empty when nothing is."""
    case, device = CASES[library.op], torch.device("cuda")
    generator = torch.Generator(device).manual_seed(rows)
    extents = case.extents(library, rows)
    tensors = case.draw(library, extents, generator)
    guarded = {name: Guarded(value) for name, value in library.outputs(extents, device).items()}
    given = tensors | {name: item.inner for name, item in guarded.items()}
    try:
        library(given, extents)
        torch.cuda.synchronize()
    except (KernelError, RuntimeError) as error:
        return f"rows {rows}: {str(error).splitlines()[0]}"
    touched = [name for name, item in guarded.items() if item.is_touched()]
    if touched:
        return f"rows {rows}: memory around {', '.join(touched)} was written"
    y, wanted = given["y"], case.reference(library, tensors)
    scale = float(wanted.abs().max().clamp_min(1e-30))
    error = float((y.double().reshape(wanted.shape) - wanted).abs().max()) / scale
    if not error <= TOLERANCES[library.dtype]:  # also where it is no number
        return f"rows {rows}: error {error:.1e}, at most {TOLERANCES[library.dtype]:.0e}"
    before = y.clone()
    graphed(lambda operands: library(operands, extents), given)()
    torch.cuda.synchronize()
    return "" if torch.equal(before, y) else f"rows {rows}: a CUDA graph gives other numbers"


class Guarded:
    """A tensor inside of a larger one whose ends must stay as they are."""

    def __init__(self, like: Tensor) -> None:
        self._outer = torch.full((like.numel() + 2 * GUARD,), 7, dtype=like.dtype, device=like.device)
        self.inner = self._outer[GUARD : GUARD + like.numel()].view(like.shape)
        self.inner.copy_(like)

    def is_touched(self) -> bool:
        """Whether something was written around it."""
        ends = (self._outer[:GUARD], self._outer[self._outer.numel() - GUARD :])
        return any(bool((end != 7).any()) for end in ends)


def report(libraries: Sequence[Library], rounds: int, out: Path | None) -> None:
    """Print the table, and write it."""
    device = torch.device("cuda")
    rates = card_rates(device)
    shown = ", ".join(f"{name} {rate / 1e12:.3g} T/s" for name, rate in rates.items())
    day = datetime.now(UTC).date().isoformat()
    lines = [
        f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {day}",
        "",
        f"Reached by large products and by a large copy: {shown}",
        "",
        "| kernel | rows | us | roof | dense | unfused | compiled | graph: us | graph: dense | graph: unfused |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    print("\n".join(lines), flush=True)
    for group in grouped(libraries):
        for rows in TIMED_ROWS:
            lines.append(row(nearest(group, rows), rows, rates, rounds))
            print(lines[-1], flush=True)
    if out is not None:
        out.write_text("\n".join(lines) + "\n", encoding="utf-8")


def grouped(libraries: Sequence[Library]) -> list[list[Library]]:
    """Kernels of one problem, whose tiles were chosen for different numbers of rows."""
    found: dict[str, list[Library]] = {}
    for library in libraries:
        found.setdefault(library.title, []).append(library)
    return list(found.values())


def nearest(group: Sequence[Library], rows: int) -> Library:
    """Return the one for the least number of rows that is not below; else the one for the most."""
    above = [library for library in group if library.rows >= rows]
    return min(above, key=lambda item: item.rows) if above else max(group, key=lambda item: item.rows)


def row(library: Library, rows: int, rates: dict[str, float], rounds: int) -> str:
    """Measure one line of the table."""
    case, device = CASES[library.op], torch.device("cuda")
    extents = case.extents(library, rows)
    tensors = case.draw(library, extents, torch.Generator(device).manual_seed(rows))
    times = measured(library, case, tensors, extents, rounds)
    kernel, graph = times["kernel"], times["kernel, graph"]
    roof = case.work(library, extents).least_us(rates) / min(kernel, graph)

    def ratio(name: str, base: float) -> str:
        return f"{times[name] / base:.2f}" if name in times else ""

    cells = [f"{library.title} [{library.tiling}]", str(rows), f"{kernel:.1f}", f"{roof:.2f}"]
    cells += [ratio(name, kernel) for name in ("dense", "unfused", "compiled")]
    cells += [f"{graph:.1f}", ratio("dense, graph", graph), ratio("unfused, graph", graph)]
    return f"| {' | '.join(cells)} |"


def measured(
    library: Library, case: Case, tensors: dict[str, Tensor], extents: dict[str, int], rounds: int
) -> dict[str, float]:
    """Time the kernel and what it stands beside, in turn."""
    copies = rotated(tensors | library.outputs(extents, torch.device("cuda")))
    candidates: dict[str, Run] = {
        "kernel": lambda given: library(given, extents),
        "unfused": lambda given: case.unfused(library, given),
    }
    if case.dense is not None:
        candidates["dense"] = case.dense(library, tensors)
    runs = {name: [partial(run, given) for given in copies] for name, run in candidates.items()}
    compiled: Run = torch.compile(candidates["unfused"], dynamic=False)
    runs["compiled"] = [partial(compiled, given) for given in copies]
    graphs = {
        f"{name}, graph": [graphed(run, given) for given in copies[:MOST_GRAPHS]] for name, run in candidates.items()
    }
    with torch.no_grad():
        return medians({**runs, **graphs}, rounds)


if __name__ == "__main__":
    sys.exit(main())
