"""The 8-bit linear layers as programs: weights of int8, or codes that are decoded; a few columns in floating point."""

# TVM has no types, so that those of expressions are unknown.
# pyright: reportUnknownLambdaType=false

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from regraft.backends.tvm.kernels.cpu._floating import packed, padded_vector
from regraft.backends.tvm.kernels.cpu._host import Host
from regraft.backends.tvm.kernels.cpu._integer import (
    arranged,
    group_of,
    integer_product,
    padded_sums,
    quantized,
    scaled,
)
from regraft.backends.tvm.kernels.cpu._ir import Function, by_work, function, load
from regraft.backends.tvm.kernels.cpu._kernel import Plan, as_rows, in_rows, with_columns
from regraft.backends.tvm.kernels.cpu._product import Block, Part, Place, Result, multiply_add, product

Weight = Callable[[Place, Any], Any]
"""(where, step) -> int8 vector."""


@dataclass(frozen=True)
class Weights:
    """Weights that a kernel reads as int8.

    Attributes:
        values: int8 [out, in].
        packed: what is kept, by name.
        reader: (buffers by name) -> reads a vector.
        kind: what distinguishes their code.
    """

    values: Tensor
    packed: Mapping[str, Tensor]
    reader: Callable[[Mapping[str, Any]], Weight]
    kind: str


@dataclass(frozen=True)
class Outliers:
    """Columns of x in floating point.

    Attributes:
        inliers: bool [in], false for those that are not rounded.
        columns: int64 [k].
        weight: [out, k].
    """

    inliers: Tensor
    columns: Tensor
    weight: Tensor


def plain_weights(values: Tensor, block: Block, host: Host) -> Weights:
    """Return int8 weights as they are."""
    group = group_of(host)
    steps = -(-values.shape[1] // group)

    def reader(buffers: Mapping[str, Any]) -> Weight:
        width = block.lanes * group

        def read(place: Place, k: Any) -> Any:
            unit = (place.panel * steps + k) * block.vectors + place.vector
            return load(buffers["weight"], [unit * width], width)

        return read

    return Weights(values, {"weight": arranged(values, block, group).flatten()}, reader, "int8")


@dataclass(frozen=True)
class IntegerLayer:
    """A linear layer in 8-bit integers.

    Attributes:
        weights: of the integer product.
        scale: [out].
        bias: [out], or None.
        per_row: whether each row of x has a step of its own.
        outliers: columns in floating point, or None.
    """

    weights: Weights
    scale: Tensor
    bias: Tensor | None
    per_row: bool
    outliers: Outliers | None = None

    def plan(self, block: Block, row_chunk: int, host: Host) -> Plan:
        """Return the plan of its kernel."""
        columns, width = self.weights.values.shape
        tensors = self._tensors(block)
        few = 0 if self.outliers is None else len(self.outliers.columns)
        problem = {"width": width, "columns": columns, "kind": self.weights.kind, "per_row": self.per_row}

        def write(f: Function) -> None:
            x = f.parameter("x", ("rows", width), "float32")
            buffers = {name: f.parameter(name, tensor.shape, _name(tensor)) for name, tensor in tensors.items()}
            y = f.parameter("y", ("rows", columns), "float32")
            rows = f.symbol("rows")
            steps = rows * (columns * -(-width // group_of(host)))
            by_work(steps, lambda: self._write(rows, (x, buffers, y), block, row_chunk, host))

        return Plan(
            {**problem, "few": few, "masked": self.outliers is not None},
            tuple(tensors.values()),
            lambda: function(write),
            as_rows(width),
            with_columns(columns),
            in_rows,
        )

    def _tensors(self, block: Block) -> dict[str, Tensor]:
        columns = self.weights.values.shape[0]
        floating = Block(block.rows, block.vectors, block.lanes, "float32")
        found = {
            **self.weights.packed,
            "sums": padded_sums(self.weights.values, block),
            "scale": padded_vector(self.scale, columns, floating),
            "bias": padded_vector(self.bias, columns, floating),
        }
        if self.outliers is not None:
            found["inliers"] = self.outliers.inliers.to(torch.float32)
            if len(self.outliers.columns):
                found["outliers"] = self.outliers.columns
                found["outlier_weight"] = packed(self.outliers.weight, floating)
        return found

    def _write(self, rows: Any, operands: tuple[Any, Any, Any], block: Block, row_chunk: int, host: Host) -> None:
        x, buffers, y = operands
        columns, width = self.weights.values.shape
        group, lanes = group_of(host), block.lanes

        def value(row: Any, place: Any, count: int) -> Any:
            found = load(x, [row, place], count)
            return found if self.outliers is None else found * load(buffers["inliers"], [place], count)

        codes = quantized(rows, width, value, lanes, per_row=self.per_row)
        parts = [integer_product(codes, self.weights.reader(buffers), -(-width // group), block, group)]
        parts += self._floating(x, buffers, block)
        whole = scaled(codes, buffers["sums"], buffers["scale"], block)

        def finish(place: Place, total: Any, *few: Any) -> Any:
            return _sum([whole(place, total), *few, load(buffers["bias"], [place.column], lanes)])

        result = Result(y, lambda row, column: (row, column), columns)
        product(block, rows, row_chunk, columns, parts, finish, result)

    def _floating(self, x: Any, buffers: Mapping[str, Any], block: Block) -> list[Part]:
        if self.outliers is None or not len(self.outliers.columns):
            return []
        floating = Block(block.rows, block.vectors, block.lanes, "float32")
        places = buffers["outliers"]
        depth = len(self.outliers.columns)
        return [multiply_add(lambda row, k: x[row, places[k]], buffers["outlier_weight"], floating, depth)]


def _sum(terms: Sequence[Any]) -> Any:
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total


def _name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
