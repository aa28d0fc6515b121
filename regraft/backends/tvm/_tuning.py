"""Kernels for the CPU as tasks to tune: random operands of given extents, each candidate checked before it is timed."""

import math
import platform
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from regraft.backends.tvm._compat import PINS
from regraft.backends.tvm.kernels.cpu import Compiled, CpuKernel, Operands, compile_kernel, cpu_kernels
from regraft.backends.tvm.kernels.cpu import _dense as dense
from regraft.backends.tvm.kernels.cpu._host import this_host, threads
from regraft.errors import InputError, RegraftError, UnknownNameError
from regraft.graph.types import TensorType, dtype_name
from regraft.ops import AttributeValue, evaluate, get_op
from regraft.tune import Config, Content, Features, Key, Machine, Measure, Measured, Space, Task, bucket

MAKER: Final = f"{__name__}:measurement"
TOLERANCE: Final = 1e-4
"""Largest ‖y - ŷ‖ / ‖y‖ of a candidate beside its op in float64; codes of 8 bits may fall to the other side."""

_INTEGER_TOLERANCE: Final = 1e-2
_SAMPLES: Final = 7
_LEAST_S: Final = 0.01
"""A sample repeats a call until it has taken so long."""

DENSE: Final = "linear"
"""The dense layer, which is no structured op."""

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class CpuTask:
    """A kernel at some extents.

    Attributes:
        op: name of the structured op, or "linear".
        shapes: of all operands, activations included, by name.
        dtypes: of all operands, by name.
        attributes: of the op.
    """

    op: str
    shapes: Shapes
    dtypes: Mapping[str, str]
    attributes: Mapping[str, AttributeValue] = field(default_factory=dict[str, AttributeValue])

    @property
    def kernel(self) -> CpuKernel:
        """The kernel that computes it.

        Raises:
            UnknownNameError: when there is none.
        """
        found = {DENSE: dense.kernel, **cpu_kernels()}
        if self.op not in found:
            raise UnknownNameError(f"tune: no CPU kernel computes {self.op!r}; there are: {', '.join(found)}")
        return found[self.op]

    @property
    def space(self) -> Space:
        """Its tile parameters."""
        return Space(dict(self.kernel.tiles))

    @property
    def task(self) -> Task:
        """What measures it in another process."""
        given = {"op": self.op, "shapes": dict(self.shapes), "dtypes": dict(self.dtypes)}
        return Task(MAKER, {**given, "attributes": dict(self.attributes)})

    @property
    def key(self) -> Key:
        """For what its times hold: extents of weights as they are, rows rounded up to a power of two.

        Layers see their input as rows, whatever its dims are; attention does not.
        """
        extents: dict[str, int] = {}
        for name, shape in self.shapes.items():
            varies = name in self.kernel.activations
            seen = (math.prod(shape[:-1]), shape[-1]) if varies and self.op != "multi_head_attention" else shape
            for axis, extent in enumerate(seen):
                rows = varies and axis < len(seen) - 1
                extents[f"{name}.{axis}"] = bucket(extent) if rows else extent
        extents |= {name: value for name, value in self.attributes.items() if isinstance(value, int)}
        return Key.of(self.op, extents, self.dtypes, **machine_fields())

    def operands(self, seed: int = 0) -> dict[str, Tensor]:
        """Return random operands: floats of a size that keeps sums near one, integers over all of their range."""
        generator = torch.Generator().manual_seed(seed)
        return {name: _drawn(self, name, generator) for name in self.shapes}

    def features(self, config: Config) -> Features:
        """Return what a cost model reads of a config."""
        types = {name: TensorType(self.dtypes[name], shape) for name, shape in self.shapes.items()}
        rows = math.prod(self.shapes[self.kernel.activations[0]][:-1])
        moved = sum(math.prod(shape) * _itemsize(self.dtypes[name]) for name, shape in self.shapes.items())
        macs = rows * math.prod(self.shapes["weight"]) if self.op == DENSE else _macs(self.op, types, self.attributes)
        chunk = int(config.get("row_chunk", 32))
        found = {"operations": 2.0 * macs, "bytes": float(moved), "tasks": float(max(1, -(-rows // chunk)))}
        return {**found, "rows": float(rows), **{name: float(value) for name, value in config.items()}}


def _macs(op: str, types: Mapping[str, TensorType], attributes: Mapping[str, AttributeValue]) -> float:
    return float(get_op(op).cost(**types, **attributes).macs)


def _itemsize(dtype: str) -> int:
    found: torch.dtype = getattr(torch, dtype)
    return found.itemsize


def _drawn(task: CpuTask, name: str, generator: torch.Generator) -> Tensor:
    shape, dtype = task.shapes[name], getattr(torch, task.dtypes[name])
    if dtype.is_floating_point:
        drawn = torch.randn(shape, generator=generator, dtype=torch.float64) / max(1, shape[-1]) ** 0.5
        return (drawn.abs() / 64 if name == "scale" else drawn).to(dtype)
    if name == "inliers":
        return torch.ones(shape, dtype=dtype).index_fill_(0, _spread(task), 0)
    if name == "outliers":
        return _spread(task)
    if dtype == torch.bool:
        return torch.ones(shape, dtype=dtype)
    low, high = (1, 256) if dtype == torch.uint8 else (-127, 128)
    return torch.randint(low, high, shape, generator=generator).to(dtype)


def _spread(task: CpuTask) -> Tensor:
    """Columns that stay in floating point: a few, spread over all."""
    few, inputs = task.shapes["outliers"][0], task.shapes["x"][-1]
    return torch.arange(few) * inputs // max(1, few)


def measurement(
    op: str, shapes: Mapping[str, Any], dtypes: Mapping[str, str], attributes: Mapping[str, AttributeValue]
) -> Measure:
    """Return what tries a config of a kernel; the maker of `CpuTask.task`."""
    task = CpuTask(op, {name: tuple(shape) for name, shape in shapes.items()}, dtypes, attributes)
    return Measurement(task)


@dataclass(frozen=True)
class Measurement:
    """Compiles a config, holds it to the op in float64, and times it."""

    task: CpuTask

    def __call__(self, config: Config) -> Measured:
        """Try a config."""
        activations = [self._operands[name] for name in self._varying]
        try:
            compiled = compile_kernel(self.task.kernel, self._given, {name: int(v) for name, v in config.items()})
            if isinstance(compiled, str):
                return Measured("failed", None, compiled)
            found = compiled(*activations).to(torch.float64)
        except RegraftError as error:
            return Measured("failed", None, str(error))
        error = float((found - self._exact).norm() / self._exact.norm().clamp_min(1e-30))
        most = (
            TOLERANCE if all(tensor.is_floating_point() for tensor in self._operands.values()) else _INTEGER_TOLERANCE
        )
        if not error <= most:
            return Measured("wrong", None, f"off by {error:.2g} of its size; at most {most:g} is allowed")
        return Measured("ok", timed(compiled, activations))

    @cached_property
    def _operands(self) -> dict[str, Tensor]:
        return self.task.operands()

    @property
    def _varying(self) -> list[str]:
        return [name for name in self.task.shapes if name in self.task.kernel.activations]

    @cached_property
    def _given(self) -> Operands:
        constants = {name: tensor for name, tensor in self._operands.items() if name not in self._varying}
        types = {name: self._operands[name].dtype for name in self._varying}
        shapes = {name: (*(None for _ in shape[:-1]), shape[-1]) for name, shape in self.task.shapes.items()}
        return Operands(constants, types, self.task.attributes, {name: shapes[name] for name in self._varying})

    @cached_property
    def _exact(self) -> Tensor:
        exact = {name: x.double() if x.is_floating_point() else x for name, x in self._operands.items()}
        if self.task.op == DENSE:
            return torch.nn.functional.linear(exact["x"], exact["weight"], exact.get("bias"))
        return evaluate(get_op(self.task.op), exact, dict(self.task.attributes))


def timed(kernel: Compiled, activations: list[Tensor]) -> float:
    """Return the median time of one call in seconds."""
    kernel(*activations)
    begin = time.perf_counter()
    kernel(*activations)
    repeats = max(1, math.ceil(_LEAST_S / max(1e-7, time.perf_counter() - begin)))
    samples: list[float] = []
    for _ in range(_SAMPLES):
        begin = time.perf_counter()
        for _ in range(repeats):
            kernel(*activations)
        samples.append((time.perf_counter() - begin) / repeats)
    return statistics.median(samples)


def tuned_tiles(records: Content, task: CpuTask) -> Mapping[str, int] | None:
    """Return the tiles of the fastest trial of that very key; None when there is none that the kernel has."""
    best = records.best(task.key)
    if best is None or task.space.problem(best.config) is not None:
        return None
    return {name: int(value) for name, value in best.config.items()}


def machine_fields() -> dict[str, str]:
    """Return what a key says of the machine and of what compiles for it."""
    return {
        "target": f"llvm {this_host().needs}, {threads()} threads",
        "device": _processor(),
        "driver": f"{platform.system()} {platform.release()}",
        "compiler": f"apache-tvm {PINS['apache-tvm']}",
        "version": version("regraft"),
    }


def _processor() -> str:
    """The processor's name, as the system says it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.machine()


def machine() -> Machine:
    """Return what this processor reaches, measured: a large product, and a large copy."""
    a, b = torch.randn(1024, 1024), torch.randn(1024, 1024)
    source, target = torch.empty(2**25), torch.empty(2**25)
    product, copy = _best(lambda: a @ b), _best(lambda: target.copy_(source))
    return Machine(2 * 1024**3 / product, 2 * source.numel() * 4 / copy, threads())


def _best(function: Any, rounds: int = 5) -> float:
    times: list[float] = []
    for _ in range(rounds):
        begin = time.perf_counter()
        function()
        times.append(time.perf_counter() - begin)
    return min(times)


def layer_task(op: str, sizes: Mapping[str, int], rows: int, dtype: str = "float32") -> CpuTask:
    """Return a layer as a task.

    Args:
        op: "linear", "lowrank_linear", or "monarch_linear".
        sizes: "in" and "out", and "rank", or "blocks" and "block_rank".
        rows: of its input.
        dtype: of all.

    Raises:
        InputError: when a size is missing.
    """
    makers = {DENSE: _linear, "lowrank_linear": _lowrank, "monarch_linear": _monarch}
    if op not in makers:
        raise UnknownNameError(f"tune: no layer {op!r} can be made from sizes; there are: {', '.join(makers)}")
    try:
        shapes, attributes = makers[op](dict(sizes), rows)
    except KeyError as error:
        raise InputError(f"tune: {op} needs the size {error.args[0]!r}; got {', '.join(sizes) or 'none'}") from None
    return CpuTask(op, shapes, dict.fromkeys(shapes, dtype_name(getattr(torch, dtype))), attributes)


def _linear(sizes: Mapping[str, int], rows: int) -> tuple[Shapes, dict[str, AttributeValue]]:
    return {"x": (rows, sizes["in"]), "weight": (sizes["out"], sizes["in"]), "bias": (sizes["out"],)}, {}


def _lowrank(sizes: Mapping[str, int], rows: int) -> tuple[Shapes, dict[str, AttributeValue]]:
    inner, rank, outer = sizes["in"], sizes["rank"], sizes["out"]
    return {"x": (rows, inner), "down": (rank, inner), "up": (outer, rank), "bias": (outer,)}, {}


def _monarch(sizes: Mapping[str, int], rows: int) -> tuple[Shapes, dict[str, AttributeValue]]:
    inner, outer, blocks, rank = sizes["in"], sizes["out"], sizes["blocks"], sizes["block_rank"]
    width, height = -(-inner // blocks), -(-outer // blocks)
    shapes: Shapes = {
        "x": (rows, inner),
        "right": (blocks, width, blocks * rank),
        "left": (blocks, blocks * rank, height),
        "bias": (outer,),
    }
    attributes: dict[str, AttributeValue] = {"in_features": inner, "out_features": outer}
    attributes |= {"in_blocks": blocks, "out_blocks": blocks, "block_rank": rank, "in_strided": 0, "out_strided": 0}
    return shapes, attributes
