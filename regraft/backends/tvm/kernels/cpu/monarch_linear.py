"""CPU kernel of `monarch_linear`: two products of blocks; the permutation between them is an address.

    h[row, a] = x[row, run a] · right[a]           h: [rows, k · l · ρ], written block by block
    y[row, group b] = (h[row, a, b])_a · left[b] + bias

Both products read single numbers of the operand that is permuted, from where it lies: runs of inputs that are strided,
and the ρ numbers of each run that belong to a group. Strided results are written one by one.
"""

# TVM has no types, so that those of expressions are unknown.
# pyright: reportUnknownLambdaType=false

from typing import Any, Final

import torch
from torch import Tensor

from regraft.backends.tvm.kernels.cpu._floating import TILES, block_of, default_tiles, packed, plus
from regraft.backends.tvm.kernels.cpu._host import Host
from regraft.backends.tvm.kernels.cpu._ir import Function, by_work, function, index, least, most, scratch
from regraft.backends.tvm.kernels.cpu._kernel import CpuKernel, Operands, Plan, Tiles, as_rows, in_rows, with_columns
from regraft.backends.tvm.kernels.cpu._product import Block, Result, multiply_add, over_tasks, panel_product
from regraft.numerics.partition import Partition
from regraft.ops.monarch_linear import partition_of


def plan(given: Operands, tiles: Tiles, host: Host) -> Plan | str:
    """Return a plan, or why the kernel does not fit."""
    dtype = given.dtype("right", "left", "bias")
    if dtype is None:
        return "activations and factors must all be float32, or all float64"
    cut = partition_of({name: int(value) for name, value in given.attributes.items()})
    right, left, bias = given.constants["right"], given.constants["left"], given.constants.get("bias")
    whole = block_of(tiles, host, dtype)
    layer = _Layer(cut, right.shape[2], whole.fitted(right.shape[2]), whole.fitted(cut.height), tiles["row_chunk"])
    offsets = torch.zeros(layer.groups.size(cut.height) * cut.out_blocks, dtype=right.dtype)
    if bias is not None:
        offsets.view(cut.out_blocks, -1)[:, : cut.height] = _in_groups(bias, cut)
    return Plan(
        {"cut": str(cut), "inner": layer.inner, "dtype": dtype},
        (_packed_blocks(right, layer.runs), _packed_blocks(left, layer.groups), offsets),
        lambda: function(layer.write),
        as_rows(cut.in_features),
        with_columns(cut.out_features),
        in_rows,
    )


def _in_groups(bias: Tensor, cut: Partition) -> Tensor:
    padded = bias.new_zeros(cut.out_blocks * cut.height)
    padded[: cut.out_features] = bias
    return padded.view(cut.height, cut.out_blocks).t() if cut.out_strided else padded.view(cut.out_blocks, cut.height)


def _packed_blocks(blocks: Tensor, block: Block) -> Tensor:
    """Each of [blocks, in, out] in panels."""
    return torch.cat([packed(weight.t(), block) for weight in blocks])


class _Layer:
    """The layer as a program."""

    def __init__(self, cut: Partition, inner: int, runs: Block, groups: Block, row_chunk: int) -> None:
        self.cut, self.inner, self.runs, self.groups, self.row_chunk = cut, inner, runs, groups, row_chunk
        self.wide = cut.in_blocks * inner
        self.rank = inner // cut.out_blocks

    def write(self, f: Function) -> None:
        cut, dtype = self.cut, self.runs.dtype
        rows = f.symbol("rows")
        depth = cut.in_blocks * self.rank
        x = f.parameter("x", ("rows", cut.in_features), dtype)
        right = f.parameter("right", (self.runs.size(self.inner, cut.width) * cut.in_blocks,), dtype)
        left = f.parameter("left", (self.groups.size(cut.height, depth) * cut.out_blocks,), dtype)
        bias = f.parameter("bias", (self.groups.size(cut.height) * cut.out_blocks,), dtype)
        y = f.parameter("y", ("rows", cut.out_features), dtype)

        def both() -> None:
            h = scratch(rows * self.wide, dtype)
            self._first(rows, x, right, h)
            self._second(rows, h, (left, bias), y)

        by_work(rows * (self.wide * cut.width + cut.out_blocks * cut.height * depth), both)

    def _first(self, rows: Any, x: Any, right: Any, h: Any) -> None:
        cut, block = self.cut, self.runs
        panels = block.panels(self.inner)

        def body(task: Any, first: Any, count: Any) -> None:
            run, panel = task // panels, task % panels

            def feature(row: Any, k: Any) -> Any:
                return x[row, k * cut.in_blocks + run if cut.in_strided else run * cut.width + k]

            begin = run * block.size(self.inner, cut.width)
            depth = _count(run, cut.in_features, cut.in_blocks, cut.width, strided=cut.in_strided)
            part = multiply_add(feature, right, block, cut.width, begin, depth)
            result = Result(h, lambda row, column: (row * self.wide + run * self.inner + column,), self.inner)
            panel_product(block, panel, first, count, [part], None, result)

        over_tasks(rows, self.row_chunk, panels * cut.in_blocks, body)

    def _second(self, rows: Any, h: Any, weights: tuple[Any, Any], y: Any) -> None:
        cut, block, (left, bias) = self.cut, self.groups, weights
        panels, depth = block.panels(cut.height), cut.in_blocks * self.rank

        def body(task: Any, first: Any, count: Any) -> None:
            group, panel = task // panels, task % panels

            def product(row: Any, k: Any) -> Any:
                run = k // self.rank
                return h[row * self.wide + run * self.inner + group * self.rank + k % self.rank]

            def at(row: Any, column: Any) -> tuple[Any, Any]:
                return row, column * cut.out_blocks + group if cut.out_strided else group * cut.height + column

            begin = group * block.size(cut.height, depth)
            columns = _count(group, cut.out_features, cut.out_blocks, cut.height, strided=cut.out_strided)
            part = multiply_add(product, left, block, depth, begin)
            result = Result(y, at, columns, dense=not cut.out_strided)
            finish = plus(bias, block, group * block.size(cut.height))
            panel_product(block, panel, first, count, [part], finish, result)

        over_tasks(rows, self.row_chunk, panels * cut.out_blocks, body)


def _count(which: Any, features: int, blocks: int, size: int, *, strided: bool) -> Any:
    """How many features a run or a group has, without padding."""
    if blocks * size == features:
        return size
    if strided:
        return (index(features + blocks - 1) - which) // blocks
    return most(least(features - which * size, size), 0)


kernel: Final = CpuKernel("monarch_linear", ("x",), TILES, default_tiles, plan)
