"""Kernels of a whole model: tuned once each, and compiled with the tiles that the records hold for that very key."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import regraft
from regraft.backends import compile_graph
from regraft.backends.tvm._tune_graph import tasks_of
from regraft.errors import NoMatchError, OptionError
from regraft.passes import LowRank
from regraft.tune import Records, Trial


@pytest.fixture(scope="module")
def x() -> torch.Tensor:
    return torch.randn(2, 3, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def optimized(x: torch.Tensor) -> Any:
    """Two layers of one problem, and one of another."""
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 12)).eval()
    item = LowRank(rank=3, heads=True)
    return regraft.optimize(layers, passes=[item], example_inputs=(x,), progress=False)


OTHER = {"block_rows": 2, "block_vectors": 1, "row_chunk": 16}


def recorded(optimized: Any, folder: Path, **changed: str) -> Path:
    """Records of other tiles for the first problem."""
    path = folder / "tune.jsonl"
    key = replace(tasks_of(optimized.graph)[0].key, **changed)
    Records(path).add(Trial(key, OTHER, "ok", 1e-6))
    return path


def test_each_problem_is_tuned_once_and_never_paid_again(optimized: Any, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    path = tmp_path / "tune.jsonl"

    def progress(stage: str, done: int, total: int) -> None:
        seen.append((stage, done, total))

    lines = optimized.tune(records=path, trials=1, sampler="grid", progress=progress)
    assert [(line.key.op, len(line.trials)) for line in lines] == [("lowrank_linear", 1)] * 2
    assert seen == [("tune 1 of 2: lowrank_linear", 1, 1), ("tune 2 of 2: lowrank_linear", 1, 1)]
    before = path.read_bytes()
    assert optimized.tune(records=path, trials=1, sampler="grid", progress=False) == lines
    assert path.read_bytes() == before


def test_kernels_take_the_tiles_of_their_records_and_say_so(optimized: Any, x: torch.Tensor, tmp_path: Path) -> None:
    executable = optimized.compile("torch", kernels="tvm", records=recorded(optimized, tmp_path))
    assert [use.tuned for use in executable.kernels] == [True, True, False]
    assert str(executable.kernels[0]).endswith("lowrank_linear on tvm, tuned")
    keys = [node.args[2] for node in executable.module.graph.nodes if "regraft_kernels" in str(node.target)]
    assert ['"block_rows": 2' in key for key in keys] == [True, True, False]
    torch.testing.assert_close(executable(x), optimized.model(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("field", ["target", "device", "driver", "compiler", "version"])
def test_records_of_another_machine_or_version_are_never_applied(optimized: Any, tmp_path: Path, field: str) -> None:
    path = recorded(optimized, tmp_path, **{field: "another"})
    executable = optimized.compile("torch", kernels="tvm", records=path)
    assert [use.tuned for use in executable.kernels] == [False] * 3


def test_tiles_that_the_kernel_has_no_more_are_not_applied(optimized: Any, tmp_path: Path) -> None:
    path = tmp_path / "tune.jsonl"
    Records(path).add(Trial(tasks_of(optimized.graph)[0].key, {**OTHER, "block_rows": 3}, "ok", 1e-6))
    executable = optimized.compile("torch", kernels="tvm", records=path)
    assert [use.tuned for use in executable.kernels] == [False] * 3


def test_without_a_kernel_there_is_nothing_to_tune(x: torch.Tensor, tmp_path: Path) -> None:
    plain = regraft.load(nn.Linear(16, 16), example_inputs=(x,))
    with pytest.raises(NoMatchError, match=r"^tune: .* has no kernel to tune: it has no structured op$"):
        plain.tune(records=tmp_path / "tune.jsonl")
    assert not list(tmp_path.iterdir())


def test_what_makes_no_sense_is_refused(optimized: Any, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"^tune: target must be 'cpu', for which kernels can be tuned; got 'cuda'$"):
        optimized.tune("cuda", records=tmp_path / "t.jsonl")
    with pytest.raises(OptionError, match=r"^torch backend: records are for kernels='tvm', which was not asked for$"):
        compile_graph(optimized.graph, "torch", records=tmp_path / "t.jsonl")
