"""The search for tiles of CPU kernels beside all of them, and beside chance.

    python benchmarks/bench_tune.py [--rows 128] [--width 384] [--seeds 9] [--records grid.jsonl]

Every config of each kernel is measured once, each in the process of trials. Then searches are replayed over these
times, which costs nothing and is the same noise for all: the cost model's first configs and Optuna's proposals behind
them ("search"), and random ones. "within 5 %" is how many trials it takes until the best so far is within 5 % of the
best of all; median over the seeds. "64 trials" is the best of 64 over the best of all.
"""

import argparse
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path

from regraft.backends.tvm._tune_graph import ranked
from regraft.backends.tvm._tuning import CpuTask, layer_task, machine
from regraft.tune import (
    Config,
    CostModel,
    Isolated,
    Machine,
    Measured,
    Records,
    Sample,
    Sampler,
    Settings,
    frozen,
    judge,
    search,
)

CLOSE = 1.05
TRIALS = 64


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=128, help="rows of the input (128)")
    parser.add_argument("--width", type=int, default=384, help="features of the layer (384)")
    parser.add_argument("--seeds", type=int, default=9, help="replayed searches (9)")
    parser.add_argument("--records", type=Path, help="keep the times there; an earlier run's are taken")
    options = parser.parse_args()
    here = machine()
    with tempfile.TemporaryDirectory() as folder:
        records = Records(options.records or Path(folder) / "grid.jsonl")
        tables = [(task, grid(task, records)) for task in tasks(options.width, options.rows)]
    head = ("kernel", "configs", "best us", "worst", "64 trials", "search", "random", "search/random")
    print(f"{head[0]:<16}" + "".join(f"{name:>14}" for name in head[1:]))
    for task, times in tables:
        print(line(task, times, here, options.seeds), flush=True)
    samples = [
        Sample(task.features(dict(config)), seconds, task.op)
        for task, times in tables
        for config, seconds in times.items()
    ]
    for trained in (False, True):
        found = judge(samples, here, trained=trained)
        kind = "forest on the other kernels" if trained else "roofline"
        print(f"{kind}: rank correlation {found.rank_correlation:.2f}, regret of its first {found.regret:.1%}")


def tasks(width: int, rows: int) -> Sequence[CpuTask]:
    sizes = {"in": width, "out": width, "rank": width // 4, "blocks": 4, "block_rank": width // 16}
    return [layer_task(op, sizes, rows) for op in ("linear", "lowrank_linear", "monarch_linear")]


def grid(task: CpuTask, records: Records) -> dict[tuple[tuple[str, object], ...], float]:
    """Return the time of every config."""
    with Isolated(task.task) as measure:
        settings = Settings(trials=None, sampler="grid", least_gain=0)
        outcome = search(task.space, measure, task.key, records, settings)
    return {frozen(trial.config): trial.seconds for trial in outcome.trials if trial.seconds is not None}


def line(task: CpuTask, times: dict, here: Machine, seeds: int) -> str:
    configs, best = list(task.space.configs()), min(times.values())
    first = ranked(task, configs, CostModel(here))[: max(4, len(configs) // 8)]
    found = [replayed(task, times, "tpe", seed, first) for seed in range(seeds)]
    chance = [replayed(task, times, "random", seed, ()) for seed in range(seeds)]
    needed, random = (statistics.median(trials_until(curve, best) for curve in curves) for curves in (found, chance))
    at_64 = statistics.median(min(curve[:TRIALS]) for curve in found) / best
    cells = (len(times), f"{1e6 * best:.1f}", f"{max(times.values()) / best:.2f}", f"{at_64:.3f}")
    return f"{task.op:<16}" + "".join(f"{cell!s:>14}" for cell in (*cells, needed, random, f"{needed / random:.2f}"))


def replayed(task: CpuTask, times: dict, sampler: Sampler, seed: int, first: Sequence[Config]) -> list[float]:
    """Return the times in the order in which a search asks for them."""
    asked: list[float] = []

    def look_up(config: Config) -> Measured:
        seconds = times.get(frozen(config))
        asked.append(float("inf") if seconds is None else seconds)
        return Measured("failed") if seconds is None else Measured("ok", seconds)

    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(trials=None, sampler=sampler, seed=seed, least_gain=0)
        search(task.space, look_up, task.key, Records(Path(folder) / "replay.jsonl"), settings, first)
    return asked


def trials_until(curve: Sequence[float], best: float) -> int:
    """Return how many trials it takes to come close to the best."""
    return next(place for place, seconds in enumerate(curve, start=1) if seconds <= CLOSE * best)


if __name__ == "__main__":
    main()
