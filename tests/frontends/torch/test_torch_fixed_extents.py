"""Extents that a model's code fixes though they were left free: a warning and a note say which."""

import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from regraft.errors import CaptureError, RegraftWarning
from regraft.frontends.torch import capture

REMEDY = (
    "; a reshape, view or expand with that number in the model's code does so: take it from x.shape there; "
    "dynamic_shapes=None says that fixed extents are meant"
)


class FixedBatch(nn.Module):
    """Writes the batch of 4 out."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.reshape(4, -1, 6))


class FixedTokens(nn.Module):
    """Writes the sequence of 5 out, of ids and mask."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(9, 6)
        self.places = nn.Parameter(torch.zeros(5, 6))

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        return (self.words(ids) + self.places) * mask[..., None]


class Free(nn.Module):
    """Fixes features and channels only."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.filter = nn.Linear(6, 6), nn.Conv1d(3, 3, 1)

    def forward(self, rows: Tensor, signal: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        return self.layer(rows) * scale, self.filter(signal)


def warned(model: nn.Module, *inputs: Tensor) -> tuple[str, tuple[str, ...]]:
    with pytest.warns(RegraftWarning) as caught:
        graph = capture(model, inputs)
    assert len(caught) == 1
    return str(caught[0].message), graph.notes


def test_a_batch_that_the_code_writes_out_is_named_with_its_extent_and_what_to_try() -> None:
    text, notes = warned(FixedBatch(), torch.randn(4, 2, 6))
    note = "FixedBatch fixes extents and runs with no others: dim 0 (batch) of 'x' is 4"
    assert (text, notes) == (note + REMEDY, (note,))


def test_every_input_whose_sequence_is_fixed_is_named() -> None:
    text, _ = warned(FixedTokens(), torch.ones(2, 5, dtype=torch.int64), torch.ones(2, 5))
    assert "others: dim 1 (sequence) of 'ids' is 5;" in text


def test_features_and_channels_are_fixed_without_a_word() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        graph = capture(Free(), (torch.randn(2, 6), torch.randn(2, 3, 7), torch.randn(6)))
    assert graph.notes == ()


def test_a_mask_of_batch_one_that_is_repeated_along_the_batch_is_not_named() -> None:
    class Masked(nn.Module):
        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            return x * mask

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        graph = capture(Masked(), (torch.randn(3, 7, 6), torch.ones(1, 7, 6)))
    assert str(graph.inputs()[0].type).startswith("float32[batch, ")


@pytest.mark.parametrize("given", [None, {"x": {1: Dim.AUTO}}], ids=["none", "chosen"])
def test_extents_that_were_asked_to_be_fixed_are_fixed_without_a_word(given: object) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        graph = capture(FixedBatch(), torch.randn(4, 2, 6), given)
    assert graph.notes == ()


@pytest.mark.parametrize("name", ['a"b', "a\nb", "a\\b", "a'\"\n\\b"])
def test_a_name_that_torch_cannot_write_is_refused_as_such(name: str) -> None:
    class Keyed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = nn.ModuleDict({name: nn.Linear(4, 4)})

        def forward(self, x: Tensor) -> Tensor:
            return self.parts[name](x)

    with pytest.raises(CaptureError) as caught:
        capture(Keyed(), torch.randn(3, 4))
    assert str(caught.value) == f"Keyed cannot be captured: torch has no way to write the name {f'parts.{name}'!r}"
    assert caught.value.hint is not None
    assert caught.value.hint.startswith("rename it: torch writes names into code")
