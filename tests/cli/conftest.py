"""A command line run in this process, and tiny models for it."""

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from regraft.cli import main


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str


Run = Callable[..., Outcome]

ZOO = '''
    """Models for the tests of the command line."""

    import torch
    from torch import nn

    ready = nn.Linear(3, 2)
    number = 3


    class Mlp(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.first = nn.Linear(32, 64)
            self.second = nn.Linear(64, 32)
            self.head = nn.Linear(32, 4)

        def forward(self, x):
            return self.head(torch.relu(self.second(torch.relu(self.first(x)))))


    def mlp():
        return Mlp()


    def mlp_with_inputs():
        return Mlp(), (torch.randn(2, 32, generator=torch.Generator().manual_seed(1)),)


    def broken():
        raise ValueError("no weights\\nfound here")


    def leaving():
        raise SystemExit("goodbye")


    def wrong():
        return 7


    def needing(size):
        return Mlp()
'''


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    """Run a command line in this process; returns its exit code and what it wrote."""

    def run_line(*arguments: object) -> Outcome:
        capfd.readouterr()
        code = main([str(argument) for argument in arguments])
        captured = capfd.readouterr()
        return Outcome(code, captured.out, captured.err)

    return run_line


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, empty."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def zoo(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of a Python module in the current folder."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    (folder / "tiny_zoo.py").write_text(dedent(ZOO))
    (folder / "broken_zoo.py").write_text("import nosuch_dependency\n")
    yield "tiny_zoo"
    for name in ("tiny_zoo", "broken_zoo"):
        sys.modules.pop(name, None)


@pytest.fixture
def onnx_file(folder: Path) -> Path:
    """A two-layer network in a file: 32 -> 64 -> 32 -> 4, batch dynamic."""
    path = folder / "mlp.onnx"
    onnx.save(mlp_proto(), path)
    return path


def mlp_proto() -> onnx.ModelProto:
    random = np.random.default_rng(0)
    nodes: list[onnx.NodeProto] = []
    tensors: list[onnx.TensorProto] = []
    value = "x"
    for name, rows, columns in (("first", 32, 64), ("second", 64, 32), ("head", 32, 4)):
        weight = random.standard_normal((rows, columns)).astype(np.float32) / np.sqrt(rows, dtype=np.float32)
        bias = random.standard_normal(columns).astype(np.float32)
        tensors += [numpy_helper.from_array(weight, f"{name}.weight"), numpy_helper.from_array(bias, f"{name}.bias")]
        nodes.append(helper.make_node("MatMul", [value, f"{name}.weight"], [f"{name}_product"], name=f"{name}_matmul"))
        nodes.append(helper.make_node("Add", [f"{name}_product", f"{name}.bias"], [f"{name}_sum"], name=f"{name}_add"))
        value = f"{name}_sum"
        if name != "head":
            nodes.append(helper.make_node("Relu", [value], [f"{name}_relu"], name=f"{name}_act"))
            value = f"{name}_relu"
    graph = helper.make_graph(
        nodes,
        "mlp",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 32])],
        [helper.make_tensor_value_info(value, TensorProto.FLOAT, ["batch", 4])],
        tensors,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
