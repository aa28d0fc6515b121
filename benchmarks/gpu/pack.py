"""Builds the CUDA kernels that `run.py` checks and times, into a folder to carry to a machine with a GPU.

    python benchmarks/gpu/pack.py bundle [--arch sm_90a] [--only lowrank] [--quick]

The folder holds a library a kernel, `manifest.json` and the programs; there, `python run.py` is all. Needs the extra
[tvm] and nvcc here, and no GPU. It says its size: 64 MiB is what it should stay below.
"""

import argparse
import json
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from _bundle import MANIFEST
from _problems import PROBLEMS

from regraft.backends.tvm._build import Artefact, build
from regraft.backends.tvm._entry import C_ERROR
from regraft.backends.tvm.kernels._kernel import Problem
from regraft.errors import RegraftError

PROGRAMS = ("run.py", "_bundle.py", "_cases.py", "_timing.py")
MOST_BYTES = 64 * 2**20


def main() -> int:
    """Build and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="made new, or written over")
    parser.add_argument("--arch", default="sm_90a", choices=("sm_80", "sm_90a"), help="of the GPU (sm_90a)")
    parser.add_argument("--only", default="", help="ops whose name contains this")
    parser.add_argument("--quick", action="store_true", help="the first problem of each op alone")
    options = parser.parse_args()
    try:
        problems = {op: wanted[:1] if options.quick else wanted for op, wanted in PROBLEMS.items()}
        kernels = list(built(options.arch, options.only, problems, options.folder))
    except RegraftError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for name in PROGRAMS:
        shutil.copy(Path(__file__).parent / name, options.folder / name)
    (options.folder / MANIFEST).write_text(json.dumps({"kernels": kernels}, indent=1) + "\n", encoding="utf-8")
    size = sum(path.stat().st_size for path in options.folder.iterdir())
    print(f"{options.folder}: {len(kernels)} kernels for {options.arch}, {size / 2**20:.1f} MiB")
    if size > MOST_BYTES:
        print(f"warning: more than {MOST_BYTES / 2**20:.0f} MiB; build parts with --only", file=sys.stderr)
    return 0


def built(
    arch: str, only: str, problems: Mapping[str, tuple[Problem, ...]], folder: Path
) -> Iterator[Mapping[str, Any]]:
    """Build each kernel, put its library into the folder, and yield what the manifest says of it."""
    folder.mkdir(parents=True, exist_ok=True)
    for op, wanted in problems.items():
        if only not in op:
            continue
        seen: set[str] = set()
        for problem in wanted:
            artefact = build(op, problem, arch=arch)
            if artefact.path.parent.name in seen:  # the same tiles serve several numbers of rows
                continue
            seen.add(artefact.path.parent.name)
            name = f"{op}-{artefact.path.parent.name[:12]}.so"
            shutil.copy(artefact.path, folder / name)
            print(f"{op} {problem.dtype} rows {problem.rows}: {spelled(artefact)}", flush=True)
            yield described(artefact, name)


def spelled(artefact: Artefact) -> str:
    """Return variant and tiles as one text."""
    return artefact.tiling.variant + "".join(f" {name}={value}" for name, value in artefact.tiling.tiles.items())


def described(artefact: Artefact, library: str) -> Mapping[str, Any]:
    """Return what `run.py` needs to know of a kernel."""
    problem = artefact.problem
    return {
        "op": artefact.op,
        "arch": artefact.arch,
        "library": library,
        "c_entry": artefact.c_entry,
        "c_error": C_ERROR,
        "dtype": problem.dtype,
        "sizes": dict(problem.sizes),
        "options": dict(problem.options),
        "rows": problem.rows,
        "tiling": spelled(artefact),
        "extents": list(artefact.extents),
        "arguments": [
            {
                "name": item.name,
                "dims": list(item.dims),
                "dtype": item.dtype,
                "role": item.role,
                "present": item.present,
            }
            for item in artefact.arguments
        ],
    }


if __name__ == "__main__":
    sys.exit(main())
