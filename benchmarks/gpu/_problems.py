"""The problems that are built for the GPU: extents of layers of BERT-Base and of a model of 4096 features."""

from collections.abc import Iterator, Mapping
from typing import Final

from regraft.backends.tvm.kernels._kernel import Problem

ROWS: Final = (1, 16, 256, 8192)
"""Numbers of rows that tiles are chosen for."""

_DTYPES: Final = ("float16", "bfloat16", "float32", "tf32")


def _lowrank(quick: bool) -> Iterator[Problem]:
    shapes = (
        ((4096, 1024, 4096),) if quick else ((768, 192, 768), (768, 192, 3072), (4096, 1024, 4096), (1023, 77, 515))
    )
    for inner, rank, outer in shapes:
        sizes = {"in_features": inner, "rank": rank, "out_features": outer}
        for dtype in _DTYPES[:1] if quick else _DTYPES:
            for rows in ROWS[2:3] if quick else ROWS:
                yield Problem(dtype, sizes, {"bias": 1}, rows)


def _mlp(quick: bool) -> Iterator[Problem]:
    options = {"activation": "gelu", "in_bias": 1, "out_bias": 1}
    for dtype in _DTYPES[:1] if quick else _DTYPES:
        sizes = {"in_features": 768, "hidden": 3072, "out_features": 768, "in_rank": 96, "gate_rank": 1, "out_rank": 96}
        for rows in ROWS[2:3] if quick else ROWS:
            yield Problem(dtype, sizes, options, rows)


def _problems(quick: bool) -> Mapping[str, tuple[Problem, ...]]:
    makers = {"lowrank_linear": _lowrank, "lowrank_mlp": _mlp}
    return {op: tuple(make(quick)) for op, make in makers.items()}


PROBLEMS: Final = _problems(quick=False)
QUICK: Final = _problems(quick=True)
