"""Running: inputs by position or name, taps, parts of a program, and inputs that do not fit."""

import re

import pytest
import torch
from torch import Tensor, nn
from torch_models import Branches, mlp, seeded, small

from regraft.errors import GraphError, InputError
from regraft.frontends.torch import capture

X = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))


class Pair(nn.Module):
    def forward(self, left: Tensor, right: Tensor, *, ids: Tensor) -> Tensor:
        return left + right[ids]


PAIR = (torch.randn(2, 3), torch.randn(5, 3))
IDS = torch.tensor([0, 4])


class Nested(nn.Module):
    def forward(self, pair: tuple[Tensor, Tensor], extra: dict[str, Tensor]) -> Tensor:
        return pair[0] + pair[1] + extra["z"]


def test_inputs_may_be_given_by_position_or_by_name() -> None:
    case = mlp()
    expected = case.model(X)
    for inputs in (X, (X,), [X], {"x": X}):
        (found,), tapped = case.graph.run(inputs)
        assert torch.equal(found, expected)
        assert not tapped
        assert not found.requires_grad


def test_keyword_only_parameters_may_be_given_by_position_too() -> None:
    graph = capture(Pair(), {"left": PAIR[0], "right": PAIR[1], "ids": IDS})
    expected = Pair()(*PAIR, ids=IDS)
    assert torch.equal(graph.run((*PAIR, IDS))[0][0], expected)
    assert torch.equal(graph.run({"ids": IDS, "right": PAIR[1], "left": PAIR[0]})[0][0], expected)


def test_nested_inputs_are_bound_to_their_leaves() -> None:
    x = torch.randn(2, 3)
    graph = capture(Nested(), ((x, x), {"z": x}))
    assert len(graph.inputs()) == 3
    y = torch.randn(4, 3)
    assert torch.equal(graph.run(((y, y), {"z": y}))[0][0], y * 3)
    args, kwargs = graph.bind(((y, y), {"z": y}))
    assert torch.equal(graph.module(*args, **kwargs), y * 3)


def test_outputs_are_the_model_s_tensors_in_order() -> None:
    case = small(Branches, 3, 4)
    x = torch.randn(5, 4)
    wanted = case.model(x)
    found, _ = case.graph.run(x)
    expected = [wanted["twice"][0], wanted["top"], wanted["where"], x]
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_taps_are_what_the_layers_compute() -> None:
    case = mlp()
    _, tapped = case.graph.run(X, ["x", "linear", "relu", "up_weight"])
    assert torch.equal(tapped["x"], X)
    assert torch.equal(tapped["linear"], case.model.up(X))
    assert torch.equal(tapped["relu"], case.model.up(X).relu())
    assert torch.equal(tapped["up_weight"], case.model.up.weight)


def test_every_value_can_be_tapped_also_results_that_nothing_reads() -> None:
    class Top(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.max(x, dim=1)[1]

    graph = capture(Top(), torch.randn(2, 3))
    (node,) = graph.nodes()
    x = torch.randn(4, 3)
    _, tapped = graph.run(x, [value.key for value in node.outputs])
    assert torch.equal(tapped[node.outputs[0].key], x.max(dim=1).values)


def test_an_unknown_tap_is_refused() -> None:
    with pytest.raises(GraphError, match=r"tap: 'nothing' is not in this graph"):
        mlp().graph.run(X, ["nothing"])


def test_a_part_is_computed_from_given_values() -> None:
    case = mlp()
    y = torch.randn(1, 256, 16)
    (found,) = case.graph.evaluate(["linear_1"], {"relu": y})
    assert torch.equal(found, case.model.down(y))


def test_several_values_are_computed_together_and_given_ones_are_not_computed() -> None:
    case = mlp()
    relu, last, given = case.graph.evaluate(["relu", "linear_1", "linear"], {"linear": torch.ones(2, 16)})
    assert torch.equal(relu, torch.ones(2, 16))
    assert torch.equal(given, torch.ones(2, 16))
    assert torch.equal(last, case.model.down(relu))


def test_a_part_that_needs_an_input_of_the_graph_is_refused() -> None:
    with pytest.raises(GraphError, match="relu depends on input 'x', which is not given"):
        mlp().graph.evaluate(["relu"], {"linear_1": torch.ones(2, 4)})


def test_values_that_are_not_needed_any_more_are_freed_and_tapped_ones_are_kept() -> None:
    case = mlp()
    freed, _ = case.graph.run(X)
    kept, tapped = case.graph.run(X, ["linear"])
    assert torch.equal(freed[0], kept[0])
    assert set(tapped) == {"linear"}


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (X.double(), "input 'x' needs float32 [batch, 8], got float64 [3, 8]"),
        (X[0], "input 'x' needs float32 [batch, 8], got float32 [8]"),
        (X[:, :5], "input 'x' needs float32 [batch, 8], got float32 [3, 5]"),
        ((X, X), "Mlp takes 1 inputs (x); got 2"),
        ((), "input 'x' needs float32 [batch, 8], it was not given"),
        ({}, "input 'x' needs float32 [batch, 8], it was not given"),
        ({"x": X, "y": X}, "Mlp has no input 'y'; it has: x"),
        ({"x": [1.0]}, "input 'x' needs float32 [batch, 8], got float"),
    ],
)
def test_inputs_that_do_not_fit_are_refused_before_anything_runs(inputs: object, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message) + "$"):
        mlp().graph.run(inputs)


def test_unknown_inputs_that_are_none_are_absent() -> None:
    assert mlp().graph.run({"x": X, "mask": None})[0][0].shape == (3, 4)


def test_one_extent_in_two_inputs_must_be_the_same() -> None:
    class Sum(nn.Module):
        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return a + b

    graph = capture(Sum(), (torch.randn(2, 3), torch.randn(2, 3)))
    expected = "input 'b' needs float32 [batch, sequence], got float32 [4, 6]: sequence is 5 in 'a'"
    with pytest.raises(InputError, match=re.escape(expected)):
        graph.run((torch.randn(4, 5), torch.randn(4, 6)))


def test_a_constant_of_the_capture_may_be_left_out_and_not_be_changed() -> None:
    graph = capture(seeded(Branches), {"x": torch.randn(3, 4), "scale": 2.0})
    x = torch.randn(5, 4)
    expected = graph.run({"x": x, "scale": 2.0})[0][0]
    assert torch.equal(graph.run({"x": x})[0][0], expected)
    with pytest.raises(InputError, match=r"input 'scale' was captured as 2\.0, got 3\.0"):
        graph.run({"x": x, "scale": 3.0})


def test_nested_inputs_of_another_structure_are_refused() -> None:
    x = torch.randn(2, 3)
    graph = capture(Nested(), ((x, x), {"z": x}))
    with pytest.raises(InputError, match=r"Nested takes 3 values \(pair_0, pair_1, extra_z\); the inputs hold 2"):
        graph.run(((x,), {"z": x}))


def test_inputs_outside_of_what_the_model_branched_on_are_refused() -> None:
    class Short(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + 1 if x.shape[0] < 9 else x

    graph = capture(Short(), torch.randn(2, 3))
    expected = r"the captured program takes only inputs for which x\.size\(\)\[0\] <= 8"
    with pytest.raises(InputError, match=expected):
        graph.run(torch.randn(9, 3))


def test_an_error_while_running_names_the_node() -> None:
    class Lookup(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(4, 2)

        def forward(self, ids: Tensor) -> Tensor:
            return self.table(ids)

    graph = capture(Lookup(), torch.zeros(2, 3, dtype=torch.int64))
    with pytest.raises(IndexError) as caught:
        graph.run(torch.full((2, 3), 7))
    assert caught.value.__notes__ == ["at node embedding (aten.embedding.default)"]


def test_inputs_of_an_element_type_that_the_layers_do_not_take_are_refused_in_one_line() -> None:
    graph = capture(nn.Linear(3, 3), torch.ones(2, 3, dtype=torch.int64), dynamic_shapes=None)
    with pytest.raises(InputError, match="^the model cannot be run on these inputs: .*dtype"):
        graph.run(torch.ones(2, 3, dtype=torch.int64))
