"""Which constants can be one."""

import torch

from regraft.graph.sharing import content_key


def test_small_integers_of_equal_content_type_and_shape_have_one_key() -> None:
    mask = torch.tensor([True, False, True, True])
    assert content_key(mask) == content_key(mask.clone())
    others = [~mask, mask[:3], mask.reshape(2, 2), mask.to(torch.int8)]
    assert len({content_key(tensor) for tensor in (mask, *others)}) == 5


def test_a_view_has_the_key_of_its_content() -> None:
    places = torch.arange(12)
    assert content_key(places[::2]) == content_key(torch.tensor([0, 2, 4, 6, 8, 10]))


def test_floating_point_and_large_tensors_have_none() -> None:
    assert content_key(torch.ones(3)) is None
    assert content_key(torch.ones(1 << 16, dtype=torch.int8)) is not None
    assert content_key(torch.ones((1 << 16) + 1, dtype=torch.int8)) is None
