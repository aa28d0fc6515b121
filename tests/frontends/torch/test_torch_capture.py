"""Capturing: what stays dynamic, what is left as it was, and which way of tracing is taken."""

import sys
from collections import UserDict

import pytest
import torch
from torch import Tensor, fx, nn
from torch.export import Dim
from torch_models import Branches, Conv1D, Mlp, seeded, small

from regraft.errors import RegraftWarning
from regraft.frontends.torch import capture

X = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))


def types(graph: object) -> list[str]:
    return [str(value.type) for value in graph.inputs()]  # type: ignore[attr-defined]


def test_an_example_of_batch_one_leaves_the_batch_dynamic() -> None:
    graph = capture(seeded(Mlp), X[:1])
    assert types(graph) == ["float32[batch, 8]"]
    assert graph.run(X[:1].repeat(5, 1))[0][0].shape == (5, 4)


def test_none_fixes_all_extents_without_a_warning() -> None:
    assert types(capture(seeded(Mlp), X, dynamic_shapes=None)) == ["float32[2, 8]"]


def test_dynamic_shapes_are_handed_on_to_torch() -> None:
    graph = capture(nn.Tanh(), torch.randn(2, 3), dynamic_shapes=({1: Dim.DYNAMIC},))
    assert types(graph) == ["float32[2, sequence]"]


@pytest.mark.parametrize(
    "inputs", [X, (X,), [X], {"x": X}, UserDict(x=X)], ids=["tensor", "tuple", "list", "dict", "user"]
)
def test_example_inputs_may_have_any_usual_form(inputs: object) -> None:
    assert [value.name for value in capture(seeded(Mlp), inputs).inputs()] == ["x"]


def test_absent_inputs_may_be_given_as_none() -> None:
    graph = capture(seeded(Branches), {"x": torch.randn(3, 4), "shift": None})
    assert [value.name for value in graph.inputs()] == ["x"]


def test_a_model_that_offers_dummy_inputs_needs_no_others() -> None:
    class Offering(nn.Module):
        dummy_inputs = {"x": X}  # noqa: RUF012 - as transformers does

        def forward(self, x: Tensor) -> Tensor:
            return x * 2

    assert types(capture(Offering())) == ["float32[batch, sequence]"]


def test_training_flags_are_as_before_and_capture_is_in_evaluation_mode() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.Linear(4, 4)).train()
    model[2].eval()
    graph = capture(model, torch.randn(2, 4))
    assert [module.training for module in model] == [True, True, False]
    x = torch.randn(3, 4)
    assert torch.equal(graph.run(x)[0][0], model.eval()(x))


def test_flags_and_cache_settings_are_restored_when_capture_fails() -> None:
    class Refusing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.config = type("Config", (), {"use_cache": True})()

        def forward(self, x: Tensor) -> Tensor:
            assert not self.config.use_cache
            return x + 1 if x.sum() > 0 else x

    model = Refusing().train()
    with pytest.raises(Exception, match="depends on the data"):
        capture(model, X)
    assert model.training
    assert model.config.use_cache


def test_weights_are_shared_with_the_model() -> None:
    model = seeded(Mlp)
    graph = capture(model, X)
    assert graph.module.up.weight is model.up.weight


def test_an_extent_of_one_that_the_model_needs_is_kept() -> None:
    graph = capture(nn.Conv2d(1, 2, 3), torch.randn(1, 1, 6, 6))
    assert types(graph) == ["float32[batch, 1, input_2, input_3]"]
    assert [rung.name for rung in graph.capture_report] == [
        "export, all dims dynamic",
        "export, all dims dynamic, but extents of 1",
    ]


class Fussy(nn.Module):
    """Refuses symbolic extents at some dims, in a way that strict tracing cannot follow."""

    dims: tuple[int, ...] = ()

    def forward(self, x: Tensor) -> Tensor:
        if sys.getrefcount(x) and any(type(x.shape[dim]) is not int for dim in self.dims):
            raise TypeError("an extent must be an int")
        return x * 2


class FussyAboutLength(Fussy):
    dims = (1,)


class FussyAboutAll(Fussy):
    dims = (0, 1)


def test_the_first_way_of_tracing_is_taken_when_it_works() -> None:
    report = small(Mlp, 2, 8).graph.capture_report
    assert [(rung.name, rung.reason) for rung in report] == [("export, all dims dynamic", "")]


def test_a_model_that_fixes_its_length_keeps_a_dynamic_batch_and_the_report_says_why() -> None:
    graph = capture(FussyAboutLength(), X)
    assert types(graph) == ["float32[batch, 8]"]
    assert [rung.name for rung in graph.capture_report] == [
        "export, all dims dynamic",
        "strict export",
        "batch dynamic only",
    ]
    assert "an extent must be an int at test_torch_capture.py:" in graph.capture_report[1].reason


def test_a_model_that_fixes_all_extents_is_captured_with_a_warning_that_says_why() -> None:
    expected = (
        "FussyAboutAll was captured with fixed shapes and runs with no others: TypeError: an extent must be an int"
    )
    with pytest.warns(RegraftWarning, match=expected):
        graph = capture(FussyAboutAll(), X)
    assert types(graph) == ["float32[2, 8]"]
    assert graph.capture_report[-1].name == "static shapes"


def test_strict_tracing_is_tried_where_the_usual_one_leaves_torch() -> None:
    class Numpy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Sequential(nn.Linear(8, 8))

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x) + torch.from_numpy(x.numpy() * 2)

    graph = capture(Numpy(), X)
    assert graph.capture_report[-1].name == "strict export"
    assert graph.capture_report[-1].reason.startswith("it leaves torch for numpy at test_torch_capture.py:")
    assert [node.scope for node in graph.nodes() if node.op == "linear"] == ["inner.0"]


def test_an_exported_program_is_captured_and_not_changed() -> None:
    model = seeded(Mlp)
    program = torch.export.export(model, (X,), dynamic_shapes=({0: Dim.AUTO},))
    before = [node.name for node in program.graph.nodes]
    graph = capture(program)
    assert [node.name for node in program.graph.nodes] == before
    assert (graph.name, types(graph)) == ("Mlp", ["float32[batch, 8]"])
    assert torch.equal(graph.run(X)[0][0], model(X))


def test_an_aten_level_graph_module_is_captured_and_not_changed() -> None:
    module = torch.export.export(seeded(Mlp), (X,), dynamic_shapes=({0: Dim.AUTO},)).run_decompositions({}).module()
    code = module.code
    graph = capture(module)
    assert module.code == code
    assert graph.name == "Mlp"
    assert [node.op for node in graph.nodes()] == ["linear", "relu", "linear"]


def test_a_symbolically_traced_module_is_traced_again_with_example_inputs() -> None:
    model = seeded(Mlp)
    graph = capture(fx.symbolic_trace(model), X)
    assert [node.op for node in graph.nodes()] == ["linear", "relu", "linear"]
    assert torch.equal(graph.run(X)[0][0], model(X))


def test_what_was_captured_can_be_captured_again() -> None:
    graph = small(Mlp, 2, 8).graph
    again = capture(graph.module)
    assert [node.key for node in again.nodes()] == [node.key for node in graph.nodes()]
    assert again.dim_names == graph.dim_names


def test_keyword_constants_are_no_inputs() -> None:
    graph = capture(seeded(Branches), {"x": torch.randn(3, 4), "scale": 2.0})
    assert [value.name for value in graph.inputs()] == ["x"]


def test_dims_beyond_the_second_are_called_after_input_and_place() -> None:
    graph = capture(nn.Tanh(), torch.randn(2, 3, 4, 5))
    assert types(graph) == ["float32[batch, sequence, input_2, input_3]"]


def test_symbols_of_several_inputs_are_told_apart() -> None:
    class Pair(nn.Module):
        def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
            return a * 2, torch.cat([b, b], dim=1)

    graph = capture(Pair(), (torch.randn(2, 3), torch.randn(4, 5)))
    assert types(graph) == ["float32[batch, sequence]", "float32[batch_2, sequence_2]"]
    assert [str(value.type) for value in graph.outputs()] == [
        "float32[batch, sequence]",
        "float32[batch_2, 2*sequence_2]",
    ]


def test_products_of_dims_are_written_with_their_names() -> None:
    graph = small(Conv1D, 2, 3, 6).graph
    assert [str(node.outputs[0].type) for node in graph.nodes() if node.op == "addmm"] == [
        "float32[batch*sequence, 10]"
    ]


def test_example_inputs_are_left_as_they_were() -> None:
    x = torch.randn(2, 8)
    before = set(vars(x))
    capture(seeded(Mlp), x)
    assert set(vars(x)) == before
