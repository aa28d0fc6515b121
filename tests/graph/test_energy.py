"""The energy model: hand-counted programs, and what it must not depend on."""

import pytest
import torch
from torch import nn

import regraft
from regraft.errors import ShapeError
from regraft.graph.energy import HOROWITZ_45NM, energy_table
from regraft.graph.snapshot import Snapshot, SnapshotNode, SnapshotValue
from regraft.graph.types import TensorType
from regraft.ops import cost
from regraft.passes import ShiftAdd


def linear_program() -> Snapshot:
    def value(key: str, *shape: int | str) -> SnapshotValue:
        return SnapshotValue(key, key, TensorType("float32", shape))

    node = SnapshotNode("y", "linear", "aten.linear.default", "fc", ("x", "w", "b"), (value("y", "batch", 3),))
    return Snapshot("fx", "net", (value("x", "batch", 5),), (value("w", 3, 5), value("b", 3)), (node,), ("y",))


def test_a_linear_layer_is_counted_by_hand() -> None:
    found = cost(linear_program()).energy({"batch": 4}).total
    table = HOROWITZ_45NM
    assert found.arithmetic == pytest.approx(4 * 15 * (3.7 + 0.9))
    assert found.parameters == pytest.approx((15 + 3) * 4 * table.off_chip)
    assert found.activations == pytest.approx((4 * 5 + 4 * 3) * 4 * table.on_chip)
    assert found.movement == found.parameters + found.activations


def test_arithmetic_grows_with_the_batch_and_parameters_do_not() -> None:
    program = cost(linear_program())
    one, ten = program.energy({"batch": 1}).total, program.energy({"batch": 10}).total
    assert ten.arithmetic == pytest.approx(10 * one.arithmetic)
    assert ten.activations == pytest.approx(10 * one.activations)
    assert ten.parameters == one.parameters


def test_extents_of_the_inputs_are_needed() -> None:
    with pytest.raises(ShapeError, match="batch"):
        cost(linear_program()).energy()


def test_layers_and_nodes_add_up_to_the_total() -> None:
    found = cost(linear_program()).energy({"batch": 2})
    assert found.layers["fc"] == found.nodes["y"] == found.total
    assert found.unmodelled == ()


def test_an_operation_without_a_formula_is_named_not_guessed() -> None:
    program = linear_program()
    strange = SnapshotNode(
        "z", "aten.fft", "aten.fft", "", ("y",), (SnapshotValue("z", "z", TensorType("float32", (2,))),)
    )
    changed = Snapshot("fx", "net", program.inputs, program.constants, (*program.nodes, strange), ("z",))
    assert cost(changed).energy({"batch": 2}).unmodelled == ("z",)


def test_shift_layers_are_modelled_cheaper_than_dense_ones_and_the_table_says_modelled() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(128, 256), nn.ReLU()).eval()
    item = ShiftAdd(terms=1, small=True, heads=True)
    result = regraft.optimize(model, [item], example_inputs=torch.randn(4, 128), progress=False)
    assert result.original is not None
    dense = cost(result.original.snapshot()).energy({"batch": 8})
    rewritten = cost(result.graph.snapshot()).energy({"batch": 8})
    assert rewritten.layers["0"].arithmetic < 0.2 * dense.layers["0"].arithmetic
    assert rewritten.layers["0"].parameters < 0.16 * dense.layers["0"].parameters
    text = energy_table(dense, rewritten)
    assert text.startswith("modelled energy, not measured, uJ: 45 nm, 0.9 V (Horowitz 2014)")
    assert "0 " in text.splitlines()[2]


def test_a_printed_energy_says_that_it_is_modelled_and_lists_layers_and_total() -> None:
    found = cost(linear_program()).energy({"batch": 100_000})
    title, head, *rows = str(found).splitlines()
    assert title == f"modelled energy, not measured, uJ: {HOROWITZ_45NM.name}"
    assert head.split() == ["layer", "arithmetic", "movement"]
    total = f"{found.total.arithmetic / 1e6:.2f} {found.total.movement / 1e6:.2f}"
    assert [" ".join(row.split()) for row in rows] == [*(f"{name} {total}" for name in found.layers), f"total {total}"]
