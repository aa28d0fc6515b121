"""The trained MiniLM for tests; they skip nothing: the package is part of the development install."""

import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))

from _minilm import batches, cosine, embed, load_model, tokenize
from _sentences import CALIBRATION, EVALUATION

__all__ = ["CALIBRATION", "EVALUATION", "batches", "cosine", "embed", "example", "load_model", "model", "tokenize"]


@lru_cache(maxsize=1)
def model() -> torch.nn.Module:
    return load_model()


def example() -> dict[str, Any]:
    return tokenize(EVALUATION[:4])
