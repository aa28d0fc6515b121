"""Costs of programs that hold structured ops: every op's own formula, on both kinds of graph."""

from dataclasses import replace

import pytest
from snapshot_strategies import node, snapshot, value

from regraft.graph.cost import estimate
from regraft.graph.snapshot import SnapshotValue
from regraft.graph.symbols import dim_expr
from regraft.graph.types import TensorType, type_of
from regraft.ops import all_ops, cost, formulas

ROWS = dim_expr("batch") * dim_expr("seq")


def lowrank(kind, x="x", shape=("batch", "seq", 7)):
    """x · down · up with rank 3, weights as that kind of graph holds them."""
    down, up = (value("down", 3, 7), value("up", 4, 3)) if kind == "fx" else (value("down", 7, 3), value("up", 3, 4))
    made = node("lowrank_linear", f"{x} down up _", value("y", "batch", "seq", 4))
    return snapshot([value("x", *shape)], [down, up], [made], "y", kind)


@pytest.mark.parametrize("kind", ["fx", "onnx"])
def test_a_lowrank_layer_costs_rank_times_both_extents_in_either_layout(kind):
    found = cost(lowrank(kind))
    assert found.macs == ROWS * 3 * (7 + 4)
    assert found.parameter_bytes == 4 * 3 * (7 + 4)
    assert found.live_bytes == (("y", 4 * ROWS * (7 + 4 + 3)),)
    assert not found.uncounted


def test_without_the_formulas_a_structured_op_is_uncounted():
    assert estimate(lowrank("fx")).uncounted == ("y",)


def test_a_missing_operand_leaves_the_node_uncounted():
    assert cost(lowrank("fx", x="_")).uncounted == ("y",)


def test_an_operand_of_too_few_dims_leaves_the_node_uncounted():
    graph = lowrank("fx")
    assert cost(replace(graph, constants=(value("down", 7), graph.constants[1]))).uncounted == ("y",)


@pytest.mark.parametrize("kind", ["fx", "onnx"])
@pytest.mark.parametrize("name", list(all_ops()))
def test_every_op_is_counted_as_its_own_formula_says_on_its_examples(name, kind):
    op = all_ops()[name]
    for example in op.examples:
        types = {key: type_of(tensor) for key, tensor in example.tensors().items()}
        attributes = dict(example.attributes or {})
        given = {operand.name: types.get(operand.name) for operand in op.operands}
        expected = op.cost(**given, **attributes)
        stored = {
            key: TensorType(type_.dtype, (*type_.shape[:-2], type_.shape[-1], type_.shape[-2]))
            if kind == "onnx" and key in op.linear_weights
            else type_
            for key, type_ in types.items()
        }
        inputs = [SnapshotValue(key, key, type_) for key, type_ in stored.items()]
        keys = " ".join(operand.name if operand.name in types else "_" for operand in op.operands)
        result = SnapshotValue("y", "y", op.infer(**given, **attributes))
        found = cost(snapshot(inputs, [], [node(name, keys, result, "", attributes)], "y", kind))
        assert found.uncounted == ()
        assert found.macs == expected.macs


def test_formulas_are_there_for_every_op():
    assert formulas("fx").keys() == all_ops().keys()
