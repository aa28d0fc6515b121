"""Every structured op as a torch op, on every example: the same meaning, traced, differentiated, checked."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from regraft.errors import UnknownNameError
from regraft.frontends.torch import register_ops
from regraft.frontends.torch.library import schema_of, torch_op
from regraft.graph.types import type_of
from regraft.ops import Example, Op, all_ops, evaluate, get_op

CASES = [
    pytest.param(op, example, id=f"{op.name}-{example.name.replace(' ', '-')}")
    for op in all_ops().values()
    for example in op.examples
]

WITHOUT_PRODUCTS = {"combined_mask"}

_QUICK_CHECKS = ("test_schema", "test_faketensor")
_SLOW_CHECKS = ("test_autograd_registration", "test_aot_dispatch_dynamic")


def operands(op: Op, tensors: Mapping[str, Tensor]) -> tuple[Tensor | None, ...]:
    return tuple(tensors.get(operand.name) for operand in op.operands)


def call(op: Op, tensors: Mapping[str, Tensor], example: Example) -> Tensor:
    return torch_op(op.name)(*operands(op, tensors), **(example.attributes or {}))


def elsewhere(op: Op, example: Example) -> Example:
    """The example with other extents at its dynamic dims."""
    first = op.operands[0].name
    shape = list(example.shapes[first])  # type: ignore[arg-type]
    for place in example.dynamic:
        shape[place] += 3
    return replace(example, shapes={**example.shapes, first: tuple(shape)})


class Holder(nn.Module):
    """Calls an op; operands by position."""

    def __init__(self, op: Op, example: Example) -> None:
        super().__init__()
        self.op, self.attributes = torch_op(op.name), dict(example.attributes or {})

    def forward(self, *given: Tensor | None) -> Tensor:
        return self.op(*given, **self.attributes)


@pytest.mark.parametrize(("op", "example"), CASES)
def test_the_torch_op_computes_what_the_op_means(op: Op, example: Example) -> None:
    tensors = example.tensors()
    assert torch.equal(call(op, tensors, example), evaluate(op, tensors, example.attributes or {}))


@pytest.mark.parametrize(("op", "example"), CASES)
def test_float32_agrees_with_the_oracle_up_to_rounding(op: Op, example: Example) -> None:
    oracle = evaluate(op, example.tensors(), example.attributes or {})
    found = call(op, example.tensors(torch.float32), example)
    assert found.dtype == torch.float32
    # Where an op rounds, a value on the edge between two integers falls to one side in float32 and to the other in 64.
    allowed = 1e-5 if op.smooth else 2e-2
    assert (found.double() - oracle).norm() <= allowed * oracle.norm()


@pytest.mark.parametrize(("op", "example"), CASES)
def test_tracing_keeps_one_node_that_runs_at_other_extents(op: Op, example: Example) -> None:
    given = operands(op, example.tensors())
    shapes = (dict.fromkeys(example.dynamic, Dim.AUTO), *[None] * (len(given) - 1))
    with torch.no_grad():
        program = torch.export.export(Holder(op, example), given, dynamic_shapes={"given": shapes})
        program = program.run_decompositions({})
    called = [node.target for node in program.graph.nodes if node.op == "call_function"]
    assert called == [torch_op(op.name)]
    other = elsewhere(op, example)
    found = program.module()(*operands(op, other.tensors()))
    assert torch.allclose(found, evaluate(op, other.tensors(), other.attributes or {}))


@pytest.mark.parametrize(("op", "example"), CASES)
def test_gradients_reach_every_floating_point_operand(op: Op, example: Example) -> None:
    tensors = {
        name: tensor.requires_grad_() if tensor.is_floating_point() else tensor
        for name, tensor in example.tensors().items()
    }
    if op.smooth:
        names = [name for name, tensor in tensors.items() if tensor.requires_grad]

        def of_floats(*given: Tensor) -> Tensor:
            return call(op, {**tensors, **dict(zip(names, given, strict=True))}, example)

        assert torch.autograd.gradcheck(of_floats, [tensors[name] for name in names], fast_mode=True)
    else:
        call(op, tensors, example).square().sum().backward()
        first = tensors[op.operands[0].name]
        assert first.grad is not None and torch.isfinite(first.grad).all() and first.grad.any()


@pytest.mark.parametrize(("op", "example"), CASES)
def test_torch_finds_nothing_wrong_with_the_op(op: Op, example: Example) -> None:
    tensors = example.tensors(torch.float32)
    given = [tensor.requires_grad_() if _is_float(tensor) else tensor for tensor in operands(op, tensors)]
    # The whole of torch's checks takes seconds: it is run on the first example of each op.
    checks = (*_QUICK_CHECKS, *(_SLOW_CHECKS if example is op.examples[0] else ()))
    attributes = dict(example.attributes or {})
    outcome = torch.library.opcheck(torch_op(op.name), tuple(given), attributes, test_utils=checks)
    assert set(outcome.values()) == {"SUCCESS"}


@pytest.mark.parametrize(("op", "example"), CASES)
def test_the_inferred_type_is_the_type_of_the_result(op: Op, example: Example) -> None:
    tensors = example.tensors(torch.float32)
    types = {name: type_of(tensor) for name, tensor in tensors.items()}
    inferred = op.infer(**types, **(example.attributes or {}))
    assert inferred == type_of(call(op, tensors, example))


@pytest.mark.parametrize(("op", "example"), CASES)
def test_the_cost_is_positive_where_there_are_products(op: Op, example: Example) -> None:
    types = {name: type_of(tensor) for name, tensor in example.tensors(torch.float32).items()}
    cost = op.cost(**types, **(example.attributes or {}))
    assert int(cost.macs) > 0 or op.name in WITHOUT_PRODUCTS
    assert float(cost.transient_bytes) >= 0


def test_schemas_name_operands_and_say_which_may_be_absent() -> None:
    schema = "lowrank_linear(Tensor x, Tensor down, Tensor up, Tensor? bias=None) -> Tensor"
    assert schema_of(get_op("lowrank_linear")) == schema


def test_attributes_are_keywords_in_the_schema() -> None:
    def decompose(b: Any, x: Any, *, blocks: int, eps: float, activation: str) -> Any:
        return x

    op = replace(get_op("lowrank_linear"), name="blocked", decompose=decompose)
    assert schema_of(op) == "blocked(Tensor x, *, int blocks, float eps, str activation) -> Tensor"


def test_registering_twice_changes_nothing() -> None:
    before = torch_op("lowrank_linear")
    register_ops()
    assert torch_op("lowrank_linear") is before


def test_an_unknown_op_is_refused_with_the_names_that_exist() -> None:
    with pytest.raises(UnknownNameError, match=r"torch\.ops\.regraft has no 'lowrank'; it has: .*lowrank_linear"):
        torch_op("lowrank")


def _is_float(tensor: Tensor | None) -> bool:
    return tensor is not None and tensor.is_floating_point()
