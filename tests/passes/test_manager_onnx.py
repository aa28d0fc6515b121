"""The same manager and the same passes on an ONNX graph."""

from functools import lru_cache
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
import torch
from faulty_passes import Exact, Faulty
from tiny_models import WIDTH, batch

from regraft.frontends.onnx import OnnxGraph, load
from regraft.passes import ErrorGate, LowRank, Settings, run_passes

MODEL = """
<ir_version: 8, opset_import: ["": 18]>
three (float[batch, 12] x) => (float[batch, 12] y) {
    a = MatMul(x, first)
    b = Add(a, first_bias)
    c = MatMul(b, second)
    d = Tanh(c)
    e = Gemm <transB = 1, alpha = 0.5> (d, third, third_bias)
    y = Tanh(e)
}
"""
CALIBRATION = [{"x": batch(seed, 16)} for seed in range(10, 13)]
SITES = ("first", "second", "third")


@lru_cache(maxsize=1)
def _graph() -> OnnxGraph:
    model = onnx.parser.parse_model(MODEL)
    random = np.random.default_rng(0)
    for name in SITES:
        weight = random.standard_normal((WIDTH, WIDTH)).astype(np.float32) / WIDTH**0.5
        model.graph.initializer.append(onnx.numpy_helper.from_array(weight, name))
        if name != "second":
            bias = random.standard_normal(WIDTH).astype(np.float32)
            model.graph.initializer.append(onnx.numpy_helper.from_array(bias, f"{name}_bias"))
    return load(model)


def _statuses(*passes: Any, **settings: Any) -> tuple[list[str], Any]:
    rewritten, ledger = run_passes(_graph(), passes, Settings(**settings))
    return [entry.status for entry in ledger], rewritten


@pytest.mark.parametrize("calibration", [None, CALIBRATION], ids=["random", "calibration"])
def test_low_rank_and_exact_rewrites_hold(calibration: Any) -> None:
    for item in (LowRank(rank=3), Exact()):
        statuses, rewritten = _statuses(item, calibration=calibration)
        assert statuses == ["rewritten"] * 3
        assert [node.op for node in rewritten.nodes()].count("lowrank_linear") == 3
    (wanted,), (got,) = (item.run({"x": batch(1)})[0] for item in (_graph(), rewritten))
    torch.testing.assert_close(torch.as_tensor(got), torch.as_tensor(wanted), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "fault",
    ["writes wrong factors", "writes nan", "announces too little", "raises halfway through build", "changes nothing"],
)
def test_a_wrong_rewrite_is_taken_back_alone(fault: Any) -> None:
    names = [entry.site for entry in run_passes(_graph(), [LowRank(rank=3)], Settings())[1]]
    for place, name in enumerate(names):
        statuses, rewritten = _statuses(Faulty(fault=fault, at=name), calibration=CALIBRATION)
        assert statuses == ["rolled back" if other == place else "rewritten" for other in range(3)]
        assert [node.op for node in rewritten.nodes()].count("lowrank_linear") == 2
        rewritten.validate()


def test_an_error_budget_is_kept_and_the_graph_handed_in_is_not_changed() -> None:
    text = str(_graph().snapshot())
    reference = [_graph().run(item)[0] for item in CALIBRATION]
    _, ledger = run_passes(_graph(), [LowRank(rank=4)], Settings(probes=CALIBRATION))
    gate = ErrorGate(0.8 * (ledger.model_error or 0.0), CALIBRATION, reference)
    statuses, rewritten = _statuses(LowRank(rank=4), gates=[gate], probes=CALIBRATION)
    assert 0 < statuses.count("rewritten") < 3
    assert gate.violation(rewritten) == ""
    assert str(_graph().snapshot()) == text
