"""The module of a captured program: called, trained, copied, saved and exported again like any other."""

import copy
import io
import warnings

import torch
from torch import fx, nn
from torch._dynamo.backends.common import aot_autograd
from torch_models import Branches, Mlp, factorize, mlp, rewritten, seeded, site_of, small

from regraft.frontends.torch import capture

X = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))


def test_it_is_a_graph_module_that_returns_what_the_model_returns() -> None:
    case = small(Branches, 3, 4)
    x = torch.randn(6, 4)
    wanted, found = case.model(x), case.graph.module(x)
    assert isinstance(case.graph.module, fx.GraphModule)
    assert list(found) == list(wanted)
    assert found["twice"][1] is None
    assert torch.equal(found["twice"][0], wanted["twice"][0])


def test_it_takes_inputs_by_position_and_by_name() -> None:
    module = mlp().graph.module
    assert torch.equal(module(X), module(x=X))


def test_it_is_one_object_that_follows_rewrites() -> None:
    graph = mlp().graph.copy()
    module = graph.module
    expected = module(X)
    factorize(graph, site_of(graph, "up"))
    assert graph.module is module
    assert "lowrank_linear" in module.code
    assert torch.allclose(module(X), expected, atol=1e-6)


def test_train_and_eval_set_flags_and_change_nothing_else() -> None:
    module = mlp().graph.copy().module
    expected = module(X)
    assert module.train().training
    assert torch.equal(module(X), expected)
    assert not module.eval().training


def test_gradients_reach_new_and_old_weights_and_a_step_changes_the_result() -> None:
    module = rewritten(capture(seeded(Mlp), X)).module.train()
    before = module(X)
    before.square().sum().backward()
    assert all(parameter.grad is not None for parameter in module.parameters())
    torch.optim.SGD(module.parameters(), lr=0.01).step()
    assert not torch.equal(module(X), before)


def test_it_can_be_copied_without_a_warning_and_copies_are_independent() -> None:
    module = rewritten(small(Branches, 3, 4).graph).module
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        twin = copy.deepcopy(module)
    assert set(twin.state_dict()) == set(module.state_dict())
    assert twin.graph is not module.graph
    x = torch.randn(2, 4)
    expected = module(x)["top"]
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    assert torch.equal(module(x)["top"], expected)
    assert not torch.equal(twin(x)["top"], expected)


def test_the_state_dict_holds_what_the_model_s_does_and_loads_elsewhere() -> None:
    case = small(Branches, 3, 4)
    module = case.graph.module
    assert set(module.state_dict()) == {name for name in case.model.state_dict() if not name.startswith("unused")}
    stored = io.BytesIO()
    torch.save(rewritten(case.graph).module.state_dict(), stored)
    stored.seek(0)
    other = rewritten(capture(seeded(Branches, seed=1), torch.randn(3, 4))).module
    x = torch.randn(2, 4)
    assert not torch.equal(other(x)["top"], module(x)["top"])
    other.load_state_dict(torch.load(stored))
    assert torch.allclose(other(x)["top"], module(x)["top"], atol=1e-6)


def test_it_moves_and_changes_type_as_a_whole() -> None:
    graph = capture(seeded(Branches), torch.randn(3, 4))
    module = copy.deepcopy(graph.module).double()
    assert module(torch.randn(2, 4, dtype=torch.float64))["top"].dtype == torch.float64


def test_it_can_be_exported_again_with_dynamic_shapes_and_keeps_its_ops() -> None:
    graph = rewritten(mlp().graph)
    args, kwargs = graph.example_inputs
    program = torch.export.export(graph.module, args, kwargs, dynamic_shapes=graph.dynamic_shapes)
    names = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert names.count("regraft.lowrank_linear.default") == 2
    assert torch.allclose(program.module()(X), graph.module(X))


def test_exported_again_and_captured_it_is_the_same_program() -> None:
    graph = rewritten(mlp().graph)
    args, kwargs = graph.example_inputs
    program = torch.export.export(graph.module, args, kwargs, dynamic_shapes=graph.dynamic_shapes)
    again = capture(program)
    assert [(node.op, node.scope) for node in again.nodes()] == [(node.op, node.scope) for node in graph.nodes()]
    assert [str(value.type) for value in again.inputs()] == [str(value.type) for value in graph.inputs()]


def test_example_inputs_that_are_made_up_fit_the_graph() -> None:
    program = torch.export.export(seeded(Mlp), (X,), dynamic_shapes=({0: torch.export.Dim.AUTO},))
    graph = capture(program.run_decompositions({}).module())
    args, kwargs = graph.example_inputs
    assert graph.module(*args, **kwargs).shape == (5, 4)


def test_constant_arguments_are_part_of_the_example_inputs() -> None:
    graph = capture(seeded(Branches), {"x": torch.randn(3, 4), "scale": 2.0})
    args, kwargs = graph.example_inputs
    assert (args, kwargs["scale"]) == ((), 2.0)
    program = torch.export.export(graph.module, args, kwargs, dynamic_shapes=graph.dynamic_shapes)
    assert program.module()(x=torch.randn(7, 4), scale=2.0)["top"].shape == (4,)


def test_inductor_sees_through_the_ops() -> None:
    seen: list[str] = []

    def backend(module: fx.GraphModule, inputs: list[torch.Tensor]) -> fx.GraphModule:
        seen.extend(str(node.target) for node in module.graph.nodes if node.op == "call_function")
        return module

    aot = aot_autograd(fw_compiler=backend)
    graph = rewritten(mlp().graph)
    with torch.no_grad():
        found = torch.compile(graph.module, backend=aot)(X)
    assert torch.allclose(found, graph.module(X), atol=1e-6)
    assert seen
    assert not any("regraft" in name for name in seen)


def test_weights_of_copies_are_shared() -> None:
    graph = mlp().graph
    assert graph.copy().module.up.weight is graph.module.up.weight


def test_hooks_of_a_module_are_copied_with_it() -> None:
    graph = capture(nn.Linear(2, 2), torch.randn(2, 2))
    calls: list[int] = []
    graph.module.register_forward_hook(lambda *_: calls.append(1))
    copy.deepcopy(graph.module)(torch.randn(2, 2))
    assert calls == [1]
