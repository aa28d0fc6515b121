"""Attention with its projections, a group of heads at a time: the operands, whether they fit, and a group."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic

import sympy

from regraft.graph.cost_types import OpCost
from regraft.graph.symbols import dim_expr, numel
from regraft.graph.types import Dim, TensorType, dtype_bits
from regraft.ops._builder import Builder, V
from regraft.ops._op import require


@dataclass(frozen=True)
class Source(Generic[V]):
    """What queries, keys or values are products of.

    Attributes:
        rows: [rows, rank] (or [rows, in]).
        like: the activation whose leading dims the products take.
        weights: of each group, [width of the group, rank].
        biases: of each group, [width of the group]; empty when there is none.
    """

    rows: V
    like: V
    weights: Sequence[V]
    biases: Sequence[V] = ()

    def group(self, b: Builder[V], place: int, earlier: V | None) -> V:
        """Return the products of that group, [batch, rows, width]."""
        bias = self.biases[place] if self.biases else None
        return b.like_rows_of(b.linear_after(self.rows, self.weights[place], bias, earlier), self.like)

    def alike(self, b: Builder[V], weight: V, blocks: int, bias: V | None = None) -> "Source[V]":
        """Return what another weight makes of the same rows."""
        return Source(
            self.rows, self.like, b.split(weight, 0, blocks), () if bias is None else b.split(bias, 0, blocks)
        )


def source(b: Builder[V], x: V, down: V | None, weight: V, bias: V | None, blocks: int) -> Source[V]:
    """Multiply by the first factor, if there is one, and cut the second one in groups of heads."""
    rows = b.as_rows(x)
    first = rows if down is None else b.linear(rows, down)
    return Source(first, x, b.split(weight, 0, blocks), () if bias is None else b.split(bias, 0, blocks))


def seen(b: Builder[V], like: V, mask: V | None, bias: V | None) -> V | None:
    """Return 1 for queries that see a key and 0 for others, [batch, queries or 1, 1]; None when all do.

    The mask must be one for all heads.
    """
    if mask is not None:
        most = b.reduce_max(b.cast_like(mask, like), -1)
    elif bias is not None:
        offsets = b.cast_like(bias, like)
        hidden = b.equal(b.reduce_max(offsets, -1), b.scalar(float("-inf"), offsets))
        most = b.sub(b.scalar(1.0, like), b.cast_like(hidden, like))
    else:
        return None
    return b.reshape(most, (0, -1, 1))


@dataclass(frozen=True)
class AttentionTypes:
    """Types of the operands, and what follows from them; None where an operand is absent."""

    name: str
    x: TensorType
    query: TensorType
    key: TensorType
    value: TensorType
    out: TensorType
    context: TensorType | None = None
    query_down: TensorType | None = None
    key_down: TensorType | None = None
    value_down: TensorType | None = None
    out_up: TensorType | None = None
    query_bias: TensorType | None = None
    value_bias: TensorType | None = None
    out_bias: TensorType | None = None
    mask: TensorType | None = None
    bias: TensorType | None = None
    residual: TensorType | None = None
    shared: str = "none"
    bias_inside: int = 0

    def result(self, heads: int, kv_heads: int, blocks: int) -> TensorType:
        """Return the type of y; raise ShapeError where the operands do not fit together."""
        self._check_heads(heads, kv_heads, blocks)
        readers = self._readers()
        context = self.x if self.context is None else self.context
        for label, x, weight in (
            ("query", self.x, self.query),
            ("key", context, self.key),
            ("value", context, self.value),
        ):
            self._check_source(label, x, getattr(self, f"{readers.get(label, label)}_down"), weight)
        for label, weight, count in (("query", self.query, heads), ("key", self.key, kv_heads)):
            width = _matrix(self.name, label, weight)[0]
            fits = not isinstance(width, int) or width % count == 0
            require(fits, f"{self.name}: {label} must be a multiple of {count} heads wide; got {weight}")
        self._same(self.query, heads, self.key, kv_heads, "query and key")
        width, inner = _matrix(self.name, "out", self.out)
        self._same(self.value, kv_heads, TensorType(None, (inner, width)), heads, "value and out")
        if self.out_up is not None:
            rank, width = width, _matrix(self.name, "out_up", self.out_up)[0]
            taken = _matrix(self.name, "out_up", self.out_up)[1]
            require(rank == taken, f"{self.name}: ranks differ: out {rank}, out_up {taken}")
        wide = _matrix(self.name, "value", self.value)[0] if self.bias_inside else width
        for label, vector, extent in (("out_bias", self.out_bias, width), ("value_bias", self.value_bias, wide)):
            fits = vector is None or vector.shape == (extent,)
            require(fits, f"{self.name}: {label} must be [{extent}]; got {vector}")
        require(self.x.rank in (None, 3), f"{self.name}: x must have 3 dims; got {self.x}")
        result = TensorType(self.x.dtype, None if self.x.shape is None else (*self.x.shape[:-1], width))
        fits = (
            self.residual is None or None in (self.residual.shape, result.shape) or self.residual.shape == result.shape
        )
        require(fits, f"{self.name}: residual must be {result}; got {self.residual}")
        return result

    def cost(self, heads: int, kv_heads: int, blocks: int) -> OpCost:
        """Multiply-adds of all products; the largest buffer inside is a group's, or what a first factor makes.

        Scores count as no buffer, as for every attention: runtimes' operators for it hold none.
        """
        context = self.x if self.context is None else self.context
        if self.x.shape is None or context.shape is None:
            return OpCost()
        rows, keys = numel(self.x.shape[:-1]), numel(context.shape[:-1])
        macs = rows * _elements(self.query_down, self.query, self.out, self.out_up)
        macs += keys * _elements(self.key_down, self.key, self.value_down, self.value)
        width = dim_expr(_matrix(self.name, "query", self.query)[0])
        width += dim_expr(_matrix(self.name, "value", self.value)[0]) * sympy.Rational(heads, kv_heads)
        pairs = rows * dim_expr(context.shape[-2])
        macs += pairs * width
        buffers = self._buffers(rows, keys, blocks)
        attended = (
            rows * dim_expr(_matrix(self.name, "value", self.value)[0]) * sympy.Rational(heads, kv_heads * blocks)
        )
        total = 0 if self.out_up is None else rows * dim_expr(_matrix(self.name, "out", self.out)[0])
        unit = sympy.Rational(dtype_bits(self.x.dtype), 8)
        inner = sum(buffers, attended + total)  # all at once behind the second group, whose sum waits for it
        return OpCost(macs=macs, transient_bytes=unit * sympy.Max(*buffers), inner_bytes=unit * inner)

    def _buffers(self, rows: sympy.Expr, keys: sympy.Expr, blocks: int) -> list[sympy.Expr]:
        """Elements of what lies between the products."""
        groups = [(rows, self.query), (keys, self.key), (keys, self.value)]
        buffers = [count * dim_expr(_matrix(self.name, "weight", weight)[0]) / blocks for count, weight in groups]
        downs = [(rows, self.query_down), (keys, self.key_down), (keys, self.value_down)]
        buffers += [count * dim_expr(_matrix(self.name, "down", down)[0]) for count, down in downs if down is not None]
        return buffers

    def check_hiding(self, *, causal: bool) -> None:
        """Raise ShapeError where a value_bias stands beside two masks, which only together tell who sees a key."""
        masks = [name for name in ("mask", "bias") if getattr(self, name) is not None]
        hiding = [*masks, "causal"] if causal else masks
        fits = self.value_bias is None or len(hiding) <= 1 or bool(self.bias_inside)
        require(fits, f"{self.name}: value_bias needs keys hidden by one of them alone; got {' and '.join(hiding)}")

    def _check_heads(self, heads: int, kv_heads: int, blocks: int) -> None:
        grouped = heads >= 1 and kv_heads >= 1 and heads % kv_heads == 0
        require(grouped, f"{self.name}: heads must be a multiple of kv_heads; got {heads} and {kv_heads}")
        fits = blocks >= 1 and kv_heads % blocks == 0
        require(fits, f"{self.name}: blocks must divide the {kv_heads} key and value heads; got {blocks}")
        for label, offset in (("mask", self.mask), ("bias", self.bias)):
            require(offset is None or offset.rank in (None, 4), f"{self.name}: {label} must have 4 dims; got {offset}")
            of_heads = offset is not None and offset.shape is not None and offset.shape[1] != 1
            one = not of_heads or (blocks == 1 and (self.value_bias is None or bool(self.bias_inside)))
            require(one, f"{self.name}: a {label} of each head needs one block and no value_bias outside; got {offset}")

    def _readers(self) -> dict[str, str]:
        """Whose first factor each projection reads, where that is not its own."""
        known: dict[str, dict[str, str]] = {
            "none": {},
            "kv": {"value": "key"},
            "qkv": {"key": "query", "value": "query"},
        }
        require(self.shared in known, f"{self.name}: shared must be none, kv or qkv; got {self.shared}")
        for reader, owner in known[self.shared].items():
            own, other = getattr(self, f"{reader}_down"), getattr(self, f"{owner}_down")
            fits = own is None and other is not None
            require(fits, f"{self.name}: shared={self.shared} needs {owner}_down and no {reader}_down")
        fits = self.shared != "qkv" or self.context is None
        require(fits, f"{self.name}: shared=qkv needs keys and values of x; got context {self.context}")
        return known[self.shared]

    def _check_source(self, label: str, x: TensorType, down: TensorType | None, weight: TensorType) -> None:
        _, inner = _matrix(self.name, label, weight)
        if down is not None:
            rank, width = _matrix(self.name, f"{label}_down", down)
            require(rank == inner, f"{self.name}: ranks differ: {label}_down {rank}, {label} {inner}")
            inner = width
        fits = x.shape is None or x.shape[-1] == inner
        require(fits, f"{self.name}: {label} takes {inner} features; got {x}")
        if label == "query" and self.query_bias is not None:
            wide = _matrix(self.name, label, weight)[0]
            require(
                self.query_bias.shape == (wide,), f"{self.name}: query_bias must be [{wide}]; got {self.query_bias}"
            )

    def _same(self, one: TensorType, count: int, other: TensorType, other_count: int, label: str) -> None:
        first, second = _matrix(self.name, label, one)[0], _matrix(self.name, label, other)[0]
        if isinstance(first, int) and isinstance(second, int):
            fits = first * other_count == second * count
            require(
                fits,
                f"{self.name}: {label} must have heads of one width; got {first}/{count} and {second}/{other_count}",
            )


def _matrix(name: str, label: str, type_: TensorType) -> tuple[Dim, Dim]:
    require(type_.rank == 2, f"{name}: {label} must be 2-D; got {type_}")
    assert type_.shape is not None
    return type_.shape[0], type_.shape[1]


def _elements(*types: TensorType | None) -> sympy.Expr:
    return sum((numel(type_.shape) for type_ in types if type_ and type_.shape), sympy.Integer(0))
