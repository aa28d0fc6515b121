"""Whole models in code that TVM compiled, at other sizes than they were captured with; saving; what is refused."""

import os
import subprocess
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.helper as oh
import pytest
import torch
from tiny_transformers import library_example, library_model
from torch import Tensor, nn

import regraft
from regraft.backends import compile_graph
from regraft.backends.tvm import _compat, describe, load
from regraft.errors import (
    BackendError,
    InputError,
    MissingExtraError,
    ModelFileError,
    ModelNotFoundError,
    OptionError,
    OutputError,
    UnknownNameError,
    VerificationError,
)
from regraft.frontends.torch import capture

SIZES = [(2, 7), (1, 3), (3, 11), (1, 1)]
PASSES = [
    "low-rank{keep=0.7,targets=[*.query;*.intermediate.*]}",
    "llm-int8{small=true,targets=[*.value;*.layer.0.output.*]}",
]


@lru_cache(maxsize=1)
def optimized() -> Any:
    return regraft.optimize(library_model("bert"), PASSES, example_inputs=library_example("bert"), progress=False)


@pytest.fixture(scope="module")
def from_torch() -> Any:
    return optimized().compile("tvm", "llvm")


@pytest.fixture(scope="module")
def from_onnx(tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = optimized().export(tmp_path_factory.mktemp("bert") / "bert.onnx")
    return regraft.load(path).compile("tvm", "cpu")


@pytest.fixture(params=["from_torch", "from_onnx"])
def executable(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(request.param)


def error(got: Tensor, wanted: Tensor) -> float:
    return float((got - wanted).norm() / wanted.norm())


@pytest.mark.parametrize(("batch", "sequence"), SIZES)
def test_a_rewritten_bert_equals_torch_at_any_size(executable: Any, batch: int, sequence: int) -> None:
    inputs = library_example("bert", batch, sequence)
    wanted = optimized()(*inputs)
    found = executable(*inputs)
    for got, exact in zip(found, (wanted[0], wanted[1]) if isinstance(wanted, tuple) else wanted.values(), strict=True):
        assert error(got, exact.detach()) <= 1e-3


def test_numpy_in_gives_numpy_out_and_names_work(from_torch: Any) -> None:
    ids, seen = library_example("bert", 2, 5)
    by_place = from_torch(ids, seen)
    by_name = from_torch(attention_mask=seen.numpy(), input_ids=ids.numpy())
    assert isinstance(by_name[0], np.ndarray)
    assert isinstance(by_place[0], Tensor)
    np.testing.assert_array_equal(by_name[0], by_place[0].numpy())


def test_an_executable_says_what_it_is(from_torch: Any) -> None:
    assert (from_torch.backend, from_torch.target) == ("tvm", "llvm")
    assert [value.name for value in from_torch.inputs] == ["input_ids", "attention_mask"]
    assert str(from_torch.inputs[0].type) == "int64[batch, sequence]"
    assert [str(value.type) for value in from_torch.outputs] == ["float32[batch, sequence, 24]", "float32[batch, 24]"]


def test_strided_inputs_are_read_in_their_order(from_torch: Any) -> None:
    ids, seen = library_example("bert", 2, 6)
    strided = ids.t().contiguous().t()
    assert not strided.is_contiguous()
    torch.testing.assert_close(from_torch(strided, seen)[0], from_torch(ids, seen)[0], atol=0, rtol=0)


def test_wrong_inputs_are_refused_by_name(from_torch: Any) -> None:
    ids, seen = library_example("bert", 2, 5)
    with pytest.raises(InputError, match=r"input 'input_ids' needs int64 \[batch, sequence\], got int32 \[2, 5\]"):
        from_torch(ids.int(), seen)
    with pytest.raises(InputError, match=r"input 'attention_mask' needs .*: sequence is 5 in 'input_ids'"):
        from_torch(ids, seen[:, :4])
    with pytest.raises(InputError, match="the model has no input 'mask'; it has: input_ids, attention_mask"):
        from_torch(ids, mask=seen)
    with pytest.raises(InputError, match="input 'attention_mask' needs .*, it was not given"):
        from_torch(ids)
    with pytest.raises(InputError, match="input 'input_ids' is given by position and by name; once is needed"):
        from_torch(ids, input_ids=ids)
    with pytest.raises(InputError, match=r"the model takes 2 inputs .*; got 3"):
        from_torch(ids, seen, seen)
    with pytest.raises(InputError, match=r"input 'input_ids' needs .*, got list"):
        from_torch(ids.tolist(), seen)
    with pytest.raises(InputError, match="compiled code takes no empty inputs"):
        from_torch(ids[:0], seen[:0])


def test_a_sequence_beyond_the_table_of_positions_is_refused(from_torch: Any) -> None:
    ids, seen = library_example("bert", 1, 513)
    with pytest.raises(InputError, match="input 'input_ids' has sequence 513; it can be at most 512 in this model"):
        from_torch(ids, seen)


def test_a_token_outside_its_table_reads_nan_and_never_other_memory(from_torch: Any) -> None:
    ids, seen = library_example("bert", 1, 4)
    ids[0, 0] = 10**9
    assert from_torch(ids, seen)[0].isnan().any()


@pytest.fixture(scope="module")
def saved(from_torch: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return from_torch.save(tmp_path_factory.mktemp("library") / "model.so")


def test_a_saved_library_computes_the_same(from_torch: Any, saved: Path) -> None:
    ids, seen = library_example("bert", 2, 5)
    library = load(saved)
    for got, wanted in zip(library(ids, seen), from_torch(ids, seen), strict=True):
        torch.testing.assert_close(got, wanted, atol=0, rtol=0)
    assert [str(port.type) for port in library.inputs] == ["int64[batch, sequence]", "int64[batch_2, sequence]"]
    assert [path.name for path in saved.parent.iterdir()] == ["model.so"]


WITHOUT = """
import ctypes, importlib.abc, sys
import numpy as np

class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "onnx", "onnx_ir", "onnxruntime") or name.startswith("tvm.relax"):
            raise ImportError(f"{name} is hidden")

class Library(ctypes.CDLL):
    def __init__(self, name, *args, **kwargs):
        if "tvm_compiler" in str(name):
            raise OSError("the compiler is hidden")
        super().__init__(name, *args, **kwargs)

sys.meta_path.insert(0, Refuse())
ctypes.CDLL = Library
from regraft.backends.tvm import load

library = load(sys.argv[1])
ids, seen = np.load(sys.argv[2]).values()
np.savez(sys.argv[3], *library(ids, seen))
assert not {"torch", "tvm.relax"} & set(sys.modules)
"""


def test_a_saved_library_runs_where_there_is_neither_torch_nor_a_compiler(
    from_torch: Any, saved: Path, tmp_path: Path
) -> None:
    ids, seen = library_example("bert", 3, 4)
    np.savez(tmp_path / "in.npz", ids.numpy(), seen.numpy())
    arguments = [str(saved), str(tmp_path / "in.npz"), str(tmp_path / "out.npz")]
    done = subprocess.run([sys.executable, "-c", WITHOUT, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for got, wanted in zip(np.load(tmp_path / "out.npz").values(), from_torch(ids, seen), strict=True):
        np.testing.assert_array_equal(got, wanted.numpy())


def test_what_is_no_library_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"nothing\.so: there is no such file"):
        load(tmp_path / "nothing.so")
    (tmp_path / "text.so").write_text("no library")
    with pytest.raises(ModelFileError, match=r"text\.so: is no library that TVM can load"):
        load(tmp_path / "text.so")


def test_saving_where_nothing_can_be_written_says_so(from_torch: Any, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="the folder .* does not exist"):
        from_torch.save(tmp_path / "none" / "model.so")


def test_saving_without_a_linker_says_what_is_needed(
    from_torch: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(os.environ, "PATH", str(tmp_path))
    with pytest.raises(BackendError, match=r"tvm backend: saving a library needs a C\+\+ compiler to link it"):
        from_torch.save(tmp_path / "model.so")
    assert not list(tmp_path.iterdir())


class Bessel(nn.Module):
    """Two operators that TVM's importer has not."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.special.bessel_j0(x) + torch.special.i1(x)


def test_operators_that_tvm_lacks_are_named_together_before_anything_is_compiled() -> None:
    graph = capture(Bessel(), (torch.ones(2, 3),))
    with pytest.raises(BackendError) as caught:
        compile_graph(graph, "tvm", "llvm")
    named = "aten.special_bessel_j0.default, aten.special_i1.default"
    assert str(caught.value) == f"tvm backend: Bessel has operators that TVM cannot take: {named}"


def test_onnx_operators_without_translation_are_named_together() -> None:
    x, y = (oh.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n", 4]) for name in "xy")
    nodes = [oh.make_node("Det", ["x"], ["d"]), oh.make_node("Strange", ["x"], ["y"], domain="other")]
    opsets = [oh.make_opsetid("", 18), oh.make_opsetid("other", 1)]
    model = oh.make_model(oh.make_graph(nodes, "odd", [x], [y]), opset_imports=opsets)
    with pytest.raises(BackendError, match="tvm backend: odd has operators that it cannot take: Det, other::Strange"):
        compile_graph(regraft.load(model).graph, "tvm", "llvm")


def test_targets_are_those_of_this_backend() -> None:
    graph = capture(nn.Linear(3, 2), (torch.ones(2, 3),))
    with pytest.raises(OptionError, match="tvm backend: arch='sm_80' is of target 'cuda'; got target 'llvm'"):
        compile_graph(graph, "tvm", "llvm", arch="sm_80")
    with pytest.raises(UnknownNameError, match="tvm backend: target must be one of cpu, llvm, cuda; got 'tpu'"):
        compile_graph(graph, "tvm", "tpu")
    with pytest.raises(UnknownNameError, match="torch backend: target must be one of cpu, cuda; got 'llvm'"):
        compile_graph(graph, "torch", "llvm")


def test_element_types_that_are_not_compiled_are_refused() -> None:
    graph = capture(nn.Identity(), (torch.ones(2, 3, dtype=torch.complex64),))
    with pytest.raises(BackendError, match=r"tvm backend: input 'input' must be a tensor of .*; it is complex64\["):
        compile_graph(graph, "tvm", "llvm")


def test_code_that_computes_something_else_is_not_handed_out(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = capture(nn.Linear(3, 2), (torch.ones(2, 3),))
    run = type(graph).run
    monkeypatch.setattr(type(graph), "run", lambda self, inputs: ((run(self, inputs)[0][0] + 1,), {}))
    with pytest.raises(VerificationError, match=r"tvm backend: output 'linear' of Linear is off by .* of its size"):
        compile_graph(graph, "tvm", "llvm")


@pytest.mark.parametrize(("layers", "allowed"), [(1, "0.001"), (2, "0.1")])
def test_what_several_layers_round_may_differ_by_their_steps_alone(
    layers: int, allowed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = nn.Sequential(*(nn.Linear(8, 8) for _ in range(layers)))
    passes = ["llm-int8{small=true,heads=true}"]
    rounded = regraft.optimize(model, passes, example_inputs=(torch.randn(4, 8),), progress=False, strict=False)
    run = type(rounded.graph).run
    monkeypatch.setattr(type(rounded.graph), "run", lambda self, inputs: ((run(self, inputs)[0][0] * 1.2,), {}))
    with pytest.raises(VerificationError, match=rf"is off by .* of its size; at most {allowed} is allowed"):
        rounded.compile("tvm", "llvm")


def test_an_infinite_result_in_the_place_of_a_finite_one_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = capture(nn.Linear(3, 2), (torch.ones(2, 3),))
    run = type(graph).run
    monkeypatch.setattr(type(graph), "run", lambda self, inputs: ((run(self, inputs)[0][0] / 0,), {}))
    with pytest.raises(VerificationError, match="is off by inf of its size"):
        compile_graph(graph, "tvm", "llvm")


def test_a_missing_extra_is_named_with_the_line_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        raise _compat.PackageNotFoundError(name)

    monkeypatch.setattr(_compat, "version", version)
    graph = capture(nn.Linear(3, 2), (torch.ones(2, 3),))
    needed = "needs apache-tvm 0.25.0.post1, apache-tvm-ffi 0.1.12; apache-tvm is not installed"
    with pytest.raises(MissingExtraError, match=f"tvm backend: {needed}") as caught:
        compile_graph(graph, "tvm", "llvm")
    assert caught.value.hint == "pip install 'regraft[tvm]'"
    assert describe() == needed


def test_another_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_compat, "version", lambda name: "0.27.0")
    with pytest.raises(MissingExtraError, match="needs apache-tvm 0.25.0.post1, .*; apache-tvm is 0.27.0"):
        load("model.so")


def test_tvm_and_its_tile_language_do_not_share_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tilelang", sys)
    with pytest.raises(MissingExtraError, match="TVM cannot share a process with tilelang"):
        _compat.module("tvm")


HIDDEN = """
import sys

sys.modules.update(dict.fromkeys(["tvm", "tvm_ffi", "tilelang"]))  # as if they were not installed
import torch, regraft.api, regraft.cli
from regraft.backends import compile_graph
import regraft.backends.tvm
from regraft.frontends.torch import capture
print(compile_graph(capture(torch.nn.Linear(3, 2), (torch.ones(2, 3),)), "torch").backend)
"""


def test_everything_else_works_where_tvm_cannot_be_imported() -> None:
    done = subprocess.run([sys.executable, "-c", HIDDEN], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "torch\n"), done.stderr


def test_doctor_compiles_one_kernel() -> None:
    assert describe() == "0.25.0.post1; compiles for the CPU"
