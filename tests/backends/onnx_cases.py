"""Models of one ONNX operator each, on random data, and what ONNX's reference or ONNX Runtime makes of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnx.helper as oh
import onnxruntime as ort
from onnx.reference import ReferenceEvaluator

BATCH = 5
"""A first dim of this extent is symbolic in the model, unless the operand is a weight."""

MICROSOFT = "com.microsoft"


@dataclass(frozen=True, eq=False)
class Weight:
    """An operand that is stored in the model."""

    value: np.ndarray


@dataclass(frozen=True, eq=False)
class Case:
    """One node; operands are arrays (inputs), weights, or None (left out).

    Attributes:
        op: its name in its domain.
        operands: in the order of the operator.
        attributes: by name.
        domain: "" is the default one.
        opset: of the default domain.
        outputs: how many of its results the model returns; or their places.
        note: tells cases of one operator apart.
    """

    op: str
    operands: Sequence[Any]
    attributes: Mapping[str, Any] = field(default_factory=dict[str, Any])
    domain: str = ""
    opset: int = 23
    outputs: Sequence[int] = (0,)
    note: str = ""

    def __str__(self) -> str:
        return f"{self.op}-{self.note}" if self.note else self.op

    @property
    def feeds(self) -> dict[str, np.ndarray]:
        """The inputs by name, in order."""
        return {f"x{at}": value for at, value in enumerate(self.operands) if isinstance(value, np.ndarray)}

    def model(self) -> onnx.ModelProto:
        """Return the model; its outputs have a type when onnx or ONNX Runtime can tell."""
        names = ["" if value is None else f"x{at}" for at, value in enumerate(self.operands)]
        results = [f"y{at}" if at in self.outputs else "" for at in range(max(self.outputs) + 1)]
        node = oh.make_node(self.op, names, results, domain=self.domain, **self.attributes)
        inputs = [_info(name, value) for name, value in self.feeds.items()]
        weights = [
            onnx.numpy_helper.from_array(value.value, f"x{at}")
            for at, value in enumerate(self.operands)
            if isinstance(value, Weight)
        ]
        kinds = self._kinds(node, inputs, weights)
        outputs = [oh.make_tensor_value_info(name, kinds[name][0], kinds[name][1]) for name in results if name]
        graph = oh.make_graph([node], self.op, inputs, outputs, weights)
        return oh.make_model(graph, opset_imports=self._imports(), ir_version=10)

    def _imports(self) -> list[Any]:
        return [oh.make_opsetid("", self.opset), oh.make_opsetid(MICROSOFT, 1)]

    def _kinds(self, node: Any, inputs: Any, weights: Any) -> dict[str, tuple[int, list[str | int]]]:
        """Element type and dims of the results: those of the oracle, with the batch where its extent is."""
        untyped = [oh.make_empty_tensor_value_info(name) for name in node.output if name]
        graph = oh.make_graph([node], self.op, inputs, untyped, weights)
        found = _run(oh.make_model(graph, opset_imports=self._imports(), ir_version=10), self.feeds, self.domain)
        return {
            value.name: (oh.np_dtype_to_tensor_dtype(array.dtype), _dims(array))
            for value, array in zip(untyped, found, strict=True)
        }

    def expected(self) -> list[np.ndarray]:
        """Return what the oracle computes."""
        return _run(self.model(), self.feeds, self.domain)


def _info(name: str, value: np.ndarray) -> Any:
    return oh.make_tensor_value_info(name, oh.np_dtype_to_tensor_dtype(value.dtype), _dims(value))


def _dims(value: np.ndarray) -> list[str | int]:
    return ["batch" if at == 0 and extent == BATCH else extent for at, extent in enumerate(value.shape)]


def _run(model: onnx.ModelProto, feeds: dict[str, np.ndarray], domain: str) -> list[np.ndarray]:
    if domain or model.graph.node[0].op_type == "SimplifiedLayerNormalization":
        options = ort.SessionOptions()
        options.log_severity_level = 4
        session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        results: Any = session.run(None, feeds)
        return list(results)
    found: Any = ReferenceEvaluator(model).run(None, feeds)
    return list(map(np.asarray, found))


def numbers(*shape: int, seed: int = 0) -> np.ndarray:
    """Return normal float32 numbers."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def positive(*shape: int) -> np.ndarray:
    """Return float32 numbers between 0.5 and 1.5."""
    return (np.random.default_rng(1).random(shape) + 0.5).astype(np.float32)


def codes(*shape: int, dtype: Any = np.uint8, high: int = 100) -> np.ndarray:
    """Return integers from 0 up to below `high`."""
    return np.random.default_rng(2).integers(0, high, shape).astype(dtype)


def weight(value: Any, dtype: Any = None) -> Weight:
    """Return a stored operand."""
    return Weight(np.asarray(value, dtype=dtype))


def ints(*values: int) -> Weight:
    """Return stored int64 numbers, one dim."""
    return Weight(np.array(values, dtype=np.int64))
