"""Tuning the kernels of a whole graph: each problem that it has once, in a process of trials of its own."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from regraft.backends.tvm._calls import call_of
from regraft.backends.tvm._compat import check_pins
from regraft.backends.tvm._expected import expected_extents
from regraft.backends.tvm._maker import CpuMaker
from regraft.backends.tvm._tuning import CpuTask, machine
from regraft.errors import NoMatchError
from regraft.graph import Graph
from regraft.ops import all_ops
from regraft.tune import (
    Config,
    CostModel,
    Isolated,
    Line,
    Outcome,
    Records,
    Settings,
    Trial,
    lines_of,
    search,
)

Report = Callable[[str, int, int], None]


def tasks_of(graph: Graph) -> list[CpuTask]:
    """Return the problems of a graph's kernels for the CPU, each key once, in graph order.

    Raises:
        NoMatchError: when none of its structured ops has a kernel.
    """
    check_pins()
    noted: list[CpuTask] = []
    maker, expected, ops = CpuMaker(tasks=noted), expected_extents(graph), all_ops()
    calls = [call_of(graph, node, ops[node.op], maker, expected) for node in graph.nodes() if node.op in ops]
    if not noted:
        told = next((call for call in calls if isinstance(call, str)), "it has no structured op")
        raise NoMatchError(f"tune: {graph.name} has no kernel to tune: {told}")
    return list({task.key: task for task in noted}.values())


def tune_graph(
    graph: Graph, records: Records, settings: Settings, timeout_s: float, report: Report
) -> tuple[Line, ...]:
    """Tune every kernel of a graph; return a line for each.

    Each gets `settings.trials`; `settings.seconds` is for all of them together, shared evenly. Ctrl-C ends it with what
    was found so far.

    Args:
        graph: what is to run on the kernels.
        records: where trials are kept, and where those of earlier runs are taken from.
        settings: budget and sampler.
        timeout_s: for one trial.
        report: called with (stage, done, total).

    Raises:
        NoMatchError: when none of its structured ops has a kernel.
        OutputError: when the records cannot be written.
    """
    tasks, model = tasks_of(graph), CostModel(machine())
    each = replace(settings, seconds=None if settings.seconds is None else settings.seconds / len(tasks))
    for place, task in enumerate(tasks):
        stage = f"tune {place + 1} of {len(tasks)}: {task.op}"
        if tune_task(task, records, each, timeout_s, report, stage, model).stopped == "interrupted":
            break
    keys = {task.key for task in tasks}
    return tuple(line for line in lines_of(records.read()) if line.key in keys)


def tune_task(
    task: CpuTask,
    records: Records,
    settings: Settings,
    timeout_s: float,
    report: Report,
    stage: str,
    model: CostModel | None = None,
) -> Outcome:
    """Tune one kernel, from the cost model's most promising tiles on."""
    configs = list(task.space.configs())
    first = ranked(task, configs, model or CostModel(machine()))[: max(4, len(configs) // 8)]
    total = min(len(configs), settings.trials or len(configs))

    def shown(trial: Trial, best: Trial | None, count: int) -> None:
        del trial, best
        report(stage, count, total)

    with Isolated(task.task, timeout_s) as measure:
        return search(task.space, measure, task.key, records, settings, first, shown)


def ranked(task: CpuTask, configs: Sequence[Config], model: CostModel) -> list[Config]:
    """Return the configs, most promising first."""
    predicted = model.predict([task.features(config) for config in configs])
    return [configs[place] for place in predicted.argsort(kind="stable")]
