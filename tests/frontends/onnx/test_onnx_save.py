"""Saving: complete or not at all, the same bytes every time, never over an input."""

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from onnx_models import LOWRANK, branches, full_rank, mlp, parse, rewrite_all, sites

from regraft.errors import ExportError, OutputError
from regraft.frontends.onnx import OnnxGraph, load, save
from regraft.graph import Site

X = torch.randn(5, 6, generator=torch.Generator().manual_seed(3))


def rewritten(make: Callable[[], onnx.ModelProto] = mlp) -> OnnxGraph:
    graph = load(make())
    rewrite_all(graph)
    return graph


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def run_file(path: Path) -> torch.Tensor:
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"x": X.numpy()})[0])


def test_a_saved_model_runs_and_is_valid(tmp_path: Path) -> None:
    graph = rewritten()
    save(graph, tmp_path / "out.onnx")
    onnx.checker.check_model(tmp_path / "out.onnx", full_check=True)
    torch.testing.assert_close(run_file(tmp_path / "out.onnx"), graph.run(X)[0][0])
    assert names(tmp_path) == ["out.onnx"]


def test_a_saved_model_read_again_is_the_same_graph(tmp_path: Path) -> None:
    graph = rewritten(branches)
    save(graph, tmp_path / "out.onnx")
    again = load(tmp_path / "out.onnx")
    assert again.snapshot().nodes == graph.snapshot().nodes


def test_the_same_model_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a.onnx", "b.onnx"):
        save(rewritten(), tmp_path / name, metadata={"b": "2", "a": "1"}, external_above=0)
    assert (tmp_path / "a.onnx.data").read_bytes() == (tmp_path / "b.onnx.data").read_bytes()
    first, second = ((tmp_path / name).read_bytes() for name in ("a.onnx", "b.onnx"))
    assert first.replace(b"a.onnx.data", b"b.onnx.data") == second


def test_metadata_is_added_to_that_of_the_model(tmp_path: Path) -> None:
    model = mlp()
    model.metadata_props.add(key="author", value="me")
    save(load(model), tmp_path / "out.onnx", metadata={"regraft.recipe": "low-rank"})
    properties = {entry.key: entry.value for entry in onnx.load(tmp_path / "out.onnx").metadata_props}
    assert properties == {"author": "me", "regraft.recipe": "low-rank"}


def test_saving_does_not_change_the_graph(tmp_path: Path) -> None:
    graph = rewritten()
    before = ir.to_proto(graph.model)
    save(graph, tmp_path / "out.onnx", opset=21, functions="inline", metadata={"a": "b"}, external_above=0)
    assert ir.to_proto(graph.model) == before


def test_a_native_model_can_be_saved_too(tmp_path: Path) -> None:
    save(ir.from_proto(mlp()), tmp_path / "out.onnx")
    torch.testing.assert_close(run_file(tmp_path / "out.onnx"), load(mlp()).run(X)[0][0])


def wide() -> onnx.ModelProto:
    text = "net (float[b, 6] x) => (float[b, 70] y) { h = MatMul(x, w) s = Add(h, bias) y = Mul(s, factor) }"
    return parse(text, {"w": (6, 70), "bias": (70,), "factor": (1,)})


def test_large_weights_become_external_data_beside_the_model(tmp_path: Path) -> None:
    graph = load(wide())
    save(graph, tmp_path / "out.onnx", external_above=100)
    assert names(tmp_path) == ["out.onnx", "out.onnx.data"]
    saved = onnx.load(tmp_path / "out.onnx", load_external_data=False)
    stored = {tensor.name: tensor for tensor in saved.graph.initializer}
    outside = [name for name, tensor in stored.items() if tensor.data_location == onnx.TensorProto.EXTERNAL]
    assert outside == ["w"]  # small ones stay, so that readers see shapes and the like
    torch.testing.assert_close(run_file(tmp_path / "out.onnx"), graph.run(X)[0][0])
    assert load(tmp_path / "out.onnx").snapshot().nodes == graph.snapshot().nodes


def test_weights_below_the_limit_stay_in_the_file_though_they_came_from_outside(tmp_path: Path) -> None:
    save(load(wide()), tmp_path / "a.onnx", external_above=0)
    save(load(tmp_path / "a.onnx"), tmp_path / "b.onnx")
    assert not (tmp_path / "b.onnx.data").exists()
    assert torch.equal(run_file(tmp_path / "a.onnx"), run_file(tmp_path / "b.onnx"))


def test_external_data_is_copied_from_one_file_to_the_next(tmp_path: Path) -> None:
    save(load(wide()), tmp_path / "a.onnx", external_above=0)
    save(load(tmp_path / "a.onnx"), tmp_path / "b.onnx", external_above=0)
    (tmp_path / "a.onnx.data").unlink()
    torch.testing.assert_close(run_file(tmp_path / "b.onnx"), load(wide()).run(X)[0][0])


def test_functions_can_be_inlined(tmp_path: Path) -> None:
    graph = rewritten()
    save(graph, tmp_path / "out.onnx", functions="inline")
    saved = onnx.load(tmp_path / "out.onnx")
    assert not saved.functions
    assert {node.domain for node in saved.graph.node} == {""}
    assert "regraft" not in {one.domain for one in saved.opset_import}
    assert [value.name for value in saved.graph.output] == ["y"]
    torch.testing.assert_close(run_file(tmp_path / "out.onnx"), graph.run(X)[0][0])


def test_functions_that_nothing_calls_any_more_are_left_out(tmp_path: Path) -> None:
    graph = load(mlp())
    site = sites(graph)["up"]
    graph.replace(site, LOWRANK, {**full_rank(site), "bias": None})
    graph.replace(Site("up", site.operands, site.output, ["up"]), LOWRANK, full_rank(site))
    save(graph, tmp_path / "out.onnx")
    assert [function.name for function in onnx.load(tmp_path / "out.onnx").functions] == ["LowrankLinear"]


def refusal(graph: object, path: Path, kind: type[Exception] = OutputError) -> str:
    with pytest.raises(kind) as caught:
        save(graph, path)  # pyright: ignore[reportArgumentType]
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_folder_that_does_not_exist_is_named(tmp_path: Path) -> None:
    path = tmp_path / "none" / "out.onnx"
    assert refusal(load(mlp()), path) == f"{path}: the folder {tmp_path / 'none'} does not exist"


def test_a_directory_is_no_file_to_write(tmp_path: Path) -> None:
    assert refusal(load(mlp()), tmp_path) == f"{tmp_path}: a directory; the path of a file is needed"


def test_a_read_only_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # the superuser may write anywhere
    path = tmp_path / "out.onnx"
    assert refusal(load(mlp()), path) == f"{path}: the folder {tmp_path} is read-only"


@pytest.mark.parametrize("written", ["in.onnx", "in.onnx.data"])
@pytest.mark.parametrize("way", ["itself", "symbolic link", "hard link"])
def test_an_input_file_is_never_changed_in_place(tmp_path: Path, written: str, way: str) -> None:
    source = tmp_path / "in.onnx"
    save(load(wide()), source, external_above=0)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    graph = load(source)
    target = tmp_path / written
    if way == "symbolic link":
        target = tmp_path / "link.onnx"
        target.symlink_to(tmp_path / written)
    if way == "hard link":
        target = tmp_path / "link.onnx"
        os.link(tmp_path / written, target)
    text = refusal(graph, target)
    assert text == f"{target}: {written} is what the model was read from; an input file is never changed in place"
    assert {name: (tmp_path / name).read_bytes() for name in before} == before


def test_the_data_file_is_not_written_over_an_input(tmp_path: Path) -> None:
    source = tmp_path / "x.onnx.data"
    source.write_bytes(mlp().SerializeToString())
    assert "x.onnx.data is what the model was read from" in refusal(load(source), tmp_path / "x.onnx")


def test_a_copy_of_a_graph_remembers_where_it_was_read_from(tmp_path: Path) -> None:
    (tmp_path / "in.onnx").write_bytes(mlp().SerializeToString())
    graph = load(tmp_path / "in.onnx").copy()
    assert "in.onnx is what the model was read from" in refusal(graph, tmp_path / "in.onnx")


def test_another_existing_file_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "out.onnx").write_text("old")
    save(load(mlp()), tmp_path / "out.onnx")
    assert load(tmp_path / "out.onnx").nodes()


@pytest.mark.parametrize("fails", range(1, 5))
def test_a_failure_at_any_step_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: int
) -> None:
    """Steps: bring the data to the disk, bring the model there, rename the data, rename the model."""
    steps = 0
    fsync, rename = os.fsync, Path.replace

    def count() -> None:
        nonlocal steps
        steps += 1
        if steps == fails:
            raise OSError(errno.ENOSPC, "No space left on device")

    def counted_fsync(descriptor: int) -> None:
        if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
            count()
        fsync(descriptor)

    def counted_rename(self: Path, target: Path) -> Path:
        count()
        return rename(self, target)

    monkeypatch.setattr(os, "fsync", counted_fsync)
    monkeypatch.setattr(Path, "replace", counted_rename)
    path = tmp_path / "out.onnx"
    with pytest.raises(OutputError) as caught:
        save(load(wide()), path, external_above=0)
    assert str(caught.value) == f"{path}: cannot be written: No space left on device"
    assert steps == fails
    assert names(tmp_path) == []


def test_a_failure_keeps_the_file_that_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "out.onnx").write_text("old")

    def fail(descriptor: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OutputError):
        save(load(mlp()), tmp_path / "out.onnx")
    assert (tmp_path / "out.onnx").read_text() == "old"
    assert names(tmp_path) == ["out.onnx"]


def test_a_function_of_another_opset_cannot_be_inlined_and_says_so(tmp_path: Path) -> None:
    text = """net (float[b] x) => (float[b] y) { y = custom.Shift(x) }
    <opset_import: ["": 17], domain: "custom"> Shift (a) => (c) { c = Abs(a) }"""
    with pytest.raises(ExportError) as caught:
        save(load(parse(text)), tmp_path / "out.onnx", functions="inline")
    assert str(caught.value).startswith("out.onnx: functions cannot be inlined: Opset mismatch")
    assert names(tmp_path) == []


def test_a_new_file_has_the_permissions_of_any_new_file(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("")
    save(load(mlp()), tmp_path / "out.onnx")
    assert (tmp_path / "out.onnx").stat().st_mode == (tmp_path / "plain").stat().st_mode
