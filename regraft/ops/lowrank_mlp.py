"""Feed-forward layer in factors, computed block by block, so that nothing of the full hidden width ever exists.

    p = x · in_downᵀ                                     x: [..., in], in_down: [r1, in]
    s = Σ_d act(p · in_up_dᵀ + in_bias_d) · out_down_dᵀ      in_up: [hidden, r1], out_down: [r2, hidden]
    y = s · out_upᵀ + out_bias + residual                out_up: [out, r2], residual: [..., out]

over `blocks` blocks d of the hidden width, each ceil(hidden / blocks) wide but the last, which has the rest. Without
in_down the layer that comes in is dense (in_up: [hidden, in]), without out_up the one that goes out (out_down:
[out, hidden]). Gated (SwiGLU, GEGLU), with g = x · gate_downᵀ, a block of the hidden width is

    act(g · gate_up_dᵀ + gate_bias_d) · (p · in_up_dᵀ + in_bias_d)

`activation` is one of gelu, gelu_tanh, relu, silu, tanh, sigmoid. The function is that of the layers one after the
other, up to the order of a sum. Multiply-adds are the same, too; the activations take rows · (r1 + r2 + 2 blocks)
numbers instead of rows · 2 · hidden. In ONNX each block depends on the sum before it, without which ONNX Runtime's
default order computes many blocks before it adds one up.

Sources: FlashSVD (Shao et al. 2025, arXiv:2508.01506), in the form in which one owner of rows walks the hidden width;
gates: Shazeer 2020, arXiv:2002.05202.
"""

from typing import Final

from regraft.graph.cost_types import OpCost
from regraft.graph.types import TensorType
from regraft.ops._builder import Builder, V
from regraft.ops._mlp import MlpTypes, branch, hidden_sum
from regraft.ops._op import Example, Op


def infer(
    x: TensorType,
    in_up: TensorType,
    out_down: TensorType,
    *,
    activation: str,
    blocks: int,
    **optional: TensorType | None,
) -> TensorType:
    """Return the type of y: x's leading dims, then `out`."""
    return MlpTypes(op.name, x, in_up, out_down, **optional).result(activation, blocks)


def decompose(
    b: Builder[V],
    x: V,
    in_up: V,
    out_down: V,
    in_down: V | None = None,
    out_up: V | None = None,
    in_bias: V | None = None,
    out_bias: V | None = None,
    gate_down: V | None = None,
    gate_up: V | None = None,
    gate_bias: V | None = None,
    residual: V | None = None,
    *,
    activation: str,
    blocks: int,
) -> V:
    """Sum over blocks of the hidden width, on rows; then the last factor, in the shape of x."""
    rows = b.as_rows(x)
    inner = branch(b, rows, in_down, in_up, in_bias, blocks)
    gate = None if gate_up is None else branch(b, rows, gate_down, gate_up, gate_bias, blocks)
    y = b.like_rows_of(hidden_sum(b, inner, gate, b.split(out_down, 1, blocks), activation), x)
    del inner, gate  # their buffers are not needed beside that of y
    y = y if out_up is None else b.linear(y, out_up)
    y = y if out_bias is None else b.add_to(y, out_bias)
    return y if residual is None else b.add_to(y, residual)


def cost(
    x: TensorType,
    in_up: TensorType,
    out_down: TensorType,
    *,
    activation: str,
    blocks: int,
    **optional: TensorType | None,
) -> OpCost:
    """Multiply-adds of all products, and the largest buffer between them."""
    del activation
    return MlpTypes(op.name, x, in_up, out_down, **optional).cost(blocks)


def _example(
    name: str,
    x: tuple[int, ...],
    widths: tuple[int, int],
    ranks: tuple[int, int],
    activation: str,
    blocks: int,
    *,
    absent: str = "",
    gate_rank: int | None = None,
    dynamic: tuple[int, ...] = (0,),
) -> Example:
    """An example of hidden and outer width, and of ranks (0: dense); `absent` names operands that are left out."""
    (hidden, out), (first, second) = widths, ranks
    shapes = {"x": x, "in_up": (hidden, first or x[-1]), "out_down": (second or out, hidden)}
    shapes |= {"in_down": (first, x[-1])} if first else {}
    shapes |= {"out_up": (out, second)} if second else {}
    shapes |= {"in_bias": (hidden,), "out_bias": (out,)}
    if gate_rank is not None:
        shapes |= {"gate_up": (hidden, gate_rank or x[-1]), "gate_bias": (hidden,)}
        shapes |= {"gate_down": (gate_rank, x[-1])} if gate_rank else {}
    if not dynamic:
        shapes |= {"residual": (*x[:-1], out)}
    kept = {operand: shape for operand, shape in shapes.items() if operand not in absent.split()}
    return Example(name, kept, {"activation": activation, "blocks": blocks}, dynamic)


op: Final = Op(
    name="lowrank_mlp",
    doc="y = act(x · in) · out, a feed-forward layer in factors, computed block by block of its hidden width",
    infer=infer,
    decompose=decompose,
    cost=cost,
    linear_weights=("in_up", "out_down", "in_down", "out_up", "gate_down", "gate_up"),
    examples=(
        _example("both in factors", (2, 5, 7), (12, 6), (3, 4), "gelu", 3, dynamic=(0, 1)),
        _example("odd blocks", (3, 7), (11, 5), (2, 3), "gelu_tanh", 4),
        _example("one block", (2, 5, 7), (9, 6), (3, 4), "tanh", 1, dynamic=(0, 1)),
        _example("no biases", (2, 5, 7), (10, 6), (3, 4), "relu", 3, absent="in_bias out_bias", dynamic=(0, 1)),
        _example("dense in", (4, 7), (10, 6), (0, 3), "silu", 2),
        _example("dense out", (2, 3, 7), (10, 6), (3, 0), "sigmoid", 2, dynamic=(0, 1)),
        _example("both dense", (4, 7), (10, 6), (0, 0), "gelu", 2),
        _example("residual", (2, 5, 7), (12, 6), (3, 4), "gelu", 3, dynamic=()),
        _example("gated", (2, 5, 7), (12, 6), (3, 4), "silu", 3, gate_rank=2, dynamic=(0, 1)),
        _example(
            "gated, no biases",
            (4, 7),
            (11, 7),
            (3, 4),
            "gelu_tanh",
            4,
            gate_rank=2,
            absent="in_bias gate_bias out_bias",
        ),
        _example("gated, dense", (2, 5, 7), (11, 6), (0, 0), "gelu", 2, gate_rank=0, dynamic=()),
        _example("extents of one", (3, 1), (1, 1), (1, 1), "gelu", 1),
        _example("four dims", (2, 3, 4, 6), (130, 8), (5, 7), "gelu", 2, dynamic=(0, 2)),
    ),
)
