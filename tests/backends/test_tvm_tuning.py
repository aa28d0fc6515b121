"""CPU kernels as tasks to tune: every config is held to the op in float64 before its time counts."""

from dataclasses import replace

import pytest
import torch

from regraft.backends.tvm._tuning import CpuTask, Measurement, layer_task
from regraft.backends.tvm.kernels.cpu import cpu_kernels
from regraft.errors import InputError, UnknownNameError
from regraft.ops import Ints, get_op
from regraft.tune import Records, Settings, search

SIZES = {"in": 24, "out": 20, "rank": 6, "blocks": 3, "block_rank": 2}
LAYERS = ("linear", "lowrank_linear", "monarch_linear")


@pytest.mark.parametrize("op", LAYERS)
def test_a_config_is_right_and_has_a_time(op: str) -> None:
    task = layer_task(op, SIZES, 5, "float64")
    found = Measurement(task)(list(task.space.configs())[-1])
    assert found.state == "ok", found
    assert found.seconds is not None
    assert 0 < found.seconds < 1


@pytest.mark.parametrize("op", sorted(cpu_kernels()))
def test_every_kernel_can_be_a_task(op: str) -> None:
    example = get_op(op).examples[0]
    shapes = {name: spec.shape if isinstance(spec, Ints) else spec for name, spec in example.shapes.items()}
    dtypes = {name: spec.dtype if isinstance(spec, Ints) else "float32" for name, spec in example.shapes.items()}
    task = CpuTask(op, shapes, dtypes, example.attributes or {})
    found = Measurement(task)(next(task.space.configs()))
    assert found.state == "ok", found
    features = task.features(next(task.space.configs()))
    assert features["operations"] > 0
    assert features["bytes"] > 0


def test_a_wrong_result_has_no_time() -> None:
    measurement = Measurement(layer_task("linear", SIZES, 5))
    measurement.__dict__["_exact"] = torch.ones(5, SIZES["out"], dtype=torch.float64)  # of another layer
    found = measurement({})
    assert (found.state, found.seconds) == ("wrong", None)
    assert found.reason.endswith("of its size; at most 0.0001 is allowed")


def test_a_config_that_the_kernel_has_not_fails_with_its_reason() -> None:
    found = Measurement(layer_task("linear", SIZES, 5))({"block_rows": 3})
    assert found.state == "failed"
    assert "has no tile block_rows=3" in found.reason


def test_rows_of_one_bucket_share_a_key_and_nothing_else_does() -> None:
    task = layer_task("lowrank_linear", SIZES, 100)
    assert task.key == layer_task("lowrank_linear", SIZES, 128).key
    others = [
        layer_task("lowrank_linear", SIZES, 129),
        layer_task("lowrank_linear", {**SIZES, "in": 25}, 100),
        layer_task("lowrank_linear", SIZES, 100, "float64"),
        layer_task("linear", SIZES, 100),
    ]
    assert all(task.key != other.key for other in others)


def test_threads_are_part_of_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    before = layer_task("linear", SIZES, 4).key
    monkeypatch.setenv("TVM_NUM_THREADS", "7")
    after = layer_task("linear", SIZES, 4).key
    assert before != after
    assert replace(after, target=before.target) == before


def test_a_task_is_made_again_by_name() -> None:
    task = layer_task("monarch_linear", SIZES, 3)
    made = task.task.make()
    assert isinstance(made, Measurement)
    assert made.task == task


def test_a_search_over_a_kernel_finds_its_best(tmp_path: pytest.TempPathFactory) -> None:
    task = layer_task("linear", SIZES, 3)
    outcome = search(task.space, Measurement(task), task.key, Records(f"{tmp_path}/t.jsonl"), Settings(trials=3))
    assert outcome.paid == 3
    assert outcome.best is not None


@pytest.mark.parametrize(
    ("op", "sizes", "text"),
    [
        ("lowrank_linear", {"in": 3, "out": 3}, "tune: lowrank_linear needs the size 'rank'; got in, out"),
        ("linear", {}, "tune: linear needs the size 'in'; got none"),
    ],
)
def test_a_missing_size_is_named(op: str, sizes: dict[str, int], text: str) -> None:
    with pytest.raises(InputError) as caught:
        layer_task(op, sizes, 2)
    assert str(caught.value) == text


def test_an_op_without_a_kernel_is_refused() -> None:
    with pytest.raises(UnknownNameError, match=r"^tune: no layer 'softmax' can be made from sizes; there are"):
        layer_task("softmax", SIZES, 2)
    with pytest.raises(UnknownNameError, match=r"^tune: no CPU kernel computes 'softmax'; there are: linear, "):
        CpuTask("softmax", {}, {}).kernel  # noqa: B018
