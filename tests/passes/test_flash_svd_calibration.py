"""flash-svd with calibration inputs: cuts meet what layers compute on them, and nothing is collected in vain."""

from functools import lru_cache
from typing import Any

import pytest
import torch
from tiny_transformers import (
    HEAD,
    WIDTH,
    Block,
    Example,
    Kind,
    block_example,
    mask_of,
    seeded,
)
from torch import Tensor

from regraft.backends.onnxruntime._from_torch import to_onnx
from regraft.errors import InputError
from regraft.frontends.torch import capture
from regraft.graph import Graph
from regraft.ledger import Ledger
from regraft.passes import FlashSVD, Settings, resolve_passes, run_passes

SCALES = torch.logspace(0, -2, WIDTH)


def _batch(seed: int, form: str = "mask") -> Example:
    """Rows that lie in few directions, with a mean: unlike what a cut by weights alone takes them for."""
    generator = torch.Generator().manual_seed(seed)
    turn = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(9)))[0]
    x = (torch.randn(4, 9, WIDTH, generator=generator) * SCALES + 0.3) @ turn
    return (x,) if form == "causal" else (x, mask_of(9, 7, 8, 4, keys=9))


CALIBRATION = tuple(_batch(seed) for seed in range(6))


def _run(graph: Graph, passes: str, calibration: Any = None, probes: Any = ()) -> tuple[Graph, Ledger]:
    return run_passes(graph, resolve_passes(passes), Settings(calibration=calibration, probes=probes, strict=False))


@lru_cache(maxsize=4)
def _dense(kind: Kind) -> Graph:
    fx = capture(seeded(Block()), block_example("mask"))
    return fx if kind == "fx" else to_onnx(fx, 18)


def _error(before: Graph, after: Graph) -> float:
    """Of the whole block, on rows of the same kind that were not used."""
    pairs = [(before.run(batch)[0][0], after.run(batch)[0][0]) for batch in (_batch(50), _batch(51))]
    wanted, found = (torch.cat(list(outputs)) for outputs in zip(*pairs, strict=True))
    return float((wanted - found).norm() / wanted.norm())


@pytest.mark.parametrize("kind", ["fx", "onnx"])
@pytest.mark.parametrize("options", ["head_rank=2,mlp=false", "keep=0.5", "rank=4,attention=false"])
def test_on_data_like_the_calibrations_the_error_is_smaller(kind: Kind, options: str) -> None:
    dense = _dense(kind)
    plain, _ = _run(dense, f"flash-svd{{{options}}}", probes=CALIBRATION[:1])
    fitted, ledger = _run(dense, f"flash-svd{{{options}}}", CALIBRATION, CALIBRATION[:1])
    assert {entry.status for entry in ledger} == {"rewritten"}
    assert {entry.checked_on for entry in ledger} == {"calibration"}
    assert _error(dense, fitted) < 0.9 * _error(dense, plain)


def test_at_full_head_size_calibration_changes_nothing() -> None:
    dense = _dense("fx")
    fitted, ledger = _run(dense, f"flash-svd{{head_rank={HEAD},mlp=false}}", CALIBRATION)
    assert [entry.announced_error for entry in ledger] == [0.0]
    assert _error(dense, fitted) < 1e-6


def test_a_feed_forward_layer_is_cut_as_low_rank_cuts_it() -> None:
    alone, _ = _run(_dense("fx"), "low-rank{rank=5,targets=[mlp.*],heads=true}", CALIBRATION)
    fitted, _ = _run(_dense("fx"), "flash-svd{rank=5,attention=false}", CALIBRATION)
    wanted, found = (graph.run(_batch(50))[0][0] for graph in (alone, fitted))
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


class Counted:
    """Batches that count how often they are asked for."""

    def __init__(self) -> None:
        self.asked = 0

    def __iter__(self) -> Any:
        self.asked += 1
        return iter(CALIBRATION)


def test_where_nothing_is_cut_no_calibration_is_run() -> None:
    factors, _ = _run(_dense("fx"), "low-rank{keep=0.7,heads=true}")
    batches = Counted()
    _, ledger = _run(factors, "flash-svd", batches)
    assert [entry.status for entry in ledger] == ["rewritten"] * 2
    assert batches.asked == 0
    _run(_dense("fx"), "flash-svd{keep=0.5}", batches)
    assert batches.asked == 1


def test_inputs_of_all_layers_are_tapped_once_each_with_their_widths() -> None:
    item = FlashSVD(keep=0.5)
    graph = _dense("fx")
    sites, _ = item.find(graph)
    attention, mlp = (item.taps(site) for site in sites)
    assert sorted(attention.values()) == [WIDTH, 4 * HEAD]
    assert sorted(mlp.values()) == [WIDTH, 36]
    assert all(graph.value(key).type.shape[-1] == width for key, width in (attention | mlp).items())  # type: ignore[index]
    assert not FlashSVD().taps(sites[0])


def test_rows_of_numbers_that_are_not_finite_are_refused() -> None:
    spoiled: list[tuple[Tensor, ...]] = [(torch.full((1, 9, WIDTH), torch.inf), mask_of(9, keys=9))]
    _, ledger = _run(_dense("fx"), "flash-svd{keep=0.5}", spoiled)
    assert {entry.reason for entry in ledger} == {"calibration gave no rows for it, or numbers that are not finite"}
    with pytest.raises(InputError, match="calibration has no batch"):
        _run(_dense("fx"), "flash-svd{keep=0.5}", [])


def test_a_layer_of_all_three_is_cut_behind_its_factor_by_the_moments_there() -> None:
    """In factors already, and the heads are cut further: rank space on the factors, fitted, is no worse than plain."""
    factors, _ = _run(_dense("fx"), "low-rank{keep=0.7,heads=true}", CALIBRATION)
    plain, _ = _run(factors, "flash-svd{head_rank=2,mlp=false}", probes=CALIBRATION[:1])
    fitted, ledger = _run(factors, "flash-svd{head_rank=2,mlp=false}", CALIBRATION, CALIBRATION[:1])
    assert [entry.status for entry in ledger] == ["rewritten"]
    assert _error(factors, fitted) < _error(factors, plain)
