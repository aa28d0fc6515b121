"""What calibration inputs tell of each site: moments of its input and a sample of rows to check rewrites on."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from regraft.errors import InputError
from regraft.graph import Graph
from regraft.graph.site import LinearSite
from regraft.numerics.moments import Moments
from regraft.passes._batches import calibration_batch

SAMPLE_ROWS = 512


@dataclass(slots=True)
class SiteStatistics:
    """Of one activation that layers read, or of those that the calls of one layer read.

    Attributes:
        moments: of all calibration rows.
        sample: up to SAMPLE_ROWS of these rows, drawn uniformly, [rows, features] in the activation's dtype.
        layers: for a site of several layers, those of every activation that they read, by key (`SitePass.taps`).
    """

    moments: Moments
    generator: torch.Generator = field(repr=False)
    sample: Tensor = field(default_factory=lambda: torch.zeros(0))
    layers: Mapping[str, "SiteStatistics"] = field(default_factory=dict[str, "SiteStatistics"])

    def update(self, x: Tensor) -> None:
        """Add the rows of an activation [..., features]."""
        rows = x.detach().reshape(-1, x.shape[-1])
        seen = self.moments.rows
        self.moments.update(rows)
        kept = self.sample if seen else rows[:0]
        free = SAMPLE_ROWS - len(kept)
        sample = torch.cat([kept, rows[:free]]) if free > 0 else kept
        self.sample = self._exchange(sample, rows[max(free, 0) :], seen + max(free, 0))

    def _exchange(self, sample: Tensor, rows: Tensor, seen: int) -> Tensor:
        # Reservoir sampling: row number i (from 0) takes a random place among i + 1, if that place is in the sample.
        if not len(rows):
            return sample
        numbers = torch.arange(seen, seen + len(rows))
        drawn = torch.rand(len(rows), generator=self.generator, dtype=torch.float64)
        places = (drawn * (numbers + 1)).long()
        hits = places < SAMPLE_ROWS
        sample = sample.clone()
        for place, row in zip(places[hits].tolist(), rows[hits.to(rows.device)], strict=True):
            sample[place] = row
        return sample


def collect(
    graph: Graph,
    sites: Sequence[LinearSite],
    batches: Iterable[Any],
    *,
    seed: int,
    others: Mapping[str, int] | None = None,
    advance: Callable[[int], None] = lambda _: None,
) -> dict[tuple[str, ...], SiteStatistics]:
    """Run the graph on calibration batches and return statistics by the keys of the activations (`LinearSite.inputs`).

    Layers that read the same activation (query, key and value) share an entry. A layer that is called several times
    has one of the rows of all calls. Sites with a call in a nested body have none. `others` are keys of more
    activations, with their widths.

    Raises:
        InputError: when there is no batch, or a batch does not fit the model.
    """
    widths = {site.inputs: site.in_features for site in sites if not any(call.nested for call in site.calls)}
    widths |= {(key,): width for key, width in (others or {}).items()}
    taps = list(dict.fromkeys(key for keys in widths for key in keys))
    found = {
        keys: SiteStatistics(Moments(width), torch.Generator().manual_seed(seed + place))
        for place, (keys, width) in enumerate(widths.items())
    }
    count = 0
    for batch in batches:
        with calibration_batch(graph, batch, count):
            _, tapped = graph.run(batch, taps)
        for keys, statistics in found.items():
            for key in keys:
                statistics.update(tapped[key])
        count += 1
        advance(count)
    if count == 0:
        raise InputError("calibration has no batch; at least one is needed")
    return found
