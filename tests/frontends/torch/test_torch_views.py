"""Views of captured programs: names, canonical operations, operands, attributes, types, scopes."""

from collections.abc import Callable
from functools import lru_cache

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import Tensor, fx, nn
from torch_models import Branches, Conv1D, Mlp, mlp, small

from regraft.errors import GraphError
from regraft.frontends.torch import FxGraph, capture
from regraft.graph import Node, Value


class Calls(nn.Module):
    """Any function of one input as a model."""

    def __init__(self, function: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> object:
        return self.function(x)


def nodes_of(function: Callable[[Tensor], object], *shape: int) -> list[Node]:
    graph = capture(Calls(function), torch.rand(*shape) + 1)
    return [node for node in graph.nodes() if node.op != "sym_size"]


def keys(values: object) -> list[str | None]:
    return [None if value is None else value.key for value in values]  # type: ignore[attr-defined]


def test_names_are_those_of_the_model() -> None:
    graph = mlp().graph
    assert [value.name for value in graph.inputs()] == ["x"]
    assert [value.name for value in graph.constants()] == ["up.weight", "up.bias", "down.weight"]
    assert [(node.op, node.scope) for node in graph.nodes()] == [("linear", "up"), ("relu", "act"), ("linear", "down")]


def test_an_absent_bias_is_none() -> None:
    down = mlp().graph.nodes()[-1]
    assert keys(down.inputs) == ["relu", "down_weight", None]


def test_values_know_their_producer_and_their_users() -> None:
    graph = mlp().graph
    first, relu, last = graph.nodes()
    middle = relu.outputs[0]
    assert middle.producer is relu
    assert middle.users == [last]
    assert graph.inputs()[0].users == [first]
    assert graph.value("up_weight").users == [first]
    assert [value.is_output for value in (middle, last.outputs[0])] == [False, True]


def test_types_name_the_batch() -> None:
    graph = mlp().graph
    assert [str(node.outputs[0].type) for node in graph.nodes()] == [
        "float32[batch, 16]",
        "float32[batch, 16]",
        "float32[batch, 4]",
    ]
    assert list(graph.dim_names.values()) == ["batch"]


def test_constants_are_the_model_s_own_tensors() -> None:
    case = mlp()
    weight = case.graph.constant(case.graph.value("up_weight"))
    assert weight is not None
    assert weight.data_ptr() == case.model.up.weight.data_ptr()
    assert not weight.requires_grad


def test_a_computed_value_has_no_constant() -> None:
    graph = mlp().graph
    assert graph.constant(graph.value("relu")) is None


def test_an_unknown_key_is_refused() -> None:
    with pytest.raises(GraphError, match="the graph has no value 'nothing'"):
        mlp().graph.value("nothing")


def test_buffers_and_constants_of_the_code_are_constants_and_unused_weights_are_not_there() -> None:
    graph = small(Branches, 3, 4).graph
    names = {value.name for value in graph.constants()}
    assert {"fc.weight", "fc.bias", "saved", "unsaved"} < names
    assert len(names) == 5  # and the tensor that forward makes
    assert not any("unused" in name for name in graph.module.state_dict())


def test_results_of_one_operation_are_its_outputs() -> None:
    graph = small(Branches, 3, 4).graph
    node = next(node for node in graph.nodes() if node.op == "aten.max")
    assert [str(value.type) for value in node.outputs] == ["float32[4]", "int64[4]"]
    assert all(value.producer is node for value in node.outputs)
    assert all(graph.value(value.key) is value for value in node.outputs)


def test_a_result_that_nothing_reads_is_still_an_output() -> None:
    graph = capture(Calls(lambda x: torch.max(x, dim=1)[1]), torch.randn(2, 3))
    (node,) = graph.nodes()
    assert [str(value.type) for value in node.outputs] == ["float32[batch]", "int64[batch]"]
    assert [value.is_output for value in node.outputs] == [False, True]


def test_outputs_are_flat_and_in_the_model_s_order() -> None:
    graph = small(Branches, 3, 4).graph
    top, where = next(node for node in graph.nodes() if node.op == "aten.max").outputs
    last = next(node for node in reversed(graph.nodes()) if node.op == "linear").outputs[0]
    assert list(graph.outputs()) == [last, top, where, graph.inputs()[0]]


def test_checks_are_not_shown() -> None:
    graph = capture(Calls(lambda x: x.to(torch.float16) if x.shape[0] < 9 else x), torch.randn(2, 3))
    assert [node.op for node in graph.nodes()] == ["cast"]


def test_addmm_shows_bias_input_and_weight_with_both_factors() -> None:
    node = next(node for node in small(Conv1D, 2, 3, 6).graph.nodes() if node.op == "addmm")
    assert keys(node.inputs) == ["bias", "view", "weight"]
    assert (node.attributes["alpha"], node.attributes["beta"]) == (1, 1)


OPERATORS: tuple[tuple[Callable[[Tensor], Tensor], tuple[int, ...], str, dict[str, object]], ...] = (
    (lambda x: x + 2 * x, (2, 3), "add", {"alpha": 1}),
    (lambda x: torch.add(x, x, alpha=3), (2, 3), "add", {"alpha": 3}),
    (lambda x: x - 1, (2, 3), "sub", {"other": 1, "alpha": 1}),
    (lambda x: x * 0.5, (2, 3), "mul", {"other": 0.5}),
    (lambda x: x / x, (2, 3), "div", {}),
    (lambda x: x @ x, (3, 3), "matmul", {}),
    (lambda x: torch.bmm(x, x), (2, 3, 3), "matmul", {}),
    (lambda x: x.t(), (2, 3), "transpose", {"perm": (1, 0)}),
    (lambda x: x.transpose(1, -1), (2, 3, 4), "transpose", {"perm": (0, 2, 1)}),
    (lambda x: x.permute(-1, 0, 1), (2, 3, 4), "transpose", {"perm": (2, 0, 1)}),
    (lambda x: x.reshape(-1), (2, 3), "reshape", {"shape": (-1,)}),
    (lambda x: torch.softmax(x, dim=-1), (2, 3), "softmax", {"dim": -1}),
    (F.gelu, (2, 3), "gelu", {"approximate": "none"}),
    (lambda x: F.gelu(x, approximate="tanh"), (2, 3), "gelu", {"approximate": "tanh"}),
    (F.silu, (2, 3), "silu", {}),
    (torch.sigmoid, (2, 3), "sigmoid", {}),
    (torch.erf, (2, 3), "erf", {}),
    (lambda x: F.layer_norm(x, (3,)), (2, 3), "layer_norm", {"normalized_shape": (3,), "eps": 1e-05}),
    (lambda x: x.to(torch.float64), (2, 3), "cast", {"dtype": "float64"}),
    (lambda x: torch.cat([x, x], dim=1), (2, 3), "concat", {"dim": 1}),
    (lambda x: x[:, 1:2], (2, 3), "slice", {"dim": 1, "start": 1, "end": 2}),
    (lambda x: x[:, 0], (2, 3), "select", {"dim": 1, "index": 0}),
    (lambda x: x.unsqueeze(1), (2, 3), "unsqueeze", {"dim": 1}),
    (lambda x: x.clone(), (2, 3), "clone", {}),
    (lambda x: x**2, (2, 3), "pow", {"exponent": 2}),
    (torch.rsqrt, (2, 3), "rsqrt", {}),
    (lambda x: x.mean(-1, keepdim=True), (2, 3), "mean", {"dim": (-1,), "keepdim": True}),
    (lambda x: torch.where(x > 0, x, -x), (2, 3), "where", {}),
    (torch.lgamma, (2, 3), "aten.lgamma", {}),
)


class All(nn.Module):
    """Every operator that takes an input of one shape."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.functions = [function for function, wanted, _, _ in OPERATORS if wanted == shape]

    def forward(self, x: Tensor) -> list[Tensor]:
        return [function(x) for function in self.functions]


@lru_cache(maxsize=8)
def all_of(shape: tuple[int, ...]) -> FxGraph:
    """Captured together: tracing them one by one takes far longer."""
    return capture(All(shape), torch.rand(*shape) + 1)


@pytest.mark.parametrize("place", range(len(OPERATORS)), ids=lambda place: f"{place}-{OPERATORS[place][2]}")
def test_operators_have_one_name_and_one_spelling(place: int) -> None:
    _, shape, op, attributes = OPERATORS[place]
    before = sum(wanted == shape for _, wanted, _, _ in OPERATORS[:place])
    node = all_of(shape).outputs()[before].producer
    assert node is not None
    assert node.op == op
    assert {name: node.attributes.get(name) for name in attributes} == attributes
    assert node.native.startswith("aten.")


def test_attention_shows_its_options_and_an_absent_mask() -> None:
    node = nodes_of(lambda x: F.scaled_dot_product_attention(x, x, x, is_causal=True), 2, 2, 3, 4)[-1]
    assert node.op == "attention"
    assert keys(node.inputs)[3:] == [None]
    assert {name: node.attributes[name] for name in ("dropout_p", "is_causal", "scale")} == {
        "dropout_p": 0.0,
        "is_causal": True,
        "scale": None,
    }


def test_a_cast_to_the_same_type_and_a_whole_slice_are_identities() -> None:
    assert [node.op for node in nodes_of(lambda x: x[:].to(torch.float32) * 2, 2, 3)][-1:] == ["mul"]
    assert all(node.op in ("identity", "mul") for node in nodes_of(lambda x: x[:].to(torch.float32) * 2, 2, 3))


def test_symbolic_extents_are_attributes_by_key_and_their_users_are_known() -> None:
    graph = capture(Calls(lambda x: x.reshape(x.shape[0], 6).reshape(3, x.shape[0], 2)), torch.randn(2, 2, 3))
    size = next(node for node in graph.nodes() if node.op == "sym_size")
    reshape = graph.nodes()[-1]
    assert reshape.attributes["shape"] == (3, size.key, 2)
    assert str(size.outputs[0].type) == "int64[]"
    assert reshape in size.outputs[0].users


def test_constants_of_the_same_layer_called_twice_are_one_value() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(torch.relu(self.fc(x)))

    graph = capture(Twice(), torch.randn(2, 4))
    assert [len(value.users) for value in graph.constants()] == [2, 2]
    assert [node.scope for node in graph.nodes()] == ["fc", "", "fc"]


def test_a_snapshot_holds_all_keys_of_the_views() -> None:
    graph = mlp().graph
    snapshot = graph.snapshot()
    assert snapshot.kind == "fx"
    assert [node.key for node in snapshot.nodes] == [node.key for node in graph.nodes()]
    assert snapshot.outputs == ("linear_1",)


def test_annotations_are_metadata_of_the_producer_and_copies_have_their_own() -> None:
    graph = mlp().graph.copy()
    graph.annotate("relu", {"regraft.pass": "a"})
    copy = graph.copy()
    copy.annotate("relu", {"regraft.site": "b"})
    assert copy.nodes()[1].metadata == {"regraft.pass": "a", "regraft.site": "b"}
    assert graph.nodes()[1].metadata == {"regraft.pass": "a"}
    assert mlp().graph.nodes()[1].metadata == {}


def test_an_annotation_of_one_of_several_results_goes_to_their_producer() -> None:
    graph = small(Branches, 3, 4).graph.copy()
    node = next(node for node in graph.nodes() if node.op == "aten.max")
    graph.annotate(node.outputs[1].key, {"note": "here"})
    assert next(node for node in graph.nodes() if node.op == "aten.max").metadata == {"note": "here"}


def test_views_are_built_once() -> None:
    graph: FxGraph = mlp().graph
    first: Value = graph.value("relu")
    assert graph.value("relu") is first
    assert graph.nodes()[1].outputs[0] is first


@pytest.mark.parametrize(
    ("path", "scope"),
    [
        ("up", "up"),
        ("", ""),
        ("L['self'].block.up", "block.up"),
        ("L__self__", ""),
        ("L['self']._modules['block']._modules['up']", "block.up"),
        ("block.up@1", "block.up"),
        ("block.a-b", "block.a-b"),
        ("block.slice(0, 2, None).0", "weight"),
        (None, "weight"),
    ],
)
def test_scopes_are_paths_without_what_tracers_add_or_come_from_the_weight(path: str | None, scope: str) -> None:
    module = torch.export.export(Mlp(), (torch.randn(2, 8),)).run_decompositions({}).module()
    for node in module.graph.nodes:
        node.meta.pop("nn_module_stack", None)
        if path is not None:
            node.meta["nn_module_stack"] = {"layer": (path, "torch.nn.modules.linear.Linear")}
    of_weight = {"linear": "up", "relu": "", "linear_1": "down"}
    expected = list(of_weight.values()) if scope == "weight" else [scope] * 3
    assert [node.scope for node in capture(module).nodes()] == expected


def test_tied_weights_that_are_read_by_several_names_are_one_value_under_the_first() -> None:
    root = nn.Module()
    root.first, root.second = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
    root.second.weight = root.first.weight
    value = torch._subclasses.FakeTensorMode().from_tensor(torch.ones(2, 3))
    traced = fx.Graph()
    x = traced.placeholder("x")
    for name in ("first", "second"):
        weight = traced.get_attr(f"{name}.weight")
        x.meta["val"] = value
        x = traced.call_function(torch.ops.aten.linear.default, (x, weight))
    x.meta["val"] = value
    traced.output((x,))
    graph = capture(fx.GraphModule(root, traced))
    assert [(value.name, len(value.users)) for value in graph.constants()] == [("first.weight", 2)]
    assert set(graph.module.state_dict()) == {"first.weight", "second.weight"}
