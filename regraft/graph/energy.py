"""An energy model: picojoules of arithmetic and of data movement, layer by layer. Modelled, not measured.

Arithmetic: what every node's cost formula counts, at the table's energy of an operation. Products count, and the steps
around them that structured ops declare; element-by-element work between layers does not, in any program.

Movement, the same for every node, dense or rewritten: each constant that it reads comes once, as it is stored, from
memory outside the chip (of a table that is gathered from, the rows that are taken); each other operand is read once
from, and each result written once to, memory on the chip. What a layer computes for itself alone does not move, be it
inside of one node or between several of one layer's name. Views move nothing. What has only constants to read is
computed once, before the model runs, and costs nothing.

The model knows no caches, tiles or leakage. It compares programs; it does not predict what a device draws. Hardware
that has multipliers but no shifters spends on `shift_linear` what it spends on `int8_linear`.

Sources: Horowitz 2014, "Computing's energy problem (and what we can do about it)", ISSCC, for everything but the shift;
the shift as in the published code of You et al. 2023, arXiv:2306.06446 (ShiftAddViT). All for 45 nm at 0.9 V.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Final

import sympy

from regraft.errors import ShapeError
from regraft.graph._formulas import FORMULAS, Formula, apply_formula, has_no_products
from regraft.graph._liveness import ALIASES
from regraft.graph.cost_types import Arithmetic, OpCost
from regraft.graph.escape import escape
from regraft.graph.snapshot import Snapshot, SnapshotNode
from regraft.graph.symbols import bind, dim_expr
from regraft.graph.types import TensorType, dtype_bits


@dataclass(frozen=True, slots=True)
class EnergyTable:
    """Energies of a technology.

    Attributes:
        name: what it is.
        arithmetic: pJ an operation.
        off_chip: pJ a byte from memory outside the chip.
        on_chip: pJ a byte to or from memory on the chip.
    """

    name: str
    arithmetic: Mapping[Arithmetic, float]
    off_chip: float
    on_chip: float


HOROWITZ_45NM: Final = EnergyTable(
    name="45 nm, 0.9 V (Horowitz 2014)",
    arithmetic={
        "multiply float32": 3.7,
        "add float32": 0.9,
        "multiply float16": 1.1,
        "add float16": 0.4,
        "multiply int8": 0.2,
        "add int32": 0.1,
        "shift int32": 0.13,  # of 32 bits, where shifted 8-bit activations have 14: an upper bound
    },
    off_chip=1300 / 8,  # DRAM: 1.3 to 2.6 nJ for 64 bits; the lower end, which favours what moves much
    on_chip=100 / 8,  # 1 MB of SRAM: 100 pJ for 64 bits
)


@dataclass(frozen=True, slots=True)
class Picojoules:
    """Modelled energy of a node, a layer or a program, in pJ.

    Attributes:
        arithmetic: of multiplications, additions and shifts.
        parameters: of moving constants.
        activations: of moving operands and results.
    """

    arithmetic: float = 0.0
    parameters: float = 0.0
    activations: float = 0.0

    @property
    def movement(self) -> float:
        """Of moving constants, operands and results."""
        return self.parameters + self.activations

    def __add__(self, other: "Picojoules") -> "Picojoules":
        return Picojoules(
            self.arithmetic + other.arithmetic,
            self.parameters + other.parameters,
            self.activations + other.activations,
        )


@dataclass(frozen=True, slots=True)
class Energy:
    """The modelled energy of a program.

    Attributes:
        table: the energies it was modelled with.
        nodes: by node key.
        layers: by layer name; "" holds the nodes of no known layer.
        unmodelled: keys of nodes whose arithmetic, or some of whose operands, are not known (counted as 0): there is no
            formula, an extent is not known, or the table has no such operation.
    """

    table: EnergyTable
    nodes: Mapping[str, Picojoules]
    layers: Mapping[str, Picojoules]
    unmodelled: tuple[str, ...]

    @property
    def total(self) -> Picojoules:
        """Of the whole program."""
        return sum(self.nodes.values(), Picojoules())

    def __str__(self) -> str:
        names = [name for name in self.layers if name]
        rows = [*((escape(name), self.layers[name]) for name in names), ("total", self.total)]
        width = max(len(name) for name, _ in [("layer", self.total), *rows])
        lines = [f"{name:<{width}}  {of.arithmetic / 1e6:>10.2f}  {of.movement / 1e6:>10.2f}" for name, of in rows]
        head = f"{'layer':<{width}}  {'arithmetic':>10}  {'movement':>10}"
        return "\n".join([_title(self.table), head, *lines, *_note(len(self.unmodelled))])


def energy_table(dense: Energy, rewritten: Energy, layers: Collection[str] | None = None) -> str:
    """Return a text that compares two programs, layer by layer and in total, in microjoules.

    Args:
        dense: the program before.
        rewritten: the program after.
        layers: names of the layers to list; those that differ when None.
    """
    names = [name for name in {**dense.layers, **rewritten.layers} if name] if layers is None else list(layers)
    rows = [(escape(name), _of(dense, name), _of(rewritten, name)) for name in names]
    if layers is None:
        rows = [row for row in rows if row[1] != row[2]]
    rows.append(("total", dense.total, rewritten.total))
    width = max(len(row[0]) for row in rows)
    head = f"{'layer':<{width}}  {'arithmetic':>25}  {'movement':>25}"
    missing = max(len(dense.unmodelled), len(rewritten.unmodelled))
    return "\n".join([_title(dense.table), head, *(_line(width, *row) for row in rows), *_note(missing)])


def _title(table: EnergyTable) -> str:
    return f"modelled energy, not measured, uJ: {table.name}"


def _note(missing: int) -> list[str]:
    return [f"not modelled, and counted as 0: {missing} nodes of unknown shape or operation"] if missing else []


def model_energy(
    snapshot: Snapshot, formulas: Mapping[str, Formula], dims: Mapping[str, int], table: EnergyTable = HOROWITZ_45NM
) -> Energy:
    """Return the modelled energy of a program.

    Args:
        snapshot: the program.
        formulas: cost formulas by op name, in addition to (and in front of) those of the canonical operations.
        dims: extents of the dynamic dims of the inputs, and of any others that are known.
        table: energies of a technology.

    Raises:
        ShapeError: when a dim of an input has no extent, or a negative one.
    """
    for value in snapshot.inputs:
        for dim in value.type.shape or ():
            if bind(dim_expr(dim), dims) < 0:
                raise ShapeError(f"the extent {dim} of {value.name} must be at least 0; got {dict(dims)}")
    return _Model(snapshot, {**FORMULAS, **formulas}, dims, table).energy()


_ROWS_TAKEN: Final = frozenset({"gather", "embedding"})
"""Operations that read only some rows of their first operand."""


class _Model:
    def __init__(
        self, snapshot: Snapshot, formulas: Mapping[str, Formula], dims: Mapping[str, int], table: EnergyTable
    ) -> None:
        self._snapshot, self._formulas, self._dims, self._table = snapshot, formulas, dims, table
        values = [*snapshot.inputs, *snapshot.constants, *(value for node in snapshot.nodes for value in node.outputs)]
        self._types = {value.key: value.type for value in values}
        self._constant = {value.key for value in snapshot.constants}
        self._inner = _inner_values(snapshot)
        self._bytes: dict[TensorType, int | None] = {}
        self._arithmetic: dict[object, float | None] = {}
        self._unmodelled: dict[str, None] = {}

    def energy(self) -> Energy:
        nodes: dict[str, Picojoules] = {}
        layers: dict[str, Picojoules] = {}
        for node in self._snapshot.nodes:
            found = self._node(node)
            nodes[node.key] = found
            layers[node.scope] = layers.get(node.scope, Picojoules()) + found
        return Energy(self._table, nodes, layers, tuple(self._unmodelled))

    def _node(self, node: SnapshotNode) -> Picojoules:
        operands = [key for key in dict.fromkeys(node.inputs) if key]
        if operands and all(key in self._constant for key in operands):
            self._constant |= {value.key for value in node.outputs}
            return Picojoules()
        if node.op in ALIASES:
            return Picojoules()
        results = [value.key for value in node.outputs if value.key]
        constants = [key for key in operands if key in self._constant]
        moving = [key for key in [*operands, *results] if key not in self._constant and key not in self._inner]
        if node.op in _ROWS_TAKEN and node.inputs[0] in self._constant:
            constants = [key for key in constants if key != node.inputs[0]] + results
        return Picojoules(
            arithmetic=self._counted(node),
            parameters=self._table.off_chip * self._moved(node, constants),
            activations=self._table.on_chip * self._moved(node, moving),
        )

    def _moved(self, node: SnapshotNode, keys: Iterable[str]) -> int:
        sizes = [self._size(self._types.get(key, TensorType())) for key in keys]
        if None in sizes:
            self._unmodelled[node.key] = None
        return sum(size for size in sizes if size is not None)

    def _size(self, type_: TensorType) -> int | None:
        if type_.shape is None:
            return None
        if type_ not in self._bytes:
            extents = [self._number(dim_expr(dim)) for dim in type_.shape]
            known = [extent for extent in extents if extent is not None]
            size = -(-prod(known) * dtype_bits(type_.dtype) // 8)
            self._bytes[type_] = size if len(known) == len(extents) else None
        return self._bytes[type_]

    def _number(self, expr: sympy.Expr) -> int | None:
        missing = any(str(symbol) not in self._dims for symbol in expr.free_symbols)
        return None if missing else bind(expr, self._dims)

    def _counted(self, node: SnapshotNode) -> float:
        formula = self._formulas.get(node.op)
        operands = tuple(None if key == "" else self._types.get(key, TensorType()) for key in node.inputs)
        call = (node.op, node.native, tuple(sorted(node.attributes.items())), operands, _result(node))
        if formula is None:
            found = 0.0 if has_no_products(node.op) else None
        elif call in self._arithmetic:
            found = self._arithmetic[call]
        else:
            found = self._arithmetic[call] = self._priced(apply_formula(formula, node, operands), _result(node).dtype)
        if found is None:
            self._unmodelled[node.key] = None
        return found or 0.0

    def _priced(self, cost: OpCost | None, dtype: str | None) -> float | None:
        if cost is None:
            return None
        counts = cost.arithmetic or {f"multiply {dtype}": cost.macs, f"add {dtype}": cost.macs}
        prices: dict[str, float] = {**self._table.arithmetic}
        total = 0.0
        for kind, count in counts.items():
            number = self._number(count)
            if number is None or kind not in prices:
                return None
            total += prices[kind] * number
        return total


def _inner_values(snapshot: Snapshot) -> set[str]:
    """Values that only nodes of the layer that computes them read."""
    layer = {value.key: node.scope for node in snapshot.nodes for value in node.outputs if node.scope}
    outside = set(snapshot.outputs)
    outside |= {key for node in snapshot.nodes for key in node.inputs if layer.get(key, node.scope) != node.scope}
    return set(layer) - outside


def _result(node: SnapshotNode) -> TensorType:
    return node.outputs[0].type if node.outputs else TensorType()


def _of(energy: Energy, layer: str) -> Picojoules:
    return energy.layers.get(layer, Picojoules())


def _line(width: int, name: str, dense: Picojoules, rewritten: Picojoules) -> str:
    arithmetic = _change(dense.arithmetic, rewritten.arithmetic)
    return f"{name:<{width}}  {arithmetic:>25}  {_change(dense.movement, rewritten.movement):>25}"


def _change(before: float, after: float) -> str:
    share = f" ({after / before:.2f})" if before else ""
    return f"{before / 1e6:.2f} -> {after / 1e6:.2f}{share}"
