"""What a feed-forward layer in factors is made of: its operands, whether they fit, and a block of its hidden width."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic

import sympy

from regraft.graph.activation import FUNCTIONS
from regraft.graph.cost_types import OpCost
from regraft.graph.symbols import dim_expr, numel
from regraft.graph.types import Dim, TensorType, dtype_bits
from regraft.ops._activation import activate
from regraft.ops._builder import Builder, V
from regraft.ops._op import require


@dataclass(frozen=True)
class Branch(Generic[V]):
    """A product into the hidden width.

    Attributes:
        source: what is multiplied, [rows, rank] (or [rows, in]).
        up: weights of the blocks, each [width, rank].
        bias: biases of the blocks, each [width]; empty when there is none.
    """

    source: V
    up: Sequence[V]
    bias: Sequence[V]

    def block(self, b: Builder[V], place: int, earlier: V | None) -> V:
        """Return the block of the hidden width at that place, [rows, width]."""
        return b.linear_after(self.source, self.up[place], self.bias[place] if self.bias else None, earlier)


def branch(b: Builder[V], rows: V, down: V | None, up: V, bias: V | None, blocks: int) -> Branch[V]:
    """Multiply by the first factor, if there is one, and cut the second one in blocks."""
    source = rows if down is None else b.linear(rows, down)
    return Branch(source, b.split(up, 0, blocks), () if bias is None else b.split(bias, 0, blocks))


def hidden_sum(b: Builder[V], inner: Branch[V], gate: Branch[V] | None, down: Sequence[V], activation: str) -> V:
    """Walk the hidden width; return Σ h_d · down_dᵀ, where h is act(inner), or act(gate) · inner.

    A block depends on the sum before it, so that no runtime holds two of them.
    """
    total: V | None = None
    for place, weight in enumerate(down):
        total = _with_block(b, total, _hidden(b, inner, gate, place, activation, total), weight)
    assert total is not None, "there is a block"
    return total


def _hidden(
    b: Builder[V], inner: Branch[V], gate: Branch[V] | None, place: int, activation: str, earlier: V | None
) -> V:
    if gate is None:
        return activate(b, inner.block(b, place, earlier), activation)
    opened = activate(b, gate.block(b, place, earlier), activation)
    return b.mul(opened, inner.block(b, place, earlier))


def _with_block(b: Builder[V], total: V | None, hidden: V, weight: V) -> V:
    return b.linear(hidden, weight) if total is None else b.accumulate(total, hidden, weight)


@dataclass(frozen=True)
class MlpTypes:
    """Types of the operands, and what follows from them.

    Attributes:
        name: the op's name, for messages.
        x: type of the input; its shape may be unknown.
        in_up, out_down: the two weights that are always there.
        in_down, out_up, in_bias, out_bias, gate_down, gate_up, gate_bias, residual: types; None where absent.
    """

    name: str
    x: TensorType
    in_up: TensorType
    out_down: TensorType
    in_down: TensorType | None = None
    out_up: TensorType | None = None
    in_bias: TensorType | None = None
    out_bias: TensorType | None = None
    gate_down: TensorType | None = None
    gate_up: TensorType | None = None
    gate_bias: TensorType | None = None
    residual: TensorType | None = None

    @property
    def hidden(self) -> Dim:
        """The hidden width."""
        return self._matrix("in_up", self.in_up)[0]

    def result(self, activation: str, blocks: int) -> TensorType:
        """Return the type of y; raise ShapeError where the operands do not fit together."""
        require(
            activation in FUNCTIONS,
            f"{self.name}: activation must be one of {', '.join(FUNCTIONS)}; got {activation!r}",
        )
        self._check_blocks(blocks)
        width_in = self._width_in("in", self.in_down, self.in_up, self.in_bias)
        if self.gate_up is None:
            require(self.gate_down is None and self.gate_bias is None, f"{self.name}: a gate needs gate_up")
        else:
            gate_in = self._width_in("gate", self.gate_down, self.gate_up, self.gate_bias)
            require(gate_in == width_in, f"{self.name}: in takes {width_in}, gate takes {gate_in}")
        width_out = self._width_out()
        if self.x.shape is None:
            return TensorType(self.x.dtype)
        require(len(self.x.shape) >= 1, f"{self.name}: x must have at least one dim; got a scalar")
        require(self.x.shape[-1] == width_in, f"{self.name}: x ends in {self.x.shape[-1]}, {width_in} are taken")
        result = TensorType(self.x.dtype, (*self.x.shape[:-1], width_out))
        fits = self.residual is None or self.residual.shape in (None, result.shape)
        require(fits, f"{self.name}: residual must be {result}; got {self.residual}")
        return result

    def cost(self, blocks: int) -> OpCost:
        """Multiply-adds of all products; the largest buffer inside is a block's, or what the first factor makes."""
        if self.x.shape is None:
            return OpCost()
        rows = numel(self.x.shape[:-1])
        matrices = [self.in_down, self.in_up, self.gate_down, self.gate_up, self.out_down, self.out_up]
        macs = sum((numel(matrix.shape) for matrix in matrices if matrix and matrix.shape), sympy.Integer(0))
        widths = [sympy.ceiling(dim_expr(self.hidden) / blocks)]
        widths += [dim_expr(self._matrix("down", down)[0]) for down in (self.in_down, self.gate_down) if down]
        widths += [dim_expr(self._matrix("out_down", self.out_down)[0])] if self.out_up else []
        # Of a block there are what goes into the activation and what comes out, behind a gate the other branch, too.
        inner = sum(widths, sympy.Integer(0)) + widths[0] * (1 if self.gate_up is None else 2)
        unit = rows * sympy.Rational(dtype_bits(self.x.dtype), 8)
        return OpCost(macs=rows * macs, transient_bytes=unit * sympy.Max(*widths), inner_bytes=unit * inner)

    def _check_blocks(self, blocks: int) -> None:
        hidden = self.hidden
        require(blocks >= 1, f"{self.name}: blocks must be at least 1; got {blocks}")
        if isinstance(hidden, int):
            size = -(-hidden // blocks)
            fits = (blocks - 1) * size < hidden
            require(fits, f"{self.name}: a hidden width of {hidden} has no {blocks} blocks of {size}")

    def _width_in(self, label: str, down: TensorType | None, up: TensorType, bias: TensorType | None) -> Dim:
        hidden, inner = self._matrix(f"{label}_up", up)
        require(hidden == self.hidden, f"{self.name}: {label}_up makes {hidden} features, in_up {self.hidden}")
        self._check_bias(f"{label}_bias", bias, hidden)
        if down is None:
            return inner
        rank, width = self._matrix(f"{label}_down", down)
        require(rank == inner, f"{self.name}: ranks differ: {label}_down {rank}, {label}_up {inner}")
        return width

    def _width_out(self) -> Dim:
        rank, hidden = self._matrix("out_down", self.out_down)
        require(hidden == self.hidden, f"{self.name}: out_down takes {hidden} features, in_up makes {self.hidden}")
        if self.out_up is None:
            width = rank
        else:
            width, inner = self._matrix("out_up", self.out_up)
            require(rank == inner, f"{self.name}: ranks differ: out_down {rank}, out_up {inner}")
        self._check_bias("out_bias", self.out_bias, width)
        return width

    def _matrix(self, label: str, type_: TensorType) -> tuple[Dim, Dim]:
        require(type_.rank == 2, f"{self.name}: {label} must be 2-D; got {type_}")
        assert type_.shape is not None
        return type_.shape[0], type_.shape[1]

    def _check_bias(self, label: str, bias: TensorType | None, width: Dim) -> None:
        require(bias is None or bias.shape == (width,), f"{self.name}: {label} must be [{width}]; got {bias}")
