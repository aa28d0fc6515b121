"""The pass shift-add: what it writes, keeps and refuses, on both graph kinds."""

from pathlib import Path
from typing import Any

import minilm
import pytest
import torch
from torch import nn

import regraft
from regraft.errors import OptionError
from regraft.numerics.power_of_two import packed_width
from regraft.passes import ShiftAdd


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(128, 200), nn.ReLU(), nn.Linear(200, 128, bias=False), nn.Tanh()).eval()


def inputs(rows: int) -> torch.Tensor:
    return torch.randn(rows, 128, generator=torch.Generator().manual_seed(rows))


def optimized(item: ShiftAdd, calibration: Any = None, model: nn.Module | None = None) -> regraft.Optimized:
    return regraft.optimize(
        model or network(), [item], example_inputs=inputs(16), calibration=calibration, progress=False
    )


def error(result: Any, rows: int = 64) -> float:
    with torch.no_grad():
        wanted, found = network()(inputs(rows)), result(inputs(rows))
    return float((found - wanted).norm() / wanted.norm())


@pytest.mark.parametrize(("terms", "share", "most"), [(1, 0.15, 0.35), (2, 0.27, 0.08)])
def test_layers_get_as_small_as_their_terms_and_two_terms_are_closer(terms: int, share: float, most: float) -> None:
    result = optimized(ShiftAdd(terms=terms, small=True))
    assert [entry.site for entry in result.ledger.rewritten] == ["0", "2"]
    for entry in result.ledger.rewritten:
        assert entry.bytes_before is not None
        assert entry.bytes_after is not None
        assert entry.bytes_after <= share * entry.bytes_before
    assert error(result) < most


def test_codes_are_packed_in_the_file_and_onnx_runtime_computes_the_same(tmp_path: Path) -> None:
    result = optimized(ShiftAdd(terms=1, small=True, activations="none"))
    path = result.export(tmp_path / "m.onnx")
    loaded = regraft.load(path)
    torch.testing.assert_close(loaded(inputs(9))[0], result(inputs(9)).detach(), atol=1e-5, rtol=1e-5)
    codes = [value for value in loaded.graph.constants() if value.name.endswith(".codes")]
    assert [(value.type.dtype, value.type.shape) for value in codes] == [
        ("uint8", (200, packed_width(128, 1))),
        ("uint8", (128, packed_width(200, 1))),
    ]


def test_error_feedback_on_calibration_inputs_makes_the_output_closer() -> None:
    torch.manual_seed(1)
    mixing = torch.randn(128, 128) * torch.logspace(0, -1.5, 128)[:, None]
    batches = [torch.randn(1500, 128) @ mixing]

    def measured(feedback: bool) -> float:
        item = ShiftAdd(terms=1, small=True, activations="none", feedback=feedback)
        (first, *_) = optimized(item, batches).ledger.rewritten
        assert first.measured_error is not None
        return first.measured_error

    assert measured(True) < 0.9 * measured(False)


def test_a_loud_input_column_is_kept_in_floating_point() -> None:
    scale = torch.ones(128)
    scale[7] = 60.0
    batches = [inputs(600) * scale]
    kept = optimized(ShiftAdd(small=True), batches)
    plain = optimized(ShiftAdd(small=True, outliers="none"), batches)
    first, other = kept.ledger.rewritten[0], plain.ledger.rewritten[0]
    assert "1 column kept" in first.after
    assert first.measured_error is not None
    assert other.measured_error is not None
    assert first.measured_error < 0.6 * other.measured_error


def test_training_goes_through_the_rounding_and_finds_detuned_scales_again() -> None:
    result = optimized(ShiftAdd(terms=1, small=True))
    module = result.model
    scales = [parameter for name, parameter in module.named_parameters() if name.endswith(".scale")]
    assert len(scales) == 2
    x, wanted = inputs(64), network()(inputs(64)).detach()

    def loss() -> torch.Tensor:
        return (module(x) - wanted).square().mean()

    tuned = float(loss().detach())
    with torch.no_grad():
        for scale in scales:
            scale.mul_(1.3)
    detuned = float(loss().detach())
    optimizer = torch.optim.Adam(scales, lr=2e-5)
    for _ in range(60):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    assert detuned > 2 * tuned
    assert float(loss().detach()) < 1.2 * tuned


def test_layers_too_small_to_get_faster_are_kept_with_the_reason() -> None:
    small = nn.Sequential(nn.Linear(128, 16), nn.Tanh()).eval()
    result = regraft.optimize(small, "shift-add", example_inputs=inputs(4), strict=False, progress=False)
    assert result.ledger.kept[0].reason == "a 16x128 layer is too small to get faster in 8 bits; small=true rewrites it"


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"terms": 3}, "shift-add: terms must be 1 or 2; got 3"),
        ({"activations": "column"}, "shift-add: activations must be row or tensor or none; got 'column'"),
        ({"cap": 2.0}, "shift-add: cap must be at least 0 and at most 1; got 2.0"),
        ({"threshold": -1.0}, "shift-add: threshold must be at least 0; got -1.0"),
        (
            {"outliers": "calibrated", "activations": "none"},
            "shift-add: outliers=calibrated is for quantized activations; activations is none",
        ),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], text: str) -> None:
    with pytest.raises(OptionError) as caught:
        ShiftAdd(**options)
    assert str(caught.value) == text


@pytest.mark.slow
@pytest.mark.parametrize(("terms", "least"), [(2, 0.996), (1, 0.91)])
def test_minilm_keeps_its_embeddings(terms: int, least: float) -> None:
    calibration = minilm.batches(minilm.CALIBRATION)
    result = regraft.optimize(
        minilm.model(),
        [ShiftAdd(terms=terms)],
        example_inputs=minilm.example(),
        calibration=calibration,
        progress=False,
    )
    assert len(result.ledger.rewritten) == 36
    wanted = minilm.embed(minilm.model(), minilm.EVALUATION)
    assert minilm.cosine(wanted, minilm.embed(result, minilm.EVALUATION)) >= least
