"""The problems that are built for the GPU: layers of BERT-Base and of a model of 4096 features, and odd extents."""

from collections.abc import Iterator, Mapping
from typing import Final

from regraft.backends.tvm.kernels._kernel import Problem

ROWS: Final = (4, 256, 8192)
"""Numbers of rows that tiles are chosen for: memory-bound, a part of the GPU, all of it."""

Options = Mapping[str, int | float | str]


def _of(
    sizes: Mapping[str, int], options: Options, dtypes: tuple[str, ...], rows: tuple[int, ...] = ROWS
) -> Iterator[Problem]:
    for dtype in dtypes:
        for count in rows:
            yield Problem(dtype, sizes, options, count)


def _lowrank() -> Iterator[Problem]:
    def sizes(inner: int, rank: int, outer: int) -> Mapping[str, int]:
        return {"in_features": inner, "rank": rank, "out_features": outer}

    yield from _of(sizes(4096, 1024, 4096), {"bias": 1}, ("float16", "bfloat16"))
    yield from _of(sizes(768, 192, 3072), {"bias": 1}, ("float16", "float32", "tf32"))
    yield from _of(sizes(1023, 77, 515), {}, ("float16",), ROWS[:2])


def _mlp() -> Iterator[Problem]:
    sizes = {"in_features": 768, "hidden": 3072, "out_features": 768, "in_rank": 96, "gate_rank": 1, "out_rank": 96}
    options = {"activation": "gelu", "in_bias": 1, "out_bias": 1}
    yield from _of(sizes, options, ("float16", "bfloat16", "float32"), ROWS[1:])
    gated = {"in_features": 515, "hidden": 1023, "out_features": 515, "in_rank": 33, "gate_rank": 40, "out_rank": 65}
    yield from _of(gated, {"activation": "silu", "gate": 1, "residual": 1}, ("bfloat16",), ROWS[1:2])


def _whole(inner: int, outer: int) -> Mapping[str, int]:
    return {"in_features": inner, "out_features": outer}


def _int8() -> Iterator[Problem]:
    options = {"bias": 1, "per_row": 1}
    yield from _of(_whole(4096, 4096), options, ("float16", "bfloat16"))
    yield from _of(_whole(1023, 515), options, ("float16",), ROWS[:2])


def _outlier() -> Iterator[Problem]:
    yield from _of({**_whole(4096, 4096), "outliers": 24}, {"bias": 1, "per_row": 1}, ("float16",))
    yield from _of({**_whole(515, 1023), "outliers": 5}, {"per_row": 1}, ("bfloat16",), ROWS[:2])


def _shift() -> Iterator[Problem]:
    for chosen in ({"terms": 1, "activations": 0}, {"terms": 2, "activations": 0}, {"terms": 1, "activations": 2}):
        yield from _of(_whole(4096, 4096), {"bias": 1, **chosen}, ("float16",))
    yield from _of(_whole(1023, 515), {"terms": 1, "activations": 0}, ("bfloat16",), ROWS[:2])


def _monarch() -> Iterator[Problem]:
    def sizes(inner: int, outer: int, runs: int, groups: int, rank: int) -> Mapping[str, int]:
        counts = {"in_blocks": runs, "out_blocks": groups, "block_rank": rank}
        return {"in_features": inner, "out_features": outer, **counts}

    yield from _of(sizes(4096, 4096, 16, 16, 64), {"bias": 1}, ("float16", "bfloat16"))
    yield from _of(sizes(515, 1023, 3, 5, 7), {"in_strided": 1, "out_strided": 1}, ("float16", "float32"), ROWS[:2])


def _attention() -> Iterator[Problem]:
    """Heads as wide as a model's and as narrow as a rank; masked by key, causal and grouped, with a bias of each."""
    keys = {"split": 1, "mask": 1, "mask_batch": 1}
    each = {"mask": 1, "mask_batch": 1, "mask_queries": 1, "bias": 1, "bias_heads": 1, "bias_queries": 1}
    cases: tuple[tuple[int, int, int, Options], ...] = (
        (12, 12, 64, keys),
        (12, 12, 40, keys),
        (32, 8, 128, {"split": 1, "causal": 1}),
        (4, 4, 33, each),
    )
    for heads, kv_heads, head, options in cases:
        sizes = {"heads": heads, "kv_heads": kv_heads, "head": head, "value": head}
        yield from _of(sizes, {**options, "scale": head**-0.5}, ("float16",), ROWS[1:])
    yield from _of(
        {"heads": 12, "kv_heads": 12, "head": 64, "value": 64}, {**keys, "scale": 0.125}, ("bfloat16",), ROWS[1:2]
    )


PROBLEMS: Final[Mapping[str, tuple[Problem, ...]]] = {
    "lowrank_linear": tuple(_lowrank()),
    "lowrank_mlp": tuple(_mlp()),
    "int8_linear": tuple(_int8()),
    "int8_outlier_linear": tuple(_outlier()),
    "shift_linear": tuple(_shift()),
    "monarch_linear": tuple(_monarch()),
    "multi_head_attention": tuple(_attention()),
}
