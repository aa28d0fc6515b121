"""From a graph to compiled code: exported, imported into Relax, compiled by LLVM, and run once beside the original."""

import os
import shutil
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.utils._pytree import tree_leaves

from regraft._files import write_atomic
from regraft.backends._again import first_line
from regraft.backends._executable import Executable
from regraft.backends._signature import inputs_of, outputs_of
from regraft.backends.tvm._compat import module
from regraft.backends.tvm._decompose import program_of
from regraft.backends.tvm._extents import limits_of
from regraft.backends.tvm._importer import Importer
from regraft.backends.tvm._kernel_calls import library_of
from regraft.backends.tvm._library import CPU, PORTS, Library, started
from regraft.backends.tvm._maker import CpuMaker, Maker
from regraft.backends.tvm._onnx import program_of_onnx
from regraft.backends.tvm._ports import Port, Ports, PortType
from regraft.backends.tvm._schedule import pipeline
from regraft.backends.tvm.kernels.cpu._host import Host, host_of
from regraft.errors import BackendError, VerificationError
from regraft.frontends.onnx import OnnxGraph
from regraft.frontends.torch import FxGraph
from regraft.graph import Graph, Node
from regraft.graph.snapshot import SnapshotValue
from regraft.ops import all_ops
from regraft.passes import FuseAttention, Settings, run_passes

TOLERANCE: Final = 1e-3
"""Largest ‖y - ŷ‖ / ‖y‖ of an output beside the original: a step of an 8-bit activation may fall to the other side."""
DEEP_TOLERANCE: Final = 0.1
"""The same where several layers round activations: from layer to layer a difference grows to the size of their steps.

MiniLM in 8 bits moves by 0.03 when its embeddings are multiplied by 1 + 1e-6.
"""
_ROUNDING: Final = frozenset({"aten.round.default", "DynamicQuantizeLinear", "QuantizeLinear", "Round"})

_TYPES: Final = frozenset(
    {"float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool"}
)


@dataclass(frozen=True, eq=False)
class TvmExecutable:
    """`Executable` over compiled code. Torch tensors in give torch tensors out, numpy arrays give arrays.

    Attributes:
        verified: whether it was run beside the original.
    """

    library: Library
    code: Any
    target: str
    inputs: Sequence[SnapshotValue]
    outputs: Sequence[SnapshotValue]
    backend: str = "tvm"
    verified: bool = True

    def __call__(self, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """Return the outputs in order; errors as in `Library`."""
        return self.library(*args, **kwargs)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the compiled model as one shared library, which `regraft.backends.tvm.load` runs.

        It runs on processors of this kind, with numpy, apache-tvm and apache-tvm-ffi, without torch or a compiler.

        Args:
            path: where to (model.so); the file appears whole or not at all.

        Returns:
            The path.

        Raises:
            OutputError: when the path cannot be written.
            BackendError: when there is no C++ compiler that links it.
        """
        if not any(map(shutil.which, ("g++", "gcc", "clang++", "clang", "c++", "cc"))):
            raise BackendError("tvm backend: saving a library needs a C++ compiler to link it; there is none on PATH")
        with tempfile.TemporaryDirectory() as folder:
            linked = Path(folder) / "model.so"
            self.code.export_library(str(linked))
            write_atomic(path, linked.read_bytes())
        return Path(path)


def compile_for_cpu(graph: Graph, target: str, mcpu: str | None = None) -> TvmExecutable:
    """Return an executable; see `regraft.backends.tvm.compile`."""
    inputs, outputs = ports_of(inputs_of(graph), "input"), ports_of(outputs_of(graph), "output")
    host = host_of(mcpu)
    program, example = program_for(fused(graph), CpuMaker(host))
    ports = Ports(inputs, outputs, limits_of(program, inputs))
    importer = Importer()
    importer.check(program, graph.name)
    code = built(graph.name, importer, program, ports, host, host.target, pipeline(host))
    executable = TvmExecutable(started(code.jit(), graph.name), code, target, inputs_of(graph), outputs_of(graph))
    verify(graph, executable, example)
    return executable


def fused(graph: Graph) -> Graph:
    """Return the graph with every attention that is recognized as one node; each was checked."""
    return run_passes(graph, [FuseAttention()], Settings(strict=False))[0]


def program_for(graph: Graph, maker: Maker) -> tuple[ExportedProgram, Sequence[Tensor]]:
    """Return the program in core operators, and inputs that it can be tried with."""
    if isinstance(graph, OnnxGraph):
        return program_of_onnx(graph, maker)
    assert isinstance(graph, FxGraph)
    return program_of(graph, maker), [leaf for leaf in tree_leaves(graph.example_inputs) if isinstance(leaf, Tensor)]


def ports_of(values: Sequence[SnapshotValue], side: str) -> tuple[Port, ...]:
    """Return inputs or outputs as a library knows them; raises BackendError for an element type that it has not."""
    return tuple(_port(value, side) for value in values)


def _port(value: SnapshotValue, side: str) -> Port:
    dtype, shape = value.type.dtype, value.type.shape
    if dtype not in _TYPES:
        listed = ", ".join(sorted(_TYPES))
        raise BackendError(f"tvm backend: {side} {value.name!r} must be a tensor of {listed}; it is {value.type}")
    return Port(value.name, PortType(dtype, tuple(shape or ())))


def built(
    name: str, importer: Importer, program: ExportedProgram, ports: Ports, host: Host, target: Any, passes: Any
) -> Any:
    """Return what TVM compiles a program to; raises BackendError when it cannot."""
    relax = module("tvm.relax")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of TVM's own use of deprecated names
            imported = importer.from_exported_program(program, False, False, False, None)
            imported[PORTS], imported[CPU] = _says(PORTS, ports.to_text()), _says(CPU, host.needs)
            if importer.kernels:
                imported = imported.with_attr("external_mods", [library_of(importer.kernels, host)])
            return relax.build(imported, target, relax_pipeline=passes)
    except BackendError:
        raise
    except (RuntimeError, ValueError, TypeError, AssertionError, NotImplementedError, KeyError) as error:
        raise BackendError(f"tvm backend: {name} cannot be compiled: {first_line(error)}") from error


def _says(name: str, text: str) -> Any:
    """A function without parameters that returns a text."""
    relax = module("tvm.relax")
    builder = relax.BlockBuilder()
    with builder.function(name, []):
        builder.emit_func_output(builder.emit(relax.StringImm(text)))
    return builder.get()[name]


def verify(graph: Graph, executable: Executable, example: Sequence[Tensor]) -> None:
    """Raise VerificationError unless the compiled code computes what the graph does."""
    allowed = DEEP_TOLERANCE if sum(map(_rounds, graph.nodes())) > 1 else TOLERANCE
    wanted, _ = graph.run(list(example))
    found = executable(*example)
    for value, exact, result in zip(executable.outputs, wanted, found, strict=True):
        error = _distance(result.to(torch.float64), exact.to(torch.float64))
        if not error <= allowed:
            where = f"tvm backend: output {value.name!r} of {graph.name}"
            raise VerificationError(f"{where} is off by {error:.2g} of its size; at most {allowed:g} is allowed")


def _rounds(node: Node) -> bool:
    """Whether a layer rounds its activations."""
    if node.op in all_ops():
        return node.op.startswith("int8_") or bool(node.attributes.get("activations", 0))
    return node.native in _ROUNDING


def _distance(result: Tensor, exact: Tensor) -> float:
    """‖y - ŷ‖ / ‖y‖ of the finite numbers; infinite when what is infinite or no number lies elsewhere."""
    infinite = exact.isinf()
    if not (torch.equal(result.isnan(), exact.isnan()) and torch.equal(result[infinite], exact[infinite])):
        return float("inf")
    y, found = exact[exact.isfinite()], result[exact.isfinite()]
    return float((found - y).norm() / y.norm().clamp_min(1e-30))
