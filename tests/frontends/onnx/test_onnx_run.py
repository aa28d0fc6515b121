"""Running ONNX graphs: inputs by position or name, checked first; taps; sessions kept until the next rewrite."""

from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from onnx_models import LOWRANK, branches, full_rank, mlp, parse, sites

from regraft.errors import BackendError, GraphError, InputError
from regraft.frontends.onnx import OnnxGraph, _run, load, open_session

X = torch.randn(5, 6, generator=torch.Generator().manual_seed(3))

TWO_INPUTS = """net (int64[batch, 128] ids, float[batch, 128] mask) => (float[batch, 128] y) {
    f = Cast <to = 1> (ids) y = Mul(f, mask)
}"""


def expected(graph: OnnxGraph, x: torch.Tensor) -> torch.Tensor:
    w, a, v, b = (graph.constant(graph.value(key)) for key in ("w0", "up.bias", "down.weight", "down.bias"))
    assert w is not None and a is not None and v is not None and b is not None
    return torch.relu(x @ w + a) @ v.t() + b


@pytest.mark.parametrize("inputs", [X, (X,), [X.numpy()], {"x": X}, {"x": X.numpy()}, X.numpy(), X.tolist()])
def test_inputs_come_as_they_are(inputs: Any) -> None:
    graph = load(mlp())
    given = [inputs] if isinstance(inputs, list) and isinstance(inputs[0], list) else inputs
    (y,), tapped = graph.run(given)
    torch.testing.assert_close(y, expected(graph, X))
    assert tapped == {}


@pytest.mark.parametrize("rows", [1, 2, 7])
def test_dynamic_dims_take_any_extent(rows: int) -> None:
    graph = load(mlp())
    (y,), _ = graph.run(X[:1].expand(rows, -1))
    assert y.shape == (rows, 3)


@pytest.mark.parametrize(
    ("inputs", "text"),
    [
        (
            {"ids": torch.zeros(8, 64), "mask": torch.ones(8, 128)},
            "onnxruntime: input 'ids' needs int64 [batch, 128], got float32 [8, 64]",
        ),
        (
            (torch.zeros(8, 128, dtype=torch.int64), torch.ones(128)),
            "onnxruntime: input 'mask' needs float32 [batch, 128], got float32 [128]",
        ),
        (
            {"ids": "text", "mask": torch.ones(8, 128)},
            "onnxruntime: input 'ids' needs int64 [batch, 128], got a str",
        ),
        (
            {"idz": torch.zeros(8, 128)},
            "onnxruntime: the model has no input 'idz' and input 'ids', 'mask' is missing; it takes ids, mask",
        ),
        ((torch.zeros(1),) * 3, "onnxruntime: the model takes 2 inputs (ids, mask); got 3"),
        ((), "onnxruntime: the model input 'ids', 'mask' is missing; it takes ids, mask"),
    ],
)
def test_inputs_that_do_not_fit_are_named_with_what_is_needed(inputs: Any, text: str) -> None:
    with pytest.raises(InputError) as caught:
        load(parse(TWO_INPUTS)).run(inputs)
    assert str(caught.value) == text


def test_an_input_without_names_for_its_dims_shows_question_marks() -> None:
    graph = load(parse("net (float[?, 2] x) => (float[?, 2] y) { y = Relu(x) }"))
    with pytest.raises(InputError, match=r"input 'x' needs float32 \[\?, 2\], got float32 \[2\]$"):
        graph.run(torch.ones(2))


def test_taps_show_values_on_the_way_by_key() -> None:
    graph = load(mlp())
    (y,), tapped = graph.run(X, ["h1", "x", "w0", "y"])
    assert list(tapped) == ["h1", "x", "w0", "y"]
    w, bias = graph.constant(graph.value("w0")), graph.constant(graph.value("up.bias"))
    assert w is not None and bias is not None
    torch.testing.assert_close(tapped["h1"], X @ w + bias)
    assert torch.equal(tapped["x"], X) and torch.equal(tapped["w0"], w) and torch.equal(tapped["y"], y)


def test_a_value_in_a_body_cannot_be_tapped() -> None:
    graph = load(branches())
    wanted = r"^net: 'choice/then_branch/p' is inside a nested body and cannot be tapped$"
    with pytest.raises(GraphError, match=wanted):
        graph.run({"x": X, "flag": torch.tensor(True)}, ["choice/then_branch/p"])


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Grows with every session that is opened for a whole model."""
    names: list[str] = []

    def counting(proto: onnx.ModelProto, lent: Any, name: str) -> Any:
        names.append(name)
        return open_session(proto, lent, name)

    monkeypatch.setattr(_run, "open_session", counting)
    return names


def test_a_session_is_kept_until_the_next_rewrite(opened: list[str]) -> None:
    graph = load(mlp())
    graph.run(X)
    graph.run(X * 2)
    assert len(opened) == 1
    graph.run(X, ["h1"])
    graph.run(X, ["h1"])
    assert len(opened) == 2
    site = sites(graph)["up"]
    graph.replace(site, LOWRANK, full_rank(site))
    graph.run(X)
    assert len(opened) == 3


def test_only_the_last_few_sessions_are_kept(opened: list[str]) -> None:
    graph = load(mlp())
    ways = [[], ["h0"], ["h1"], ["h2"], ["h0", "h1"]]
    for taps in ways:
        graph.run(X, taps)
    graph.run(X, ways[-1])
    assert len(opened) == 5
    graph.run(X, ways[0])
    assert len(opened) == 6


def test_a_rewrite_is_seen_by_the_next_run() -> None:
    graph = load(mlp())
    graph.run(X)
    site = sites(graph)["up"]
    graph.replace(site, LOWRANK, {"down": torch.zeros(1, 6), "up": torch.zeros(4, 1)})
    (y,), _ = graph.run(X)
    assert torch.allclose(y, y[:1].expand_as(y))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_other_floating_types_come_back_as_they_are(dtype: torch.dtype) -> None:
    name = {torch.float16: "float16", torch.float64: "double"}[dtype]
    model = parse(f"net ({name}[b, 300] x) => ({name}[b, 2] y) {{ y = MatMul(x, w) }}")
    weight = torch.randn(300, 2, generator=torch.Generator().manual_seed(0)).to(dtype)
    model.graph.initializer.append(onnx.numpy_helper.from_array(weight.numpy(), "w"))
    x = torch.randn(3, 300, generator=torch.Generator().manual_seed(1)).to(dtype)
    (y,), _ = load(model).run(x)
    assert y.dtype == dtype
    torch.testing.assert_close(y.double(), x.double() @ weight.double(), rtol=2e-2, atol=2e-2)


def test_bfloat16_goes_in_and_out() -> None:
    graph = load(parse("net (bfloat16[b, 2] x) => (bfloat16[b, 2] y) { y = Identity(x) }"))
    x = torch.tensor([[1.5, -3.0]], dtype=torch.bfloat16)
    (y,), _ = graph.run(x)
    assert torch.equal(y, x)


def test_external_weights_are_run_without_being_copied_into_the_model(tmp_path: Path) -> None:
    wide = parse("net (float[b, 6] x) => (float[b, 400] y) { y = MatMul(x, w) }", {"w": (6, 400)})
    (from_memory,), _ = load(wide).run(X)
    path = tmp_path / "wide.onnx"
    onnx.save(wide, path, save_as_external_data=True, location="wide.data", size_threshold=0)
    (from_file,), _ = load(path).run(X)
    assert torch.equal(from_file, from_memory)


def test_what_onnx_runtime_cannot_load_is_said_in_one_line() -> None:
    graph = load(parse("net (float[b] x) => (float[b] y) { y = custom.Unknown(x) }"))
    with pytest.raises(BackendError) as caught:
        graph.run(torch.ones(2))
    assert str(caught.value).startswith("onnxruntime: net could not be loaded: ")
    assert "Unknown" in str(caught.value) and "\n" not in str(caught.value)


def test_what_fails_while_running_is_said_in_one_line() -> None:
    graph = load(parse("net (float[a] x, float[b] z) => (float[c] y) { y = Add(x, z) }"))
    with pytest.raises(BackendError) as caught:
        graph.run((torch.ones(2), torch.ones(3)))
    assert str(caught.value).startswith("onnxruntime: net could not be run: ")
    assert "\n" not in str(caught.value)


def test_nothing_is_printed_by_onnx_runtime(capfd: pytest.CaptureFixture[str]) -> None:
    graph = load(parse("net (float[a] x, float[b] z) => (float[c] y) { y = Add(x, z) }"))
    with pytest.raises(BackendError):
        graph.run((torch.ones(2), torch.ones(3)))
    assert capfd.readouterr() == ("", "")
