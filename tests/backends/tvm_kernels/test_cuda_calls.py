"""Calls of CUDA kernels from a captured program, without a GPU: the interpreter of templates stands for it."""

from functools import lru_cache
from typing import Any

import pytest
import torch
from fake_gpu import FakeGpu, fake_build
from torch import Tensor, nn

import regraft
from regraft.backends import compile_graph
from regraft.backends.tvm import _cuda
from regraft.backends.tvm._composed import COMPOSITIONS
from regraft.backends.tvm._cuda import CudaMaker, Gpu, arch_of
from regraft.backends.tvm._maker import Varying
from regraft.backends.tvm._torch import with_kernels
from regraft.backends.tvm.kernels._kernel import Problem
from regraft.backends.tvm.kernels._registry import all_kernels
from regraft.errors import BackendError, InputError, VerificationError
from regraft.frontends.torch import capture
from regraft.frontends.torch.library import torch_op
from regraft.ops import Example, Op, all_ops, evaluate, get_op

CASES = [(op, example) for op in all_ops().values() for example in op.examples]
CASES = [(op, example) for op, example in CASES if op.name in {*all_kernels(), *COMPOSITIONS}]
ONE_STEP = "computes one step a row (per_row=1), not one for all of x"
MAY_VARY = ("x", "q", "k", "v", "context", "mask", "bias", "residual")


class OneOp(nn.Module):
    """An op whose activations are inputs, and whose weights are its own."""

    def __init__(self, op: Op, example: Example, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.op, self.attributes = op, dict(example.attributes or {})
        self.tensors = example.tensors(dtype)
        self.given = [name for name in self.tensors if name in MAY_VARY and not self.is_vector(name)]
        for name, tensor in self.tensors.items():
            if name not in self.given:
                self.register_buffer(f"own_{name}", tensor)

    def is_vector(self, name: str) -> bool:
        return name == "bias" and self.tensors[name].dim() == 1

    @property
    def example_inputs(self) -> tuple[Tensor, ...]:
        return tuple(self.tensors[name] for name in self.given)

    def forward(self, *given: Tensor) -> Tensor:
        found = dict(zip(self.given, given, strict=True))
        own = {name: getattr(self, f"own_{name}") for name in self.tensors if name not in found}
        operands = [{**found, **own}.get(operand.name) for operand in self.op.operands]
        return torch_op(self.op.name)(*operands, **self.attributes)


def kernels_of(op: Op, example: Example, gpu: FakeGpu, dtype: torch.dtype = torch.float32):
    module = OneOp(op, example, dtype)
    graph = capture(module, module.example_inputs, dynamic_shapes=None)
    return module, *with_kernels(graph, gpu.gpu())


def one_step_for_all(example: Example) -> bool:
    attributes = example.attributes or {}
    return attributes.get("per_row") == 0 or attributes.get("activations") == 1


def made_of(op: Op, example: Example, gpu: FakeGpu) -> tuple[Any, list[Tensor]]:
    """The kernels of an example and its activations, or why there are none."""
    module = OneOp(op, example)
    varying = {name: module.tensors[name] for name in module.given}
    constants = {name: x for name, x in module.tensors.items() if name not in varying}
    types = {name: Varying(x.dtype, tuple(x.shape), tuple(x.shape)) for name, x in varying.items()}
    maker = CudaMaker(gpu.gpu())
    if op.name in COMPOSITIONS:
        return COMPOSITIONS[op.name].make(constants, types, module.attributes, maker), list(varying.values())
    return maker.make(op.name, constants, types, module.attributes), list(varying.values())


@pytest.mark.parametrize(("op", "example"), CASES, ids=[f"{op.name}: {example.name}" for op, example in CASES])
def test_every_example_runs_on_its_kernels_or_says_why_not(op: Op, example: Example) -> None:
    gpu = FakeGpu()
    made, activations = made_of(op, example, gpu)
    if one_step_for_all(example):
        assert made == ONE_STEP or made.startswith("activations must be one of 0, 2")
        return
    found = made(*activations)
    assert gpu.launched
    exact = {name: x.double() if x.is_floating_point() else x for name, x in example.tensors(torch.float32).items()}
    attributes = dict(example.attributes or {})
    oracle = evaluate(op, exact, attributes)
    rounds = op.name.startswith("int8") or attributes.get("activations", 0) != 0
    assert (found.shape, found.dtype) == (oracle.shape, torch.float32)
    error = (found.double() - oracle).abs().max() / oracle.abs().max().clamp_min(1e-30)
    assert error < (3e-2 if rounds else 2e-5)


@pytest.mark.parametrize("name", sorted({op.name for op, _ in CASES}))
def test_an_op_in_a_program_runs_on_its_kernels(name: str) -> None:
    op, gpu = get_op(name), FakeGpu()
    example = next(one for one in op.examples if not one_step_for_all(one))
    _, program, (use,) = kernels_of(op, example, gpu)
    assert (use.kernel, use.reason) == ("tvm", "")
    assert "regraft_kernels.run" in str(program.graph)
    assert gpu.launched  # once, to check it


class Layers(nn.Module):
    """Two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(24, 24), nn.Linear(24, 12)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(x)))


@lru_cache(maxsize=1)
def optimized() -> Any:
    torch.manual_seed(0)
    passes = ["low-rank{keep=0.6,targets=[first]}", "monarch{targets=[second],slower=true}"]
    return regraft.optimize(Layers().eval(), passes, example_inputs=(torch.randn(2, 20, 24),), progress=False)


@pytest.mark.parametrize(
    ("rows", "variants"),
    [
        ((1, 1), ["decode", "decode"]),
        ((2, 8), ["decode", "decode"]),
        ((1, 17), ["fused", "rows"]),
        ((3, 40), ["fused", "rows"]),
    ],
)
def test_few_rows_run_on_the_variant_for_few_rows(rows: tuple[int, int], variants: list[str]) -> None:
    gpu = FakeGpu()
    program, _ = with_kernels(optimized().graph, gpu.gpu())
    gpu.launched.clear()
    x = torch.randn(*rows, 24)
    with torch.no_grad():
        torch.testing.assert_close(program(x), optimized()(x), atol=1e-5, rtol=1e-5)
    assert [variant for _, variant, _ in gpu.launched] == variants
    assert {count for _, _, count in gpu.launched} == {rows[0] * rows[1]}


def test_no_rows_launch_nothing() -> None:
    gpu = FakeGpu()
    program, _ = with_kernels(optimized().graph, gpu.gpu())
    gpu.launched.clear()
    assert program(torch.randn(0, 4, 24)).shape == (0, 4, 12)
    assert gpu.launched == []


def test_torch_compile_takes_the_module_whole() -> None:
    program, _ = with_kernels(optimized().graph, FakeGpu().gpu())
    module = torch.compile(program, fullgraph=True, backend="aot_eager")
    x = torch.randn(2, 19, 24)
    with torch.no_grad():
        torch.testing.assert_close(module(x), program(x), atol=1e-6, rtol=1e-6)


def test_weights_that_only_kernels_read_are_not_kept_twice_and_the_models_own_stay() -> None:
    module = optimized().graph.module
    before = {name: tensor.data_ptr() for name, tensor in module.state_dict().items()}
    program, _ = with_kernels(optimized().graph, FakeGpu().gpu())
    assert not [name for name, _ in program.named_parameters() if name.startswith(("first", "second"))]
    assert {name: tensor.data_ptr() for name, tensor in module.state_dict().items()} == before


def test_example_inputs_of_few_rows_choose_the_tiles_for_few_rows() -> None:
    kernel = all_kernels()["lowrank_linear"]
    sizes = {"in_features": 64, "rank": 16, "out_features": 64}
    few, many = _cuda.tilings(kernel, Problem("float16", sizes, rows=8), "sm_80")
    assert (few.variant, few.tiles["rows"], many.variant) == ("decode", 8, "fused")
    few, many = _cuda.tilings(kernel, Problem("float16", sizes, rows=9000), "sm_80")
    assert (few.tiles["rows"], many.tiles["rows"]) == (4, 128)


def test_attention_of_few_queries_is_built_once() -> None:
    sizes = {"heads": 2, "kv_heads": 2, "head": 16, "value": 16}
    found = _cuda.tilings(all_kernels()["multi_head_attention"], Problem("float16", sizes, {"scale": 1.0}, 4), "sm_80")
    assert len(found) == 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_halves_run_on_kernels(dtype: torch.dtype) -> None:
    op = get_op("lowrank_linear")
    _, _, (use,) = kernels_of(op, op.examples[0], FakeGpu(), dtype)
    assert use.kernel == "tvm"


@pytest.mark.parametrize("name", ["lowrank_linear", "lowrank_attention"])
def test_another_element_type_keeps_the_composite_form_and_says_so(name: str) -> None:
    op = get_op(name)
    _, program, (use,) = kernels_of(op, op.examples[0], FakeGpu(), torch.float64)
    assert use.kernel is None
    assert use.reason.startswith("dtype must be one of float16, bfloat16, float32")
    assert use.reason.endswith("; got 'float64'")
    assert "regraft_kernels" not in str(program.graph)


def test_outliers_that_are_no_columns_are_refused() -> None:
    op = get_op("int8_outlier_linear")
    (example,) = [one for one in op.examples if (one.attributes or {}).get("per_row") == 1][:1]
    tensors = example.tensors(torch.float32)
    tensors["outliers"] = torch.full_like(tensors["outliers"], tensors["weight"].shape[1])
    shapes = {"x": Varying(torch.float32, tuple(tensors["x"].shape), tuple(tensors["x"].shape))}
    constants = {name: tensor for name, tensor in tensors.items() if name != "x"}
    made = CudaMaker(FakeGpu().gpu()).make(op.name, constants, shapes, dict(example.attributes or {}))
    assert made == f"outliers must be places from 0 to {tensors['weight'].shape[1] - 1}"


def test_a_weight_of_another_element_type_is_refused() -> None:
    op = get_op("lowrank_linear")
    tensors = op.examples[0].tensors(torch.float32)
    x = tensors.pop("x")
    shapes = {"x": Varying(torch.float16, tuple(x.shape), tuple(x.shape))}
    found = CudaMaker(FakeGpu().gpu()).make(op.name, tensors, shapes, {})
    assert found == "down must be float16; it is float32"


def test_activations_that_do_not_fit_are_refused_when_they_come() -> None:
    op = get_op("lowrank_linear")
    tensors = op.examples[0].tensors(torch.float32)
    x = tensors.pop("x")
    shapes = {"x": Varying(torch.float32, tuple(x.shape), tuple(x.shape))}
    made = CudaMaker(FakeGpu().gpu()).make(op.name, tensors, shapes, {})
    width = x.shape[-1]
    text = rf"cuda kernel lowrank_linear: x must be float32 that can be seen as \[rows, {width}\]; got float32 \[2, 3\]"
    with pytest.raises(InputError, match=text):
        made(torch.ones(2, 3))
    with pytest.raises(InputError, match=r"got float16 \["):
        made(x.half())


def test_strided_activations_are_copied_in_order() -> None:
    op = get_op("lowrank_linear")
    module, program, _ = kernels_of(op, op.examples[0], FakeGpu())
    x = module.tensors["x"]
    strided = torch.empty(*x.shape[:-1], 2 * x.shape[-1])[..., ::2].copy_(x)
    with torch.no_grad():
        torch.testing.assert_close(program(strided), program(x))


def test_a_kernel_that_computes_something_else_is_not_handed_out() -> None:
    gpu = FakeGpu()
    wrong = Gpu(torch.device("cpu"), "sm_80", fake_build, lambda artefact, tensors, extents: tensors[4].fill_(1.0))
    with pytest.raises(VerificationError, match="tvm kernel lowrank_linear: first of Layers is off by"):
        with_kernels(optimized().graph, wrong)
    assert gpu.launched == []


@pytest.mark.parametrize(
    ("capability", "arch"), [((8, 0), "sm_80"), ((8, 6), "sm_80"), ((8, 9), "sm_80"), ((9, 0), "sm_90a")]
)
def test_the_architecture_is_that_of_the_gpu(capability: tuple[int, int], arch: str) -> None:
    assert arch_of(capability, "some GPU") == arch


@pytest.mark.parametrize("capability", [(7, 5), (10, 0), (12, 0), (9, 1)])
def test_a_gpu_without_kernels_is_refused(capability: tuple[int, int]) -> None:
    text = rf"torch backend: kernels='tvm' needs a GPU of compute capability 8.x or 9.0; T4 has {capability[0]}"
    with pytest.raises(BackendError, match=text):
        arch_of(capability, "T4")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_is_said() -> None:
    with pytest.raises(BackendError, match="target 'cuda' needs a GPU that torch can see; there is none"):
        compile_graph(optimized().graph, "torch", "cuda", kernels="tvm")
