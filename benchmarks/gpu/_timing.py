"""Times on a GPU: by events, on rotated operands that do not fit its cache together, in turn, as medians."""

import statistics
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

CACHE_BYTES = 128 * 2**20
"""More than the last cache of any GPU that the kernels are built for."""

Tensors = Mapping[str, Tensor]
Run = Callable[[Tensors], object]


def rotated(tensors: Tensors, most: int = 64) -> list[dict[str, Tensor]]:
    """Return so many copies of the operands that the first is out of the cache when its turn comes again."""
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    copies = max(2, min(most, -(-CACHE_BYTES // max(1, size))))
    return [{name: tensor.clone() for name, tensor in tensors.items()} for _ in range(copies)]


def graphed(run: Run, tensors: Tensors) -> Callable[[], None]:
    """Return the replay of a call captured as a CUDA graph, without the cost of its launches."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run(tensors)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run(tensors)
    return graph.replay


def medians(runs: Mapping[str, Sequence[Callable[[], object]]], rounds: int) -> dict[str, float]:
    """Return the median time of each candidate in microseconds.

    Args:
        runs: by name, one call for each copy of the operands.
        rounds: how often each is measured; all candidates in turn.
    """
    for calls in runs.values():
        for call in calls:
            call()
    torch.cuda.synchronize()
    inner = {name: _repeats(calls) for name, calls in runs.items()}
    found: dict[str, list[float]] = {name: [] for name in runs}
    place = dict.fromkeys(runs, 0)
    for _ in range(rounds):
        for name, calls in runs.items():
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            for _ in range(inner[name]):
                calls[place[name] % len(calls)]()
                place[name] += 1
            end.record()
            end.synchronize()
            found[name].append(begin.elapsed_time(end) * 1000 / inner[name])
    return {name: statistics.median(times) for name, times in found.items()}


def _repeats(calls: Sequence[Callable[[], object]], target_us: float = 2000.0) -> int:
    """How many calls take long enough for the clock."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for call in calls:
        call()
    end.record()
    end.synchronize()
    one = max(1.0, begin.elapsed_time(end) * 1000 / len(calls))
    return max(1, min(200, round(target_us / one)))


def card_rates(device: torch.device) -> dict[str, float]:
    """Return what this card reaches: products in each dtype in operations a second, and bytes a second of a copy."""
    found = {name: _product_rate(dtype, device) for name, dtype in _DTYPES.items()}
    torch.backends.cuda.matmul.allow_tf32 = True
    found["tf32"] = _product_rate(torch.float32, device)
    torch.backends.cuda.matmul.allow_tf32 = False
    found["int8"] = _integer_rate(device)
    source = torch.empty(2**29, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    time = medians({"copy": [lambda: target.copy_(source)]}, 20)["copy"]
    found["bytes"] = 2 * source.numel() / time * 1e6
    return found


_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


def _product_rate(dtype: torch.dtype, device: torch.device, extent: int = 8192) -> float:
    a, b = (torch.randn(extent, extent, device=device).to(dtype) for _ in range(2))
    time = medians({"product": [lambda: a @ b]}, 10)["product"]
    return 2 * extent**3 / time * 1e6


def _integer_rate(device: torch.device, extent: int = 8192) -> float:
    a, b = (torch.randint(-127, 128, (extent, extent), device=device, dtype=torch.int8) for _ in range(2))
    time = medians({"product": [lambda: torch._int_mm(a, b.t())]}, 10)["product"]
    return 2 * extent**3 / time * 1e6
