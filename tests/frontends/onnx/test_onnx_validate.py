"""Checking ONNX graphs: what is broken is named, and no weight needs to be read for it."""

import onnx_ir as ir
import pytest
import torch
from onnx_models import LOWRANK, branches, mlp, parse, rewrite_all, sites

from regraft.errors import GraphError
from regraft.frontends.onnx import load


@pytest.mark.parametrize("opset", [13, 18, 21, 24])
def test_good_graphs_pass_before_and_after_rewriting(opset: int) -> None:
    for model in (mlp(opset), branches()):
        graph = load(model)
        graph.validate()
        rewrite_all(graph)
        graph.validate()


def test_a_result_of_another_type_than_declared_is_named() -> None:
    graph = load(mlp())
    site = sites(graph)["up"]
    factors = {"down": torch.ones(1, 6, dtype=torch.float64), "up": torch.ones(4, 1, dtype=torch.float64)}
    graph.replace(site, LOWRANK, factors)
    with pytest.raises(GraphError) as caught:
        graph.validate()
    assert str(caught.value).startswith("net: ")
    assert "\n" not in str(caught.value)


def test_factors_of_the_wrong_shape_are_found() -> None:
    graph = load(mlp())
    graph.replace(sites(graph)["up"], LOWRANK, {"down": torch.ones(2, 6), "up": torch.ones(4, 3)})
    with pytest.raises(GraphError) as caught:
        graph.validate()
    assert "\n" not in str(caught.value)


def test_a_node_that_breaks_its_operator_is_named() -> None:
    graph = load(mlp())
    graph.model.graph.node("act").op_type = "NoSuchOperator"
    with pytest.raises(GraphError, match=r"^net: .*NoSuchOperator.*act"):
        graph.validate()


def test_large_weights_are_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = load(parse("net (float[b, 600] x) => (float[b, 400] y) { y = MatMul(x, w) }", {"w": (600, 400)}))

    def refuse(self: object) -> None:
        raise AssertionError("the weight was read")

    monkeypatch.setattr(ir.serde.TensorProtoTensor, "tobytes", refuse)
    monkeypatch.setattr(ir.serde.TensorProtoTensor, "numpy", refuse)
    graph.validate()


def test_an_output_whose_shape_the_file_leaves_out_is_no_mistake() -> None:
    model = parse("net (float[b, 6] x) => (float[b, 6] y) { y = custom.Foreign(x) }")
    model.graph.output[0].type.tensor_type.ClearField("shape")
    load(model).validate()
