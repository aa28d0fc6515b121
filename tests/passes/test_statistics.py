"""Statistics of calibration inputs: moments of all rows, and a uniform sample of them."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import WIDTH, Shared, Straight, batch, graph_of

from regraft.errors import InputError
from regraft.graph import find_linear_sites
from regraft.numerics.moments import Moments
from regraft.passes._statistics import SAMPLE_ROWS, SiteStatistics, collect


def _numbered(count: int) -> torch.Tensor:
    return torch.arange(count, dtype=torch.float32)[:, None]


def _collected(sizes: list[int], seed: int = 0) -> SiteStatistics:
    statistics = SiteStatistics(Moments(1), torch.Generator().manual_seed(seed))
    for rows in _numbered(sum(sizes)).split(sizes):
        statistics.update(rows)
    return statistics


@given(st.lists(st.integers(0, 300), min_size=1, max_size=8), st.integers(0, 100))
@settings(deadline=None, max_examples=60)
def test_the_sample_holds_distinct_rows_as_many_as_there_are_up_to_its_size(sizes: list[int], seed: int) -> None:
    statistics = _collected(sizes, seed)
    rows = statistics.sample.flatten().tolist()
    assert len(rows) == min(sum(sizes), SAMPLE_ROWS)
    assert len(set(rows)) == len(rows)
    assert set(rows) <= set(range(sum(sizes)))
    assert statistics.moments.rows == sum(sizes)


def test_few_rows_are_all_kept_in_order() -> None:
    assert _collected([5, 0, 7]).sample.flatten().tolist() == list(range(12))


def test_the_same_seed_gives_the_same_sample_and_another_one_another() -> None:
    sizes = [400, 300, 900]
    assert torch.equal(_collected(sizes).sample, _collected(sizes).sample)
    assert not torch.equal(_collected(sizes).sample, _collected(sizes, seed=1).sample)


@pytest.mark.parametrize("sizes", [[4096], [512, 3584], [100] * 40 + [96], [4095, 1]])
def test_every_row_is_as_likely_to_be_in_the_sample(sizes: list[int]) -> None:
    """Of 4096 rows each is in it with probability 1/8: every eighth of them holds 64 ± 7.5 of its rows."""
    counts = torch.zeros(8)
    runs = 12
    for seed in range(runs):
        counts += torch.histc(_collected(sizes, seed).sample, bins=8, min=0, max=4096)
    expected = runs * SAMPLE_ROWS / 8
    deviation = (expected * (1 - 1 / 8)) ** 0.5
    assert float((counts - expected).abs().max()) < 4 * deviation


def test_rows_keep_the_type_of_the_activation() -> None:
    statistics = SiteStatistics(Moments(4), torch.Generator().manual_seed(0))
    statistics.update(torch.randn(2, 3, 4, dtype=torch.bfloat16))
    assert (statistics.sample.dtype, statistics.sample.shape) == (torch.bfloat16, (6, 4))


# Collected from a graph


def test_layers_that_read_one_activation_share_their_statistics() -> None:
    graph = graph_of(Shared)
    sites, _ = find_linear_sites(graph)
    found = collect(graph, sites, [(batch(1),), (batch(2, rows=9),)], seed=0)
    query, key, classifier = sites
    assert query.input == key.input
    assert set(found) == {query.inputs, classifier.inputs}
    rows = torch.cat([batch(1), batch(2, rows=9)])
    torch.testing.assert_close(found[query.inputs].moments.second, rows.double().t() @ rows.double())
    assert torch.equal(found[query.inputs].sample, rows)


def test_activations_inside_the_model_are_collected_as_the_model_computes_them() -> None:
    graph = graph_of(Straight)
    sites, _ = find_linear_sites(graph)
    found = collect(graph, sites, [(batch(1),)], seed=0)
    (first,) = graph.evaluate([sites[0].output], {sites[0].input: batch(1)})
    assert torch.equal(found[sites[1].inputs].sample, first)


def test_progress_counts_the_batches() -> None:
    graph, seen = graph_of(Shared), []
    collect(graph, find_linear_sites(graph)[0], ((batch(seed),) for seed in range(3)), seed=0, advance=seen.append)
    assert seen == [1, 2, 3]


@pytest.mark.parametrize("batches", [[], (), iter([])])
def test_no_batch_at_all_is_refused(batches: Any) -> None:
    graph = graph_of(Shared)
    with pytest.raises(InputError) as caught:
        collect(graph, find_linear_sites(graph)[0], batches, seed=0)
    assert str(caught.value) == "calibration has no batch; at least one is needed"


def test_a_batch_that_does_not_fit_the_model_is_refused() -> None:
    graph = graph_of(Shared)
    with pytest.raises(InputError, match=r"input 'x' needs float32"):
        collect(graph, find_linear_sites(graph)[0], [(batch(0, width=WIDTH + 1),)], seed=0)
