"""What an optimized model says of its making."""

import hashlib
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any, Final

import torch
from torch import Tensor

from regraft.graph import Graph

PACKAGES: Final = ("regraft", "torch", "onnx", "onnx-ir", "onnxruntime")


def provenance(original: Graph, recipe: Sequence[str], seed: int) -> dict[str, str]:
    """Return recipe, seed, versions and the hash of the original, as text by key."""
    return {
        "regraft.recipe": "\n".join(recipe),
        "regraft.seed": str(seed),
        "regraft.versions": " ".join(f"{name}={version(name)}" for name in PACKAGES),
        "regraft.source_sha256": fingerprint(original),
    }


def fingerprint(graph: Graph) -> str:
    """Return a SHA-256 over the program's text and the bytes of its weights; equal for equal models."""
    digest = hashlib.sha256(str(graph.snapshot()).encode())
    for value in graph.constants():
        content = graph.constant(value)
        digest.update(value.name.encode())
        if content is not None:
            digest.update(_raw_bytes(content))
    return digest.hexdigest()


def _raw_bytes(tensor: Tensor) -> Any:
    """The content as a buffer, not copied."""
    plain = tensor.detach().cpu().contiguous()
    return plain.reshape(-1).view(torch.uint8).numpy().data
