"""Models and inputs that cannot be captured: one line names what is at fault, and a hint what to try."""

import pytest
import torch
from torch import Tensor, fx, nn
from torch_models import Mlp, seeded

from regraft.errors import CaptureError, InputError
from regraft.frontends.torch import capture

X = torch.ones(2, 8)
_LIBRARY = torch.library.Library("regraft_tests", "DEF")
_LIBRARY.define("untyped(Tensor x) -> Tensor")
_LIBRARY.impl("untyped", lambda x: x * 2, "CPU")


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            return x + 1
        return x


class Counting(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        found = x.nonzero()
        return found if found.shape[0] > 3 else x


class Untyped(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.regraft_tests.untyped(x)


class Opaque:
    pass


class Returning(nn.Module):
    def forward(self, x: Tensor) -> Opaque:
        return Opaque()


class Taking(nn.Module):
    def forward(self, x: Tensor, cache: object = None) -> Tensor:
        return x * 2


class Deep(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x: Tensor, mask: Tensor | None = None, *, scale: float = 1.0) -> Tensor:
        return self.fc(x) * scale


def refusal(model: nn.Module, inputs: object, kind: type[Exception]) -> tuple[str, str | None]:
    with pytest.raises(kind) as caught:
        capture(model, inputs)
    assert "\n" not in str(caught.value)
    return str(caught.value), caught.value.hint  # type: ignore[attr-defined]


def test_a_branch_on_data_is_named_with_its_source_line() -> None:
    text, hint = refusal(Branching(), X, CaptureError)
    assert text.startswith("Branching cannot be captured: its control flow depends on the data at test_torch_capture_")
    assert text.endswith("(`if x.sum() > 0:`)")
    assert hint == "write the branch with torch.where or torch.cond, or capture a module that leaves it out"


def test_a_branch_on_an_extent_that_depends_on_data_is_named_too() -> None:
    text, _ = refusal(Counting(), X, CaptureError)
    assert text.endswith("(`return found if found.shape[0] > 3 else x`)")


def test_an_operator_without_a_type_is_named_with_how_to_register_one() -> None:
    text, hint = refusal(Untyped(), X, CaptureError)
    expected = (
        "Untyped cannot be captured: operator regraft_tests.untyped.default does not say what type its result has"
    )
    assert text == expected
    assert hint == "register that with torch.library.register_fake('regraft_tests::untyped')"


def test_a_result_that_is_no_tensor_is_named() -> None:
    text, hint = refusal(Returning(), X, CaptureError)
    assert text == "Returning cannot be captured: it returns a Opaque, which is no container of tensors"
    assert hint == "return tensors and containers of them; for a key-value cache set use_cache=False"


def test_an_input_that_is_no_tensor_is_named() -> None:
    text, _ = refusal(Taking(), {"x": X, "cache": Opaque()}, CaptureError)
    can = "only tensors, numbers, strings and containers of them can be traced"
    assert text == f"Taking: input 'cache' is a Opaque; {can}"


def test_example_inputs_are_needed() -> None:
    text, hint = refusal(Deep(), None, InputError)
    assert text == "Deep: example_inputs are needed to capture an nn.Module; got none"
    assert hint == (
        "pass a tensor, a tuple of inputs or a mapping of keyword arguments (on the command line, --inputs FILE)"
    )


def test_a_wrong_name_is_refused_with_the_names_that_forward_has() -> None:
    text, _ = refusal(Deep(), {"x": X, "masks": X}, InputError)
    assert text == "Deep.forward has no input 'masks'; it has: x, mask, scale"


def test_a_missing_input_is_named() -> None:
    text, _ = refusal(Deep(), {"mask": X}, InputError)
    assert text == "Deep.forward needs 'x', which the example inputs lack; it has: x, mask, scale"


def test_too_many_inputs_are_refused() -> None:
    text, _ = refusal(Deep(), (X, X, 2.0), InputError)
    assert text == "Deep.forward takes 2 inputs (x, mask); got 3"


def test_names_hidden_behind_kwargs_are_refused_when_forward_knows_none_of_them() -> None:
    class Loose(nn.Module):
        def forward(self, x: Tensor, **kwargs: object) -> Tensor:
            return x

    text, _ = refusal(Loose(), {"y": X}, InputError)
    assert text == "Loose.forward has no input 'y'; it has: x"


def test_inputs_that_the_model_itself_cannot_take_are_told_from_a_model_that_cannot_be_captured() -> None:
    text, hint = refusal(Deep(), torch.ones(2, 5), InputError)
    assert text.startswith("Deep cannot be called with the example inputs: mat1 and mat2 shapes cannot be multiplied")
    assert hint == "Deep.forward takes x, mask, scale"


def test_a_symbolically_traced_module_without_inputs_is_refused() -> None:
    with pytest.raises(CaptureError) as caught:
        capture(fx.symbolic_trace(seeded(Mlp)))
    assert str(caught.value).startswith("the GraphModule is not at the level of ATen: node")
    assert caught.value.hint == "pass example_inputs, so that it can be traced again by torch.export"


def test_capture_prints_nothing_of_its_attempts(capfd: pytest.CaptureFixture[str]) -> None:
    refusal(Branching(), X, CaptureError)
    assert capfd.readouterr() == ("", "")


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_torchscript_is_refused_with_the_next_thing_to_try() -> None:
    text, hint = refusal(torch.jit.trace(Mlp(), torch.ones(2, 8)), torch.ones(2, 8), CaptureError)
    assert text.endswith(" cannot be captured: TorchScript keeps no Python code to trace")
    assert hint == "pass the nn.Module that it was made from"
