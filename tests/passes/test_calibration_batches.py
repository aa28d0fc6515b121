"""Calibration as people have it: numpy arrays, loaders that give labels too, batches without rows."""

from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import WIDTH, batch, chain, site_of
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

import regraft
from regraft.errors import InputError, OptionError
from regraft.numerics.moments import Moments
from regraft.passes import LowRank, Reject, SiteStatistics, calibration_batch

PASS = "low-rank{keep=0.5}"


def optimized(calibration: Any) -> regraft.Optimized:
    return regraft.optimize(chain().module, PASS, calibration=calibration, progress=False)


def refusal(calibration: Any) -> tuple[str, str | None]:
    with pytest.raises(InputError) as caught:
        optimized(calibration)
    return str(caught.value), caught.value.hint


def loader() -> DataLoader[tuple[Tensor, ...]]:
    return DataLoader(TensorDataset(batch(1, rows=8), torch.arange(8)), batch_size=4)


def factors(result: regraft.Optimized) -> list[Tensor]:
    return [parameter.detach() for parameter in result.model.parameters()]


def frozen(array: Any) -> Any:
    array.flags.writeable = False
    return array


@pytest.mark.parametrize(
    "given", [batch(1).numpy(), (batch(1).numpy(),), {"x": frozen(batch(1).numpy())}], ids=["array", "tuple", "frozen"]
)
def test_numpy_arrays_calibrate_as_tensors_do(given: Any) -> None:
    for mine, theirs in zip(factors(optimized([given])), factors(optimized([batch(1)])), strict=True):
        assert torch.equal(mine, theirs)


def test_an_optimized_torch_model_takes_numpy_arrays() -> None:
    result = optimized([batch(1)])
    assert torch.equal(result(batch(2).numpy()), result(batch(2)))


def test_an_array_of_text_is_refused_as_any_other_thing_of_a_wrong_type() -> None:
    text, _ = refusal([np.array(["a", "b"])])
    assert text == f"calibration[0]: input 'x' needs float32 [batch, {WIDTH}], got ndarray"


def test_a_single_array_in_the_place_of_batches_is_refused() -> None:
    with pytest.raises(OptionError, match=r"calibration must be an iterable of batches of inputs; got one ndarray"):
        optimized(batch(1).numpy())


def test_a_loader_of_inputs_and_labels_is_refused_with_the_remedy() -> None:
    assert refusal(loader()) == (
        f"calibration[0]: {chain().name} takes 1 inputs (x); got 2",
        "when labels stand behind the inputs, leave them out: calibration=(batch[0] for batch in loader)",
    )


def test_the_remedy_for_a_loader_of_pairs_works() -> None:
    assert len(optimized(given[0] for given in loader()).ledger.rewritten) == 4


def test_a_mapping_with_labels_is_refused_with_the_key_to_drop() -> None:
    given = {"x": batch(1), "labels": torch.arange(6)}
    text, hint = refusal([given])
    assert text == f"calibration[0]: {chain().name} has no input 'labels'; it has: x"
    assert hint == (
        "leave 'labels' out: calibration="
        "({key: value for key, value in batch.items() if key not in ['labels']} for batch in loader)"
    )
    scope: dict[str, Any] = {"loader": [given]}
    remedy = eval(hint.partition("calibration=")[2], scope)  # what the hint says is what works
    assert len(optimized(remedy).ledger.rewritten) == 4


@pytest.mark.parametrize("place", [0, 1, 9])
def test_a_batch_without_rows_is_named_by_its_place(place: int) -> None:
    batches = [batch(1)] * place + [batch(1)[:0], batch(1)]
    assert refusal(batches)[0] == (
        f"calibration[{place}]: input 'x' has no rows (its shape is [0, {WIDTH}]); at least one is needed"
    )


def test_a_batch_that_does_not_fit_is_named_beyond_those_that_the_error_is_measured_on() -> None:
    text, _ = refusal([batch(1)] * 9 + [batch(1)[:, :5]])
    assert text == f"calibration[9]: input 'x' needs float32 [batch, {WIDTH}], got float32 [6, 5]"


def test_an_input_that_is_empty_in_another_dim_is_no_batch_without_rows() -> None:
    with calibration_batch(chain(), {"x": batch(1), "cache": torch.zeros(6, 2, 0, 4)}, 0):
        pass


def test_a_layer_that_no_calibration_row_reaches_is_kept_for_that_reason() -> None:
    site = site_of(chain(), "layers.0")
    unseen = SiteStatistics(Moments(WIDTH), torch.Generator())
    assert LowRank().plan(site, unseen) == Reject("no row of the calibration inputs reaches it")
