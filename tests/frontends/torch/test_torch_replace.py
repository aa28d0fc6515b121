"""Replacing layers: keys stay, weights come and go, and views follow."""

import time
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch_models import Conv1D, Mlp, factorize, mlp, rewritten, seeded, site_of, small

from regraft.errors import GraphError, UnknownNameError
from regraft.frontends.torch import FxGraph, capture
from regraft.graph import Site, find_attention_sites, find_linear_sites
from regraft.ops import get_op

OP = get_op("lowrank_linear")


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.relu(self.fc(x))


class Residuals(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*[Residual() for _ in range(5)])
        self.twice = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.twice(self.twice(self.blocks(x)))


class Turned(nn.Module):
    """A product with a transposed weight, then a bias: three nodes for one layer."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(5, 6))
        self.bias = nn.Parameter(torch.randn(5))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(torch.matmul(x, self.weight.t()) + self.bias)


def described(graph: FxGraph) -> list[object]:
    """Everything that views say, without their identity."""
    nodes: list[object] = [
        (
            node.key,
            node.op,
            node.native,
            node.scope,
            [None if value is None else value.key for value in node.inputs],
            [(value.key, str(value.type), [user.key for user in value.users]) for value in node.outputs],
            dict(node.attributes),
            dict(node.metadata),
        )
        for node in graph.nodes()
    ]
    constants = [(value.key, value.name, [user.key for user in value.users]) for value in graph.constants()]
    return [*nodes, constants, [value.key for value in graph.outputs()]]


def x_for(model: type[nn.Module]) -> Tensor:
    width = 8 if model is Mlp else 6
    return torch.randn(3, width, generator=torch.Generator().manual_seed(2))


def test_the_replaced_value_keeps_key_type_scope_and_users() -> None:
    graph = mlp().graph.copy()
    site = site_of(graph, "up")
    before = graph.value(site.output)
    wanted = (before.key, before.type, [user.key for user in before.users])
    factorize(graph, site)
    after = graph.value(site.output)
    assert (after.key, after.type, [user.key for user in after.users]) == wanted
    assert after.producer is not None
    assert (after.producer.op, after.producer.scope) == ("lowrank_linear", "up")
    assert after.producer.native == "regraft.lowrank_linear.default"


def test_the_rewritten_program_computes_the_same() -> None:
    for model in (Mlp, Conv1D, Turned, Residuals):
        case = small(model, 2, 8 if model is Mlp else 6)
        x = x_for(model)
        graph = rewritten(case.graph)
        assert not any(node.op in ("linear", "addmm", "matmul") for node in graph.nodes())
        assert torch.allclose(graph.run(x)[0][0], case.model(x), atol=1e-6)


def test_new_weights_are_named_after_the_layer_and_the_old_one_is_gone() -> None:
    graph = mlp().graph.copy()
    factorize(graph, site_of(graph, "up"))
    assert {name for name, _ in graph.module.named_parameters()} == {"up.bias", "up.down", "up.up", "down.weight"}
    assert {value.name for value in graph.constants()} == {"up.bias", "up.down", "up.up", "down.weight"}


def test_a_bias_given_as_a_tensor_takes_the_place_of_the_old_one() -> None:
    graph = mlp().graph.copy()
    factorize(graph, site_of(graph, "up"), share_bias=False)
    assert {value.name for value in graph.constants()} == {"up.bias", "up.down", "up.up", "down.weight"}


def test_the_original_graph_and_the_model_are_not_changed() -> None:
    case = mlp()
    before = described(case.graph)
    names = set(case.model.state_dict())
    rewritten(case.graph)
    assert described(case.graph) == before
    assert set(case.model.state_dict()) == set(case.graph.module.state_dict()) == names


def test_a_layer_that_is_called_twice_is_replaced_in_both_calls_by_one_set_of_weights() -> None:
    graph = small(Residuals, 2, 6).graph.copy()
    factorize(graph, site_of(graph, "twice"))
    names = {name for name in graph.module.state_dict() if name.startswith("twice")}
    assert names == {"twice.bias", "twice.down", "twice.up"}
    assert len([node for node in graph.nodes() if node.op == "lowrank_linear"]) == 2


def test_a_single_call_can_be_replaced_and_leaves_the_weight_to_the_others() -> None:
    graph = small(Residuals, 2, 6).graph.copy()
    first, second = site_of(graph, "twice").calls
    factorize(graph, replace(first, others=()))
    assert "twice.weight" in graph.module.state_dict()
    factorize(graph, second)
    names = {name for name in graph.module.state_dict() if name.startswith("twice")}
    assert names == {"twice.bias", "twice.down", "twice.up", "twice.down_1", "twice.up_1"}


def test_covered_nodes_and_what_only_they_read_are_erased() -> None:
    graph = small(Turned, 2, 6).graph.copy()
    (site,) = find_linear_sites(graph)[0]
    factorize(graph, site)
    assert [node.op for node in graph.nodes()] == ["lowrank_linear", "tanh"]
    assert set(graph.module.state_dict()) == {"bias", f"{site.name}.down", f"{site.name}.up"}


def test_covered_nodes_that_something_else_reads_stay() -> None:
    graph = mlp().graph.copy()
    site = Site("both", {"x": "x"}, "linear_1", ("linear", "relu", "linear_1"))
    relu = Site("tap", {"x": "relu"}, "relu", ())
    assert relu.output in [node.key for node in graph.nodes()]
    graph.replace(site, OP, {"down": torch.ones(2, 8), "up": torch.ones(4, 2)})
    assert [node.key for node in graph.nodes()] == ["linear_1"]


def test_integer_tensors_become_buffers_and_others_parameters() -> None:
    graph = mlp().graph.copy()
    site = site_of(graph, "up")
    graph.replace(site, OP, {"down": torch.ones(2, 8, dtype=torch.int8), "up": torch.ones(16, 2)})
    assert [name for name, _ in graph.module.named_buffers()] == ["up.down"]
    assert isinstance(graph.module.get_parameter("up.up"), nn.Parameter)


@pytest.mark.parametrize("trainable", [True, False])
def test_new_weights_take_gradients_as_the_replaced_ones_do(trainable: bool) -> None:
    graph = capture(seeded(Mlp).requires_grad_(trainable), torch.randn(2, 8))
    factorize(graph, site_of(graph, "up"))
    assert [graph.module.get_parameter(name).requires_grad for name in ("up.down", "up.up")] == [trainable] * 2


def test_a_constant_of_another_layer_can_be_shared() -> None:
    graph = small(Residuals, 2, 6).graph.copy()
    first, second = (site_of(graph, f"blocks.{place}.fc") for place in (0, 1))
    factorize(graph, second)
    shared = {value.name: value for value in graph.constants()}
    graph.replace(first, OP, {"down": shared["blocks.1.fc.down"], "up": shared["blocks.1.fc.up"]})
    graph.validate()
    assert len(graph.value(shared["blocks.1.fc.down"].key).users) == 2
    assert torch.isfinite(graph.run(torch.randn(3, 6))[0][0]).all()


@pytest.mark.parametrize(
    ("name", "expected"),
    [("", "down"), ("a b.c#2", "a_b.c_2.down"), ("up.weight", "up.weight_1.down"), ("forward", "forward_1.down")],
)
def test_names_that_cannot_be_attribute_paths_are_made_so(name: str, expected: str) -> None:
    graph = mlp().graph.copy()
    site = site_of(graph, "down")
    graph.replace(Site(name, site.operands, site.output, ()), OP, {"down": torch.ones(2, 16), "up": torch.ones(4, 2)})
    assert expected in graph.module.state_dict()
    graph.validate()
    assert graph.module(torch.randn(2, 8)).shape == (2, 4)


@given(order=st.permutations(range(6)), count=st.integers(1, 6), look=st.booleans())
def test_views_after_any_rewrites_are_those_of_a_new_view(order: Sequence[int], count: int, look: bool) -> None:
    graph = small(Residuals, 2, 6).graph.copy()
    sites = find_linear_sites(graph)[0]
    for place in order[:count]:
        if look:
            graph.nodes()
        factorize(graph, sites[place])
        graph.annotate(sites[place].output, {"regraft.site": sites[place].name})
    graph.validate()
    assert described(graph) == described(graph.copy())


def test_a_site_found_in_a_graph_can_be_replaced_in_a_copy_after_others_were() -> None:
    graph = small(Residuals, 2, 6).graph
    sites = find_linear_sites(graph)[0]
    copy = graph.copy()
    for site in reversed(sites):
        factorize(copy, site)
    x = torch.randn(3, 6)
    assert torch.allclose(copy.run(x)[0][0], graph.run(x)[0][0], atol=1e-5)


def test_a_site_that_is_not_in_the_graph_any_more_is_refused() -> None:
    graph = small(Turned, 2, 6).graph.copy()
    (site,) = find_linear_sites(graph)[0]
    inner = Site("gone", site.operands, "matmul", ())
    factorize(graph, site)
    with pytest.raises(GraphError, match=r"gone: 'matmul' is not in this graph \(any more\)"):
        graph.replace(inner, OP, {"down": torch.ones(2, 6), "up": torch.ones(5, 2)})


def test_an_input_cannot_be_replaced() -> None:
    with pytest.raises(GraphError, match="only a computed value can be replaced"):
        mlp().graph.copy().replace(Site("in", {"x": "x"}, "x", ()), OP, {"down": torch.ones(1), "up": torch.ones(1)})


def test_operands_that_the_op_does_not_have_are_refused_and_nothing_is_changed() -> None:
    graph = mlp().graph.copy()
    before = described(graph)
    with pytest.raises(GraphError, match="up: lowrank_linear takes x, down, up, bias; got 'left'"):
        graph.replace(site_of(graph, "up"), OP, {"left": torch.ones(2, 8)})
    with pytest.raises(GraphError, match="up: lowrank_linear takes x, down, up, bias; got 'rank'"):
        graph.replace(site_of(graph, "up"), OP, {"down": torch.ones(1), "up": torch.ones(1)}, {"rank": 3})
    with pytest.raises(GraphError, match="up: lowrank_linear needs 'up', it was not given"):
        graph.replace(site_of(graph, "up"), OP, {"down": torch.ones(2, 8)})
    assert described(graph) == before


def test_an_operand_that_is_computed_later_is_refused() -> None:
    graph = mlp().graph.copy()
    site = Site("loop", {"x": "linear_1"}, "linear", ())
    with pytest.raises(GraphError, match=r"loop: operand 'x' \(linear_1\) is computed after linear"):
        graph.replace(site, OP, {"down": torch.ones(2, 4), "up": torch.ones(16, 2)})


def test_an_op_that_torch_does_not_know_is_refused() -> None:
    class Unknown:
        name = "no_such_op"

    with pytest.raises(UnknownNameError, match="has no 'no_such_op'"):
        mlp().graph.copy().replace(site_of(mlp().graph, "up"), Unknown(), {})


def test_validate_names_a_node_without_a_type() -> None:
    graph = mlp().graph.copy()
    node = graph._program.index["relu"]
    del node.meta["val"]
    with pytest.raises(GraphError, match=r"relu \(aten\.relu\.default\) has no type"):
        graph.validate()


def test_validate_names_a_weight_that_is_not_there() -> None:
    graph = mlp().graph.copy()
    del graph._program.store.module.up.weight
    with pytest.raises(GraphError, match=r"the graph reads 'up\.weight', which its module does not have"):
        graph.validate()


def test_validate_refuses_nodes_out_of_order() -> None:
    graph = mlp().graph.copy()
    index = graph._program.index
    index["linear"].prepend(index["relu"])
    with pytest.raises(GraphError, match="the graph is broken: "):
        graph.validate()


def test_the_cost_of_a_rewrite_does_not_grow_with_the_graph() -> None:
    def seconds(depth: int) -> float:
        torch.manual_seed(0)
        module = nn.Sequential(*[Residual() for _ in range(depth)])
        graph = FxGraph.of(_traced(module), "deep")
        graph.nodes()
        sites = find_linear_sites(graph)[0][:10]
        rounds: list[float] = []
        for _ in range(3):
            copy = graph.copy()
            copy.nodes()
            begin = time.process_time()
            for site in sites:
                copy.replace(site, OP, {"down": torch.ones(2, 6), "up": torch.ones(6, 2), "bias": site.bias_value})
                copy.value(site.output)
            rounds.append(time.process_time() - begin)
        return min(rounds)

    assert seconds(400) < 4 * seconds(20)


def _traced(module: nn.Sequential) -> torch.fx.GraphModule:
    """The ATen-level graph of residual blocks, written by hand: tracing a thousand of them takes torch minutes."""
    mode = torch._subclasses.FakeTensorMode()
    value = mode.from_tensor(torch.randn(2, 6))
    graph = torch.fx.Graph()
    x = graph.placeholder("x")
    x.meta["val"] = value
    aten = torch.ops.aten
    for place in range(len(module)):
        weight, bias = (graph.get_attr(f"{place}.fc.{leaf}") for leaf in ("weight", "bias"))
        y = graph.call_function(aten.linear.default, (x, weight, bias))
        y.meta["nn_module_stack"] = {"fc": (f"{place}.fc", "torch.nn.modules.linear.Linear")}
        r = graph.call_function(aten.relu.default, (y,))
        z = graph.call_function(aten.add.Tensor, (x, r))
        for node in (y, r, z):
            node.meta["val"] = value
        x = z
    graph.output((x,))
    return torch.fx.GraphModule(module, graph)


def test_attention_that_a_site_covers_goes_with_it_although_it_may_draw_random_numbers() -> None:
    class Attention(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            heads = x.unflatten(-1, (2, 3)).transpose(1, 2)
            y = torch.nn.functional.scaled_dot_product_attention(heads, heads, heads)
            return y.transpose(1, 2).flatten(2) * 2

    graph = capture(Attention(), (torch.randn(2, 4, 6),))
    (site,), _ = find_attention_sites(graph)
    graph.replace(site, get_op("multi_head_attention"), {}, site.attributes)
    assert [node.op for node in graph.nodes() if node.op in ("attention", "reshape", "transpose")] == []
