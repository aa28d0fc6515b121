"""Whole graphs for a GPU, without one: calls of kernels run on the CPU by stand-ins; libraries are built and saved."""

import dataclasses
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_gpu import FakeGpu, fake_build
from kernel_builds import built as built_or_skipped
from tiny_transformers import library_example, library_model
from torch import Tensor, nn

import regraft
from regraft.backends import compile_graph
from regraft.backends._signature import inputs_of, outputs_of
from regraft.backends.tvm import _compile_cuda, load
from regraft.backends.tvm._archive import Variant, dispatch, read_contents
from regraft.backends.tvm._build import Artefact
from regraft.backends.tvm._compat import module
from regraft.backends.tvm._compile import built, fused, ports_of, program_for
from regraft.backends.tvm._cuda import CudaMaker
from regraft.backends.tvm._extents import limits_of
from regraft.backends.tvm._importer import Importer
from regraft.backends.tvm._launch import launch
from regraft.backends.tvm._library import started
from regraft.backends.tvm._nvcc import find_nvcc
from regraft.backends.tvm._ports import Ports
from regraft.backends.tvm._schedule import pipeline
from regraft.backends.tvm.kernels._kernel import Problem
from regraft.backends.tvm.kernels._registry import all_kernels
from regraft.backends.tvm.kernels.cpu._host import this_host
from regraft.errors import BackendError, MissingExtraError, ModelFileError, OptionError
from regraft.frontends.onnx import load as load_onnx
from regraft.frontends.onnx import single_node_model
from regraft.frontends.torch import capture
from regraft.frontends.torch.library import torch_op
from regraft.ops import evaluate, get_op

QUICK = ("lowrank_linear", "multi_head_attention")
NAMES = sorted({*all_kernels(), "lowrank_attention", "int8_topk_linear"})


class OneOp(nn.Module):
    """An op whose first operand is the input."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.op = get_op(name)
        self.example = next(one for one in self.op.examples if (one.attributes or {}).get("per_row", 1) == 1)
        if name == "multi_head_attention":
            self.example = next(one for one in self.op.examples if "mask" in one.shapes)
        self.tensors = self.example.tensors(torch.float32)
        for own, tensor in self.tensors.items():
            self.register_buffer(f"own_{own}", tensor)

    def forward(self, x: Tensor) -> Tensor:
        own = [getattr(self, f"own_{one.name}", None) for one in self.op.operands[1:]]
        return torch_op(self.op.name)(x, *own, **dict(self.example.attributes or {}))


def on_cpu(graph: Any, gpu: FakeGpu) -> Any:
    """The program for a GPU compiled for the CPU, its kernels stand-ins that the same functions choose."""
    host, importer = this_host(), Importer()
    program, _ = program_for(fused(graph), CudaMaker(gpu.gpu()))
    inputs, outputs = ports_of(inputs_of(graph), "input"), ports_of(outputs_of(graph), "output")
    importer.check(program, graph.name)
    ports = Ports(inputs, outputs, limits_of(program, inputs))
    code = built(graph.name, importer, program, ports, host, host.target, pipeline(host))
    assert importer.cuda
    for symbol, kernels in importer.cuda.items():
        axis, variants = _compile_cuda.variants_of(kernels)
        found = [(one, entry(artefact, gpu)) for one, artefact in zip(variants, kernels.artefacts, strict=True)]
        module("tvm_ffi").register_global_func(symbol, dispatch(axis, found), override=True)
    return started(code.jit(), graph.name)


def entry(artefact: Artefact, gpu: FakeGpu) -> Any:
    """What the function of a library does: extents from the tensors, then the launch."""

    def call(*given: Any) -> None:
        tensors = iter(torch.from_dlpack(x) for x in given)
        placed = [next(tensors) if argument.present else None for argument in artefact.arguments]
        extents: dict[str, int] = {}
        for argument, tensor in zip(artefact.arguments, placed, strict=True):
            if tensor is not None:
                pairs = zip(argument.dims, tensor.shape, strict=True)
                extents |= {dim: extent for dim, extent in pairs if isinstance(dim, str)}
                assert [extents.get(dim, dim) for dim in argument.dims] == list(tensor.shape)
        gpu.launch(artefact, placed, [extents[name] for name in artefact.extents])

    return call


def check(name: str, kind: str = "fx") -> None:
    layer, gpu = OneOp(name).eval(), FakeGpu()
    first = layer.op.operands[0].name
    x = layer.tensors[first]
    if kind == "fx":
        graph = capture(layer, (x,), dynamic_shapes=None)
    else:
        graph = load_onnx(single_node_model(layer.op, layer.tensors, layer.example.attributes, 18, ()))
    library = on_cpu(graph, gpu)
    gpu.launched.clear()
    (found,) = library(x)
    assert gpu.launched
    exact = {own: one.double() if one.is_floating_point() else one for own, one in layer.tensors.items()}
    wanted = evaluate(layer.op, exact, dict(layer.example.attributes or {}))
    assert found.shape == wanted.shape
    allowed = 3e-2 if name.startswith("int8") else 2e-5
    assert float((found.double() - wanted).abs().max() / wanted.abs().max()) < allowed


@pytest.mark.parametrize("name", QUICK)
def test_a_program_for_a_gpu_calls_its_kernels_as_they_are_described(name: str) -> None:
    check(name)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["fx", "onnx"])
@pytest.mark.parametrize("name", NAMES)
def test_every_op_in_a_program_for_a_gpu_calls_its_kernels_as_they_are_described(name: str, kind: str) -> None:
    check(name, kind)


def test_the_number_of_rows_chooses_the_kernel_and_each_takes_its_own_arguments() -> None:
    taken: list[Any] = []
    few = Variant("few.so", "op", (0, 2, 3), 16)
    many = Variant("many.so", "op", (0, 2), None)
    call = dispatch(
        1, [(few, lambda *x: taken.append(("few", len(x)))), (many, lambda *x: taken.append(("many", len(x))))]
    )
    for rows in (16, 17):
        call(torch.ones(1, rows), None, None, None)
    assert taken == [("few", 3), ("many", 2)]


class Layers(nn.Module):
    """Two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(24, 24), nn.Linear(24, 12)

    def forward(self, x: Tensor) -> Tensor:
        return torch.softmax(self.second(torch.relu(self.first(x))), -1)


@pytest.fixture(scope="module")
def executable(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Layers compiled for a GPU; their kernels are files that hold nothing."""
    needs_nvcc()
    folder = tmp_path_factory.mktemp("fakes")

    def build(op: str, problem: Problem, tiling: Any, arch: str) -> Artefact:
        place = folder / f"{op}_{tiling.variant}"
        place.mkdir(exist_ok=True)
        (place / "kernel.so").write_bytes(b"kernel")
        return dataclasses.replace(fake_build(op, problem, tiling, arch), path=place / "kernel.so")

    torch.manual_seed(0)
    found = regraft.optimize(
        Layers().eval(),
        ["low-rank{keep=0.6,targets=[first]}"],
        example_inputs=(torch.randn(2, 20, 24),),
        progress=False,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_compile_cuda, "build", build)
        return found.compile("tvm", target="cuda", arch="sm_80")


def needs_nvcc() -> None:
    try:
        find_nvcc()
    except MissingExtraError as error:
        pytest.skip(str(error))


no_driver = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


@no_driver
def test_without_a_gpu_it_compiles_says_that_it_was_not_run_and_runs_nothing(executable: Any) -> None:
    assert (executable.target, executable.arch, executable.verified) == ("cuda", "sm_80", False)
    with pytest.raises(
        BackendError, match=r"Layers is compiled for GPUs \(sm_80\); running it needs one; there is none"
    ):
        executable(torch.randn(2, 3, 24))


@no_driver
def test_it_is_saved_as_one_file_which_needs_a_driver(executable: Any, tmp_path: Path) -> None:
    path = executable.save(tmp_path / "model.so")
    assert [item.name for item in tmp_path.iterdir()] == ["model.so"]
    assert read_contents(path) == executable.contents
    assert path.read_bytes() == executable.contents.packed()
    with pytest.raises(BackendError) as caught:
        load(path)
    text = "is compiled for GPUs (sm_80); running it needs an NVIDIA driver (libcuda.so.1); there is none"
    assert str(caught.value) == f"{path}: {text}"


def test_the_file_has_both_kernels_and_the_device_code_of_the_source_that_tvm_compiles(executable: Any) -> None:
    contents = executable.contents
    ((symbol, (axis, variants)),) = contents.symbols.items()
    assert axis == 0
    assert [(one.file, one.entry, one.most_rows) for one in variants] == [
        ("kernels/lowrank_linear_decode.so", "lowrank_linear", 16),
        ("kernels/lowrank_linear_fused.so", "lowrank_linear", None),
    ]
    assert symbol.encode() in contents.program  # which calls it by this name
    assert set(contents.files) == {one.file for one in variants}
    (code,) = contents.device.values()
    assert code.startswith(b"\x7fELF")
    assert b'extern "C" __global__' in contents.program


def test_an_archive_of_others_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.so"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model.so", b"")
    with pytest.raises(ModelFileError, match=r"other.so: is no archive that Regraft saved"):
        load(path)


def test_architectures_are_asked_for_and_checked() -> None:
    graph = capture(nn.Linear(3, 2), (torch.ones(2, 3),))
    with pytest.raises(OptionError, match="target 'cuda' needs arch='sm_80' or arch='sm_90a'; got 'sm_75'"):
        compile_graph(graph, "tvm", "cuda", arch="sm_75")
    if not torch.cuda.is_available():
        text = "tvm backend: target 'cuda' needs arch='sm_80' or arch='sm_90a' where no GPU can be asked; there is none"
        with pytest.raises(BackendError, match=text):
            compile_graph(graph, "tvm", "cuda")


@no_driver
@pytest.mark.slow
@pytest.mark.kernels
def test_a_built_kernel_says_in_one_line_that_there_is_no_device() -> None:
    sizes = {"in_features": 64, "rank": 16, "out_features": 64}
    artefact = built_or_skipped("lowrank_linear", Problem("float32", sizes, {"bias": 0}, rows=1), "sm_80")
    shapes = [[4 if isinstance(dim, str) else dim for dim in item.dims] for item in artefact.arguments]
    tensors = [
        torch.zeros(*shape) if item.present else None for item, shape in zip(artefact.arguments, shapes, strict=True)
    ]
    with pytest.raises(BackendError, match=r"^cuda kernel lowrank_linear: no CUDA device: "):
        launch(artefact, tensors, [4])


@no_driver
@pytest.mark.slow
@pytest.mark.kernels
def test_a_bert_with_factors_compiles_for_a_gpu_that_is_not_here(tmp_path: Path) -> None:
    needs_nvcc()
    passes = ["low-rank{keep=0.7,targets=[*.query;*.intermediate.*]}"]
    found = regraft.optimize(library_model("bert"), passes, example_inputs=library_example("bert"), progress=False)
    executable = found.compile("tvm", target="cuda", arch="sm_80")
    entries = {one.entry for _, variants in executable.contents.symbols.values() for one in variants}
    assert entries == {"lowrank_linear", "multi_head_attention"}
    path = executable.save(tmp_path / "bert.so")
    assert all(symbol.encode() in executable.contents.program for symbol in executable.contents.symbols)
    with pytest.raises(BackendError, match="running it needs an NVIDIA driver"):
        load(path)
