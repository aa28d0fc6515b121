"""The public functions on small models: what they take, return and refuse."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import regraft
from regraft.errors import (
    BudgetError,
    InputError,
    ModelTypeError,
    NoMatchError,
    OptionError,
    RegraftError,
    UnknownNameError,
)
from regraft.passes import LowRank


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(24, 48), nn.ReLU(), nn.Linear(48, 24), nn.Tanh()).eval()


def inputs(rows: int = 6) -> torch.Tensor:
    return torch.randn(rows, 24, generator=torch.Generator().manual_seed(1))


def optimized(passes: Any = "low-rank", **options: Any) -> regraft.Optimized:
    return regraft.optimize(network(), passes, **{"example_inputs": inputs(), "progress": False, **options})


def test_importing_the_package_does_not_import_torch() -> None:
    code = "import sys, regraft; assert 'torch' not in sys.modules; print(regraft.__version__)"
    result = run_python(code)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == regraft.__version__


def test_public_functions_stay_functions_when_modules_of_their_names_are_imported() -> None:
    code = (
        "import regraft.optimize, regraft.diff, regraft; assert callable(regraft.optimize) and callable(regraft.diff)"
    )
    result = run_python(code)
    assert result.returncode == 0, result.stderr


def run_python(code: str) -> Any:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_every_public_name_is_there_and_others_are_refused() -> None:
    assert all(getattr(regraft, name) is not None for name in regraft.__all__)
    with pytest.raises(AttributeError, match="module 'regraft' has no attribute 'optimise'"):
        regraft.optimise  # type: ignore[attr-defined] # noqa: B018


def test_the_model_that_was_given_is_not_changed() -> None:
    model = network()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    regraft.optimize(model, "low-rank", example_inputs=inputs(), progress=False)
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_an_optimized_model_is_called_like_the_original() -> None:
    result = optimized()
    module = result.model
    assert isinstance(module, nn.Module)
    x = inputs(11)
    torch.testing.assert_close(result(x), module(x))
    with pytest.raises(InputError, match=r"input 'input' needs float32 \[batch, 24\], got int64 \[2, 24\]"):
        result(torch.zeros(2, 24, dtype=torch.int64))


def test_an_onnx_model_gives_arrays_for_arrays_and_tensors_for_tensors(tmp_path: Path) -> None:
    path = optimized().export(tmp_path / "m.onnx")
    loaded = regraft.load(path)
    assert isinstance(loaded(inputs())[0], torch.Tensor)
    assert isinstance(loaded(inputs().numpy())[0], np.ndarray)


@pytest.mark.parametrize("given", [42, None, {"a": 1}])
def test_what_is_no_model_is_refused_with_what_would_be_one(given: Any) -> None:
    with pytest.raises(ModelTypeError, match="a model must be an nn.Module, ExportedProgram, GraphModule, ModelProto"):
        regraft.optimize(given, "low-rank")


def test_a_checkpoint_is_refused_with_the_next_thing_to_try() -> None:
    with pytest.raises(ModelTypeError, match="weights.pt: a model file must be an .onnx file") as caught:
        regraft.optimize("weights.pt", "low-rank")
    assert caught.value.hint == "load a PyTorch model in Python and pass the module"


def test_unknown_settings_are_refused_before_any_work() -> None:
    with pytest.raises(OptionError, match="on_violation must be 'rollback', 'raise' or 'warn'; got 'ignore'"):
        optimized(on_violation="ignore")
    with pytest.raises(UnknownNameError, match="regraft.passes has no 'low-rnk'"):
        optimized("low-rnk")
    with pytest.raises(OptionError, match="at least one pass is needed"):
        optimized([])
    for seed, shown in ((1.5, r"1\.5"), (True, "True"), ("a", "'a'")):
        with pytest.raises(OptionError, match=rf"seed must be a whole number from 0 to 4294967295; got {shown}"):
            optimized(seed=seed)
    with pytest.raises(OptionError, match=r"budget must be a regraft\.Budget; got 0\.1"):
        optimized(budget=0.1)


def test_a_rank_that_makes_no_layer_smaller_is_an_error_that_says_what_would() -> None:
    with pytest.raises(NoMatchError, match=r"rank must be below 16 for a 48x24 layer to get smaller; got 16"):
        optimized("low-rank{rank=16}")


def test_a_budget_takes_back_what_does_not_fit_and_keeps_the_rest() -> None:
    free = optimized("low-rank{keep=0.6}")
    assert free.ledger.model_error is not None
    limit = 0.9 * free.ledger.model_error
    held = optimized("low-rank{keep=0.6}", budget=regraft.Budget(max_error=limit))
    assert held.ledger.model_error is not None
    assert held.ledger.model_error <= limit
    assert len(held.ledger.rolled_back) >= 1


def test_a_violated_budget_is_an_error_when_asked_for() -> None:
    with pytest.raises(BudgetError, match="low-rank: budget max_error=1e-06: output error would be"):
        optimized(budget=regraft.Budget(max_error=1e-6), on_violation="raise")


def test_a_budget_on_a_score_calls_the_users_function_with_something_like_the_model() -> None:
    x, seen = inputs(32), []
    wanted = network()(x).detach()

    def evaluate(model: Any) -> float:
        seen.append(model(x).shape)
        return 1 - float((model(x) - wanted).norm() / wanted.norm())

    result = optimized(budget=regraft.Budget(evaluate=evaluate, max_drop=1e-4))
    assert len(result.ledger.rolled_back) == 2
    assert seen
    assert set(seen) == {(32, 24)}


def test_the_users_function_gets_a_module_that_may_be_moved_without_moving_the_model() -> None:
    x, model = inputs(8), network()

    def evaluate(given: nn.Module) -> float:
        assert not torch.is_grad_enabled()
        given.eval().double()
        return float(given(x.double()).norm())

    budget = regraft.Budget(evaluate=evaluate, max_drop=1e9)
    result = regraft.optimize(model, "low-rank", example_inputs=x, budget=budget, progress=False)
    assert len(result.ledger.rewritten) == 2
    assert {tensor.dtype for tensor in (*model.parameters(), *result.model.parameters())} == {torch.float32}


def test_a_speedup_that_cannot_be_had_takes_the_whole_pass_back() -> None:
    result = optimized(budget=regraft.Budget(min_speedup=1000.0))
    assert [entry.status for entry in result.ledger] == ["rolled back", "rolled back"]
    assert "min_speedup=1000" in result.ledger.rolled_back[0].reason
    assert not result.ledger.rewritten
    torch.testing.assert_close(result(inputs()), network()(inputs()))


def test_a_recipe_file_does_what_its_spelling_does(tmp_path: Path) -> None:
    recipe = tmp_path / "half.yaml"
    recipe.write_text("passes:\n  - low-rank: {keep: 0.4, targets: ['0']}\n")
    from_file, spelled = optimized(str(recipe)), optimized("low-rank{keep=0.4,targets=0}")
    assert from_file.recipe == spelled.recipe == ("low-rank{keep=0.4,targets=[0]}",)
    torch.testing.assert_close(from_file(inputs()), spelled(inputs()))


def test_loading_leaves_a_model_as_it_is() -> None:
    loaded = regraft.load(network(), example_inputs=inputs())
    torch.testing.assert_close(loaded(inputs()), network()(inputs()))
    assert len(loaded.ledger) == 0
    with pytest.raises(OptionError, match="the original of a loaded model is not known"):
        _ = loaded.diff


def test_a_diff_of_two_models_names_the_causes_of_a_result() -> None:
    result = optimized()
    difference = regraft.diff(network(), result, example_inputs=inputs())
    assert [change.site for change in difference.changes] == ["0", "2"]
    assert "low-rank: 2 sites" in str(difference)


def test_explain_says_what_would_happen_without_doing_it() -> None:
    text = str(regraft.explain(network(), "low-rank", example_inputs=inputs()))
    assert "0  would rewrite: 48x24 -> rank 8" in text
    with pytest.raises(OptionError, match="explain takes one pass; got 2"):
        regraft.explain(network(), "low-rank,low-rank", example_inputs=inputs())
    with pytest.raises(UnknownNameError, match="low-rank sees no '7' in Sequential"):
        regraft.explain(network(), "low-rank", site="7", example_inputs=inputs())


@pytest.mark.parametrize("opset", [18, 21, 23])
def test_a_torch_model_is_written_at_the_opset_asked_for(tmp_path: Path, opset: int) -> None:
    path = optimized().export(tmp_path / "m.onnx", opset=opset)
    proto = onnx.load(path)
    assert {item.domain: item.version for item in proto.opset_import}[""] == opset
    torch.testing.assert_close(regraft.load(path)(inputs())[0], optimized()(inputs()), atol=1e-5, rtol=1e-5)


def test_a_pass_on_instances_and_on_a_mix_of_spellings(tmp_path: Path) -> None:
    result = optimized([LowRank(keep=0.4, targets=("0",)), "low-rank{keep=0.3,targets=2}"])
    assert [(entry.site, entry.after) for entry in result.ledger.rewritten] == [("0", "rank 6"), ("2", "rank 4")]


class Scaled(nn.Module):
    """A layer with a keyword that matters and an optional mask."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(24, 48), nn.Linear(48, 24)

    def forward(self, x: torch.Tensor, shift: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        y = self.b(torch.relu(self.a(x))) + shift
        return y + 1 if mask is None else y * mask


def test_positional_and_named_inputs_are_taken_together(tmp_path: Path) -> None:
    x, shift = inputs(4), torch.full((4, 24), 5.0)
    loaded = regraft.load(Scaled().eval(), example_inputs=(x, torch.zeros(4, 24)))
    wanted = Scaled()(x, shift).detach()
    torch.testing.assert_close(loaded(x, shift=shift).detach(), wanted)
    for backend in ("torch", "onnxruntime"):
        found = loaded.compile(backend)(x, shift=shift)
        torch.testing.assert_close(found if backend == "torch" else found[0], wanted, atol=1e-5, rtol=1e-5)
    from_file = regraft.load(loaded.export(tmp_path / "m.onnx"))
    torch.testing.assert_close(from_file(x, shift=shift)[0], wanted, atol=1e-5, rtol=1e-5)
    with pytest.raises(InputError, match="input 'x' is given by position and by name; once is needed"):
        loaded(x, x=x)


def test_a_tensor_for_what_was_captured_as_none_is_refused() -> None:
    x, shift = inputs(4), torch.zeros(4, 24)
    loaded = regraft.load(Scaled().eval(), example_inputs=(x, shift, None))
    with pytest.raises(InputError, match=r"was captured as None, got float32 \[4, 24\]"):
        loaded(x, shift, torch.zeros(4, 24))


def test_a_model_that_cannot_be_run_on_random_numbers_is_optimized_and_the_ledger_says_so() -> None:
    class Rows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.layer = nn.Embedding(1, 24), nn.Linear(24, 48)

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return torch.tanh(self.layer(self.table(ids)))

    exported = torch.export.export(Rows().eval(), (torch.zeros(2, 3, dtype=torch.int64),))
    result = regraft.optimize(exported, "low-rank", progress=False)
    assert result.ledger.model_error is None
    assert str(result.ledger).startswith("note: the model's error was not measured")


def test_a_file_with_a_hostile_ledger_is_refused_with_one_line(tmp_path: Path) -> None:
    path = optimized().export(tmp_path / "m.onnx")
    proto = onnx.load(path)
    next(item for item in proto.metadata_props if item.key == "regraft.ledger").value = "[" * 100_000
    onnx.save(proto, path)
    with pytest.raises(RegraftError, match="its metadata 'regraft.ledger' is not a ledger"):
        regraft.load(path)


@pytest.mark.parametrize("given", [5, inputs(4), {"x": inputs(4)}, "batches.npz"])
def test_calibration_that_is_no_list_of_batches_is_refused_with_the_remedy(given: Any) -> None:
    with pytest.raises(OptionError, match="calibration must be an iterable of batches of inputs; got one") as caught:
        optimized(calibration=given)
    assert caught.value.hint == "put a single batch in a list: calibration=[batch]"


def test_calibration_of_an_onnx_model_that_holds_no_arrays_is_refused(tmp_path: Path) -> None:
    path = optimized().export(tmp_path / "m.onnx")
    with pytest.raises(InputError, match=r"^calibration\[0\]: onnxruntime: inputs must be arrays .*; got one int$"):
        regraft.optimize(path, "low-rank", calibration=[1, 2], progress=False)


@pytest.mark.parametrize(("given", "kind"), [(1, "int"), (None, "NoneType"), ("a", "str")])
def test_calibration_of_a_torch_model_that_holds_no_tensors_is_refused(given: Any, kind: str) -> None:
    with pytest.raises(
        InputError, match=rf"^calibration\[0\]: Sequential: inputs must be tensors, .*; got one {kind}$"
    ):
        optimized(calibration=[given])


def test_a_score_that_is_no_number_is_refused() -> None:
    with pytest.raises(OptionError, match="budget: evaluate must return one number; got a NoneType"):
        optimized(budget=regraft.Budget(evaluate=lambda model: None, max_drop=0.1))  # type: ignore[arg-type,return-value]


@pytest.mark.parametrize("opset", ["21", 21.0])
def test_an_opset_that_is_no_whole_number_is_refused(tmp_path: Path, opset: Any) -> None:
    with pytest.raises(OptionError, match=f"opset must be from 18 to [0-9]+ for a PyTorch model; got {opset!r}"):
        optimized().export(tmp_path / "m.onnx", opset=opset)


def test_a_layer_that_is_called_twice_is_rewritten_once() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(24, 24)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.tanh(self.layer(torch.tanh(self.layer(x))))

    result = regraft.optimize(Twice().eval(), "low-rank", example_inputs=inputs(), progress=False)
    assert [(entry.before, entry.status) for entry in result.ledger] == [("24x24, called 2 times", "rewritten")]
    assert {name for name, _ in result.model.named_parameters()} == {"layer.down", "layer.up", "layer.bias"}
