"""Kernels for the CPU against the float64 oracle of their op: odd shapes, few rows, strides, and what is refused."""

from typing import Any

import pytest
import torch
from torch import Tensor

from regraft.backends.tvm.kernels.cpu import Compiled, Operands, _ir, _kernel, compile_kernel, cpu_kernels
from regraft.backends.tvm.kernels.cpu._host import Host
from regraft.errors import InputError, OptionError
from regraft.ops import Example, Op, evaluate, get_op

EXAMPLES = [
    pytest.param(get_op(name), example, marks=[pytest.mark.slow] if place > 1 else [])
    for name in cpu_kernels()
    for place, example in enumerate(get_op(name).examples)
]
"""Compiling takes up to a second; the third example and later ones are run by the slow tests."""
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}
"""Largest ‖y - ŷ‖ / ‖y‖: a few hundred roundings."""


def label(value: Any) -> str:
    return str(getattr(value, "name", value)).replace(" ", "_")


def compiled(op: Op, tensors: dict[str, Tensor], attributes: Any = None, **tiles: int) -> Compiled | str:
    kernel = cpu_kernels()[op.name]
    varying = {name: tensor.dtype for name, tensor in tensors.items() if name in kernel.activations}
    constants = {name: tensor for name, tensor in tensors.items() if name not in varying}
    shapes = {name: (*(None for _ in tensors[name].shape[1:]), tensors[name].shape[-1]) for name in varying}
    return compile_kernel(kernel, Operands(constants, varying, attributes or {}, shapes), tiles)


def varying(op: Op, tensors: dict[str, Tensor]) -> list[Tensor]:
    return [
        tensors[name] for name in (each.name for each in op.operands) if name in activations(op) and name in tensors
    ]


def activations(op: Op) -> tuple[str, ...]:
    return cpu_kernels()[op.name].activations


def oracle(op: Op, tensors: dict[str, Tensor], attributes: Any = None) -> Tensor:
    exact = {name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    return evaluate(op, exact, dict(attributes or {}))


def check(op: Op, tensors: dict[str, Tensor], attributes: Any = None, **tiles: int) -> None:
    kernel = compiled(op, tensors, attributes, **tiles)
    assert isinstance(kernel, Compiled), kernel
    got, wanted = kernel(*varying(op, tensors)), oracle(op, tensors, attributes)
    x = next(iter(tensors.values()))
    assert (got.dtype, got.shape) == (x.dtype, wanted.shape)
    assert float((got.double() - wanted).norm() / wanted.norm().clamp_min(1e-30)) <= TOLERANCE[x.dtype]


@pytest.mark.parametrize(("op", "example"), EXAMPLES, ids=label)
def test_a_kernel_computes_what_the_oracle_of_its_op_does(op: Op, example: Example) -> None:
    check(op, example.tensors(torch.float32), example.attributes)


@pytest.mark.parametrize("name", cpu_kernels())
def test_a_kernel_computes_the_same_side_by_side_as_alone(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    op = get_op(name)
    tensors, attributes = op.examples[0].tensors(torch.float32), op.examples[0].attributes
    alone = compiled(op, tensors, attributes)
    assert isinstance(alone, Compiled)
    found = alone(*varying(op, tensors))
    monkeypatch.setattr(_ir, "LITTLE", -1)
    monkeypatch.setattr(_kernel, "_CODE", {})
    side_by_side = compiled(op, tensors, attributes)
    assert isinstance(side_by_side, Compiled)
    torch.testing.assert_close(side_by_side(*varying(op, tensors)), found, atol=1e-6, rtol=1e-6)


def factors(rows: int, width: int = 33, rank: int = 17, columns: int = 65) -> dict[str, Tensor]:
    example = Example("", {"x": (rows, width), "down": (rank, width), "up": (columns, rank), "bias": (columns,)})
    return example.tensors(torch.float64)


LOWRANK = get_op("lowrank_linear")


@pytest.mark.parametrize("rows", [1, 2, 3, 7, 8, 9, 31, 33, 100])
def test_any_number_of_rows_is_computed_exactly_by_the_same_code(rows: int) -> None:
    check(LOWRANK, factors(rows))


def test_no_rows_give_no_results() -> None:
    kernel = compiled(LOWRANK, factors(1))
    assert isinstance(kernel, Compiled)
    assert kernel(torch.empty(0, 33, dtype=torch.float64)).shape == (0, 65)
    assert kernel(torch.empty(2, 0, 33, dtype=torch.float64)).shape == (2, 0, 65)


def test_strided_and_unaligned_inputs_are_read_in_their_order() -> None:
    tensors = factors(6)
    kernel = compiled(LOWRANK, tensors)
    assert isinstance(kernel, Compiled)
    wanted = kernel(tensors["x"])
    turned = tensors["x"].t().contiguous().t()
    unaligned = torch.cat([torch.zeros(1, dtype=torch.float64), tensors["x"].flatten()])[1:].view(6, 33)
    assert not turned.is_contiguous()
    assert unaligned.data_ptr() % 64
    for x in (turned, unaligned, torch.stack([tensors["x"], -tensors["x"]], dim=1)[:, 0]):
        torch.testing.assert_close(kernel(x), wanted, atol=0, rtol=0)


@pytest.mark.parametrize("tiles", [{"block_rows": 2, "block_vectors": 1}, {"block_vectors": 4, "row_chunk": 16}])
def test_tiles_change_the_code_and_not_the_result(tiles: dict[str, int]) -> None:
    tensors = factors(37)
    check(LOWRANK, tensors, **tiles)
    default, other = compiled(LOWRANK, tensors), compiled(LOWRANK, tensors, **tiles)
    assert isinstance(default, Compiled)
    assert isinstance(other, Compiled)
    assert default.key != other.key


def test_layers_of_one_shape_share_their_code() -> None:
    first, second = (compiled(LOWRANK, factors(rows)) for rows in (3, 5))
    assert isinstance(first, Compiled)
    assert isinstance(second, Compiled)
    assert first.key == second.key


def test_a_tile_that_does_not_exist_is_refused() -> None:
    with pytest.raises(
        OptionError, match=r"tvm kernel lowrank_linear: has no tile block_rows=3; it has: block_rows \("
    ):
        compiled(LOWRANK, factors(1), block_rows=3)


def test_element_types_that_differ_do_not_fit_and_it_is_said_why() -> None:
    tensors = factors(2)
    assert compiled(LOWRANK, {**tensors, "up": tensors["up"].float()}) == (
        "activations and factors must all be float32, or all float64"
    )
    assert isinstance(compiled(LOWRANK, {name: tensor.half() for name, tensor in tensors.items()}), str)


def test_an_input_of_another_type_than_announced_is_refused() -> None:
    kernel = compiled(LOWRANK, factors(2))
    assert isinstance(kernel, Compiled)
    with pytest.raises(
        InputError, match=r"tvm kernel lowrank_linear: needs torch.float64 on cpu; got torch.float32 on cpu"
    ):
        kernel(torch.ones(2, 33))


def attended(queries: int, keys: int, heads: int = 4, kv_heads: int = 2, head: int = 20, value: int = 12) -> Any:
    generator = torch.Generator().manual_seed(0)
    shapes = {"q": (2, queries, heads * head), "k": (2, keys, kv_heads * head), "v": (2, keys, kv_heads * value)}
    tensors = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    attributes = {"heads": heads, "kv_heads": kv_heads, "split": 1, "scale": 0.3, "causal": 0, "rows": 0}
    return tensors, attributes


ATTENTION = get_op("multi_head_attention")


@pytest.mark.parametrize("causal", [0, 1])
def test_attention_over_several_blocks_of_keys_is_that_over_all_at_once(causal: int) -> None:
    tensors, attributes = attended(37, 301)
    check(ATTENTION, tensors, {**attributes, "causal": causal}, key_block=64)


def test_a_query_that_sees_nothing_gives_zero_in_every_block() -> None:
    tensors, attributes = attended(35, 150)
    tensors["mask"] = torch.rand(2, 1, 35, 150, generator=torch.Generator().manual_seed(1)) < 0.3
    tensors["mask"][0, 0, 3] = False
    tensors["mask"][1, 0, 5, :140] = False
    tensors["bias"] = torch.randn(1, 4, 1, 150, generator=torch.Generator().manual_seed(2))
    tensors["bias"][..., 7] = float("-inf")
    kernel = compiled(ATTENTION, tensors, attributes, key_block=64)
    assert isinstance(kernel, Compiled)
    got = kernel(*varying(ATTENTION, tensors))
    torch.testing.assert_close(got.double(), oracle(ATTENTION, tensors, attributes), atol=1e-5, rtol=1e-5)
    assert not got[0, 3].any()


def test_large_scores_overflow_nowhere() -> None:
    tensors, attributes = attended(5, 70)
    tensors["q"] *= 200
    check(ATTENTION, tensors, attributes)


def test_attention_of_no_queries_and_of_half_precision() -> None:
    tensors, attributes = attended(3, 4)
    kernel = compiled(ATTENTION, tensors, attributes)
    assert isinstance(kernel, Compiled)
    assert kernel(tensors["q"][:, :0], tensors["k"], tensors["v"]).shape == (2, 0, 48)
    halves = {name: tensor.half() for name, tensor in tensors.items()}
    assert compiled(ATTENTION, halves, attributes) == "activations must all be float32"


PLAIN = Host("x86-64", frozenset({"sse2"}))


@pytest.mark.parametrize(
    ("name", "place"), [("int8_outlier_linear", 0), ("shift_linear", 0), ("shift_linear", 1), ("shift_linear", 3)]
)
def test_processors_without_vector_extensions_get_other_code_of_the_same_results(name: str, place: int) -> None:
    op = get_op(name)
    example = op.examples[place]
    tensors = example.tensors(torch.float32)
    kernel = cpu_kernels()[name]
    constants = {key: tensor for key, tensor in tensors.items() if key != "x"}
    operands = Operands(constants, {"x": torch.float32}, example.attributes or {}, {"x": tuple(tensors["x"].shape)})
    found = compile_kernel(kernel, operands, host=PLAIN)
    assert isinstance(found, Compiled)
    wanted = oracle(op, tensors, example.attributes)
    assert float((found(tensors["x"]).double() - wanted).norm() / wanted.norm()) <= 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("rows", [1, 3, 70])
@pytest.mark.parametrize("name", ["lowrank_mlp", "int8_outlier_linear", "shift_linear", "monarch_linear"])
def test_a_kernel_takes_any_number_of_rows(name: str, rows: int) -> None:
    op = get_op(name)
    example = op.examples[0]
    kernel = compiled(op, example.tensors(torch.float32), example.attributes)
    assert isinstance(kernel, Compiled)
    shape = (rows, *example.shapes["x"][1:])
    tensors = {**example.tensors(torch.float32), "x": torch.randn(shape, generator=torch.Generator().manual_seed(3))}
    wanted = oracle(op, tensors, example.attributes)
    assert float((kernel(tensors["x"]).double() - wanted).norm() / wanted.norm()) <= 1e-5


def test_no_number_of_columns_outside_of_the_input_is_read() -> None:
    op = get_op("int8_outlier_linear")
    tensors = op.examples[0].tensors(torch.float32)
    tensors["outliers"][0] = tensors["x"].shape[-1]
    assert compiled(op, tensors, op.examples[0].attributes) == "outliers must be places from 0 to 6"
