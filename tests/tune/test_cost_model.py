"""The cost model: the roofline without samples, and with them a ranking of shapes that it has not seen."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from regraft.errors import OptionError
from regraft.tune import CostModel, Features, Machine, Sample, judge

MACHINE = Machine(operations=1e11, bytes=1e10, units=4)


def features(m: int, n: int, k: int, rows: int, columns: int) -> Features:
    tasks = math.ceil(m / rows) * math.ceil(n / columns)
    moved = 4 * tasks * k * (rows + columns) + 4 * m * n
    return {
        "operations": 2.0 * m * n * k,
        "bytes": float(moved),
        "tasks": float(tasks),
        "rows": float(rows),
        "columns": float(columns),
    }


def true_seconds(config: Features) -> float:
    """A machine on which narrow tiles waste lanes and large ones spill, beside the roofline."""
    lanes = min(1.0, config["columns"] / 32)
    spill = 1 + max(0.0, config["rows"] * config["columns"] / 2048 - 1)
    return float(CostModel(MACHINE).roofline([config])[0]) * spill / lanes


def samples(seed: int = 0) -> list[Sample]:
    draw = np.random.default_rng(seed)
    found: list[Sample] = []
    for m, n, k in ((64, 64, 64), (128, 256, 64), (512, 128, 256), (1024, 1024, 128), (256, 256, 1024)):
        for rows in (4, 8, 16, 32, 64):
            for columns in (8, 16, 32, 64, 128):
                config = features(m, n, k, rows, columns)
                noise = float(np.exp(draw.normal(0, 0.02)))
                found.append(Sample(config, true_seconds(config) * noise, f"{m}x{n}x{k}"))
    return found


def test_without_samples_it_is_the_roofline() -> None:
    model, config = CostModel(MACHINE), features(1024, 1024, 128, 64, 64)
    assert not model.is_trained
    assert model.predict([config])[0] == pytest.approx(max(config["operations"] / 1e11, config["bytes"] / 1e10))
    assert not model.fit(samples()[:3]).is_trained


@given(st.integers(1, 40), st.floats(1.1, 100))
def test_the_roofline_grows_with_work_and_with_idle_units(tasks: int, more: float) -> None:
    def least(**changed: float) -> float:
        return float(CostModel(MACHINE).roofline([{"operations": 1e9, "bytes": 1.0, "tasks": tasks, **changed}])[0])

    assert least(operations=more * 1e9) == pytest.approx(more * least())
    assert least() >= 1e9 / MACHINE.operations * (1 - 1e-12)
    if tasks % MACHINE.units == 0:
        assert least() == pytest.approx(1e9 / MACHINE.operations)


def test_trained_it_ranks_shapes_that_it_has_not_seen_better_than_the_roofline() -> None:
    learned, roofline = judge(samples(), MACHINE), judge(samples(), MACHINE, trained=False)
    assert learned.shapes == 5
    assert learned.rank_correlation > max(0.9, roofline.rank_correlation)
    assert learned.regret <= 0.1
    assert learned.regret < roofline.regret


def test_the_same_samples_and_seed_give_the_same_predictions() -> None:
    configs = [sample.features for sample in samples()]
    first, second = (CostModel(MACHINE, seed=5).fit(samples()).predict(configs) for _ in range(2))
    assert np.array_equal(first, second)


def test_a_config_without_its_work_is_refused() -> None:
    with pytest.raises(OptionError, match=r"^tune: a config needs the feature 'tasks'; it has operations, bytes$"):
        CostModel(MACHINE).predict([{"operations": 1.0, "bytes": 1.0}])


def test_one_shape_judges_nothing() -> None:
    alone = [sample for sample in samples() if sample.shape == "64x64x64"]
    with pytest.raises(OptionError, match=r"^tune: judging needs two shapes with two configs each; got 1$"):
        judge(alone, MACHINE)
