"""A feed-forward layer in factors: what it computes, what it never holds, and what it refuses."""

import math
import weakref
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx_ir.passes.common import InlinePass
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from regraft.errors import ShapeError
from regraft.frontends.onnx import single_node_model
from regraft.graph.activation import FUNCTIONS
from regraft.graph.types import TensorType, type_of
from regraft.ops import evaluate, get_op

OP = get_op("lowrank_mlp")
HIDDEN = 96
"""Unlike any other extent of the examples below."""


def normal(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64) / math.sqrt(shape[-1])


def factors(width: int = 20, hidden: int = HIDDEN, ranks: tuple[int, int] = (5, 6)) -> dict[str, Tensor]:
    first, second = ranks
    return {
        "in_up": normal(hidden, first, seed=1),
        "out_down": normal(second, hidden, seed=2),
        "in_down": normal(first, width, seed=3),
        "out_up": normal(width, second, seed=4),
        "in_bias": normal(hidden, seed=5),
        "out_bias": normal(width, seed=6),
    }


def layer(**extra: Tensor) -> dict[str, Tensor]:
    return {**factors(), **extra}


def gates(width: int = 20, hidden: int = HIDDEN, rank: int = 7) -> dict[str, Tensor]:
    return {
        "gate_up": normal(hidden, rank, seed=7),
        "gate_down": normal(rank, width, seed=8),
        "gate_bias": normal(hidden, seed=9),
    }


def unfused(t: dict[str, Tensor], activation: str) -> Tensor:
    """The layers one after the other."""
    inner = t["x"] @ t["in_down"].t() @ t["in_up"].t() + t["in_bias"]
    if "gate_up" in t:
        opened = FUNCTIONS[activation](t["x"] @ t["gate_down"].t() @ t["gate_up"].t() + t["gate_bias"])
        hidden = opened * inner
    else:
        hidden = FUNCTIONS[activation](inner)
    y = hidden @ t["out_down"].t() @ t["out_up"].t() + t["out_bias"]
    return y + t["residual"] if "residual" in t else y


# What it computes


@given(
    rows=st.lists(st.integers(1, 4), min_size=0, max_size=3),
    hidden=st.integers(1, 40),
    wish=st.integers(1, 12),
    activation=st.sampled_from(list(FUNCTIONS)),
    gated=st.booleans(),
    residual=st.booleans(),
)
@settings(deadline=None, max_examples=120)
def test_it_is_the_layers_one_after_the_other(
    rows: list[int], hidden: int, wish: int, activation: str, gated: bool, residual: bool
) -> None:
    blocks = -(-hidden // -(-hidden // min(wish, hidden)))
    x = normal(*rows, 9, seed=11)
    tensors = {"x": x, **factors(9, hidden, (3, 4)), **(gates(9, hidden, 2) if gated else {})}
    tensors |= {"residual": normal(*rows, 9, seed=12)} if residual else {}
    found = evaluate(OP, tensors, {"activation": activation, "blocks": blocks})
    torch.testing.assert_close(found, unfused(tensors, activation), rtol=1e-12, atol=1e-12)


def test_factors_of_full_rank_are_the_dense_layer() -> None:
    x, dense_in, dense_out = normal(4, 5, 9, seed=1), normal(30, 9, seed=2), normal(9, 30, seed=3)
    left, sizes, right = torch.linalg.svd(dense_in, full_matrices=False)
    tensors = {"x": x, "in_up": left * sizes, "in_down": right, "out_down": dense_out}
    found = evaluate(OP, tensors, {"activation": "gelu", "blocks": 4})
    wanted = torch.nn.functional.gelu(x @ dense_in.t()) @ dense_out.t()
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["x", "residual"])
def test_its_operands_stay_as_they_were(name: str) -> None:
    tensors = layer(x=normal(3, 20, seed=1), residual=normal(3, 20, seed=2))
    before = tensors[name].clone()
    with torch.no_grad():
        evaluate(OP, tensors, {"activation": "relu", "blocks": 3})
    assert torch.equal(tensors[name], before)


def test_no_rows_give_no_rows() -> None:
    found = evaluate(OP, layer(x=torch.zeros(0, 3, 20, dtype=torch.float64)), {"activation": "gelu", "blocks": 3})
    assert found.shape == (0, 3, 20)


def test_it_runs_under_autocast_and_under_vmap() -> None:
    tensors = {name: tensor.float() for name, tensor in layer(x=normal(3, 20, seed=1)).items()}
    attributes = {"activation": "gelu", "blocks": 3}
    wanted = evaluate(OP, tensors, attributes)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = evaluate(OP, tensors, attributes)
    torch.testing.assert_close(found.float(), wanted, rtol=5e-2, atol=5e-2)

    def of_one_row(x: Tensor) -> Tensor:
        return evaluate(OP, {**tensors, "x": x[None]}, attributes)[0]

    rows = torch.func.vmap(of_one_row)(tensors["x"])
    torch.testing.assert_close(rows, wanted)


# What it never holds


class Allocations(TorchDispatchMode):
    """Watches what operations make: shapes of results, and the largest number of bytes alive at once."""

    def __init__(self, given: Iterable[Tensor]) -> None:
        super().__init__()
        self.shapes: set[tuple[int, ...]] = set()
        self.live = self.peak = 0
        self.known = {tensor.untyped_storage().data_ptr() for tensor in given}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, Tensor):
                self._made(tensor)
        return result

    def _made(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage.data_ptr() in self.known or not storage.nbytes():
            return
        self.shapes.add(tuple(tensor.shape))
        self.known.add(storage.data_ptr())
        self.live += storage.nbytes()
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._freed, storage.data_ptr(), storage.nbytes())

    def _freed(self, place: int, size: int) -> None:
        self.known.discard(place)
        self.live -= size


@pytest.mark.parametrize("gated", [False, True])
def test_torch_makes_nothing_of_the_hidden_width_and_frees_each_block(gated: bool) -> None:
    rows, width, blocks = 64, 20, 8
    tensors = layer(x=normal(rows, width, seed=1), **(gates() if gated else {}))
    with torch.no_grad(), Allocations(tensors.values()) as made:
        y = evaluate(OP, tensors, {"activation": "gelu", "blocks": blocks})
    assert y.shape == (rows, width)
    assert made.shapes
    assert not [shape for shape in made.shapes if HIDDEN in shape]
    block = HIDDEN // blocks
    allowed = 5 + 6 + (7 if gated else 0) + (3 if gated else 2) * block  # the factors' results and a block's buffers
    assert made.peak <= rows * max(allowed, 6 + width) * 8


def test_torch_holds_as_little_of_a_residual_layer_as_of_a_plain_one() -> None:
    tensors = layer(x=normal(64, 20, seed=1), residual=normal(64, 20, seed=2))
    with torch.no_grad(), Allocations(tensors.values()) as made:
        evaluate(OP, tensors, {"activation": "gelu", "blocks": 8})
    assert made.peak <= 64 * (5 + 6 + 2 * HIDDEN // 8) * 8


def called(opset: int, *, gated: bool = False, bias: bool = True) -> ir.Model:
    """A model that calls the function, over four blocks."""
    tensors = {"x": normal(2, 3, 20, seed=1).float()}
    tensors |= {name: tensor.float() for name, tensor in layer(**(gates() if gated else {})).items()}
    if not bias:
        tensors = {name: tensor for name, tensor in tensors.items() if "bias" not in name}
    return single_node_model(OP, tensors, {"activation": "gelu", "blocks": 4}, opset, (0, 1))


def body(opset: int, *, gated: bool = False, bias: bool = True) -> ir.Model:
    """The same, inlined."""
    model = called(opset, gated=gated, bias=bias)
    InlinePass()(model)
    return model


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("opset", [13, 18, 21])
def test_no_value_of_the_onnx_body_but_weights_has_the_hidden_width(opset: int, gated: bool) -> None:
    proto = onnx.shape_inference.infer_shapes(ir.to_proto(body(opset, gated=gated)), strict_mode=True, data_prop=True)
    shapes = {
        value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in proto.graph.value_info
    }
    assert any(HIDDEN // 4 in shape[-1:] for shape in shapes.values()) or opset < 18  # blocks are seen
    assert not [name for name, shape in shapes.items() if HIDDEN in shape and not name.startswith("node.")]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("gated", [False, True])
def test_every_block_of_the_onnx_body_waits_for_the_sum_before_it(gated: bool, bias: bool) -> None:
    model = body(18, gated=gated, bias=bias)
    behind: dict[str, set[str]] = {}
    for node in model.graph:
        known = {str(value.name): behind.get(str(value.name), set()) for value in node.inputs if value is not None}
        for output in node.outputs:
            behind[str(output.name)] = set().union(known, *known.values())
    activated = [str(node.outputs[0].name) for node in model.graph if node.op_type == "Erf"]
    assert len(activated) == 4
    # A chain: each activation depends on the one before it.
    assert all(first in behind[second] for first, second in pairwise(activated))


def test_onnx_runtime_fuses_the_activation_and_keeps_the_order(tmp_path: Path) -> None:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    ort.InferenceSession(ir.to_proto(called(18)).SerializeToString(), options, providers=["CPUExecutionProvider"])
    nodes = onnx.load(tmp_path / "optimized.onnx").graph.node
    assert sum(node.op_type in ("Gelu", "BiasGelu") for node in nodes) == 4
    assert not [node for node in nodes if node.op_type in ("Erf", "Split", "Cast")]


# What it refuses and costs


def types(**changed: tuple[int, ...] | None) -> dict[str, TensorType]:
    known = {name: type_of(tensor.float()) for name, tensor in layer(x=normal(3, 20, seed=1)).items()}
    known |= {name: TensorType("float32", shape) for name, shape in changed.items() if shape is not None}
    return {name: type_ for name, type_ in known.items() if changed.get(name, ()) is not None}


REFUSALS: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({}, {"activation": "elu"}, "activation must be one of gelu, gelu_tanh, relu, silu, tanh, sigmoid; got 'elu'"),
    ({}, {"blocks": 0}, "blocks must be at least 1; got 0"),
    ({}, {"blocks": 95}, "a hidden width of 96 has no 95 blocks of 2"),
    ({"x": (3, 21)}, {}, "x ends in 21, 20 are taken"),
    ({"x": ()}, {}, "x must have at least one dim; got a scalar"),
    ({"in_up": (96,)}, {}, "in_up must be 2-D; got float32[96]"),
    ({"in_down": (4, 20)}, {}, "ranks differ: in_down 4, in_up 5"),
    ({"out_up": (20, 7)}, {}, "ranks differ: out_down 6, out_up 7"),
    ({"out_down": (6, 95)}, {}, "out_down takes 95 features, in_up makes 96"),
    ({"in_bias": (95,)}, {}, "in_bias must be [96]; got float32[95]"),
    ({"out_bias": (21,)}, {}, "out_bias must be [20]; got float32[21]"),
    ({"gate_bias": (96,)}, {}, "a gate needs gate_up"),
    ({"gate_up": (95, 20)}, {}, "gate_up makes 95 features, in_up 96"),
    ({"gate_up": (96, 19)}, {}, "in takes 20, gate takes 19"),
    ({"residual": (3, 21)}, {}, "residual must be float32[3, 20]; got float32[3, 21]"),
]


@pytest.mark.parametrize(("changed", "attributes", "reason"), REFUSALS)
def test_operands_that_do_not_fit_are_refused(changed: dict[str, Any], attributes: dict[str, Any], reason: str) -> None:
    with pytest.raises(ShapeError) as caught:
        OP.infer(**types(**changed), **{"activation": "gelu", "blocks": 4, **attributes})
    assert str(caught.value) == f"lowrank_mlp: {reason}"


def test_it_costs_its_products_and_holds_the_widest_thing_inside() -> None:
    cost = OP.cost(**types(), activation="gelu", blocks=4)
    assert int(cost.macs) == 3 * (20 * 5 + 5 * 96 + 96 * 6 + 6 * 20)
    assert int(cost.transient_bytes) == 3 * 24 * 4
    assert int(cost.inner_bytes) == 3 * (5 + 24 + 24 + 6) * 4  # p, a block before and behind its activation, s
    dense = OP.cost(**types(in_down=None, out_up=None, in_up=(96, 20), out_down=(20, 96)), activation="gelu", blocks=96)
    assert int(dense.macs) == 3 * 2 * 20 * 96
    assert int(dense.transient_bytes) == 3 * 4
    assert int(dense.inner_bytes) == 3 * (1 + 1) * 4
