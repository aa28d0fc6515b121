"""What an optimized model says of its making, and of the runs before."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any, Final

import torch
from torch import Tensor

from regraft.errors import ModelFileError
from regraft.frontends.onnx import OnnxGraph
from regraft.graph import Graph
from regraft.ledger import Ledger

PACKAGES: Final = ("regraft", "torch", "onnx", "onnx-ir", "onnxruntime")

PREFIX: Final = "regraft."
RECIPE_KEY: Final = "regraft.recipe"
LEDGER_KEY: Final = "regraft.ledger"
LANGUAGE_KEY: Final = "regraft.language"
"""Graph language that the run was made in, "fx" or "onnx": the keys in its ledger are those of that graph."""
EARLIER_KEY: Final = "regraft.earlier_runs"
"""A JSON list of the runs before the last one, oldest first, each an object of the keys that the last one has."""

Run = Mapping[str, str]
"""One call of `optimize`: recipe, seed, versions, graph language, hash of the source and ledger, as text by key."""


def provenance(original: Graph, recipe: Sequence[str], seed: int) -> dict[str, str]:
    """Return recipe, seed, versions, graph language and the hash of the original, as text by key."""
    return {
        RECIPE_KEY: "\n".join(recipe),
        "regraft.seed": str(seed),
        "regraft.versions": " ".join(f"{name}={version(name)}" for name in PACKAGES),
        LANGUAGE_KEY: original.kind,
        "regraft.source_sha256": fingerprint(original),
    }


def metadata_of(runs: Sequence[Run]) -> dict[str, str]:
    """Return what a file says of the runs that made it, oldest first: the keys of the last one, and those before."""
    if not runs:
        return {}
    *earlier, last = runs
    return {**last, EARLIER_KEY: json.dumps([dict(run) for run in earlier], sort_keys=True)} if earlier else dict(last)


def runs_of(graph: Graph) -> tuple[Run, ...]:
    """Return the runs that an ONNX file says it was made by, oldest first; none for other graphs.

    Raises:
        ModelFileError: when the file's list of runs is none.
    """
    metadata = graph.model.metadata_props if isinstance(graph, OnnxGraph) else {}
    last = {key: text for key, text in metadata.items() if key.startswith(PREFIX) and key != EARLIER_KEY}
    return (*_earlier(metadata.get(EARLIER_KEY, "[]"), graph.name), last) if RECIPE_KEY in last else ()


def _earlier(text: str, name: str) -> tuple[Run, ...]:
    where = f"{name}: its metadata {EARLIER_KEY!r}"
    try:
        found: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ModelFileError(f"{where} is not JSON: {error}") from error
    runs: list[Any] = found if isinstance(found, list) else [found]
    if not all(isinstance(run, dict) and all(isinstance(item, str) for item in run.values()) for run in runs):
        raise ModelFileError(f"{where} must be a list of objects of texts")
    return tuple(runs)


def ledger_of(run: Run, name: str) -> Ledger:
    """Return a run's ledger; an empty one when it tells of none.

    Raises:
        ModelFileError: when it is no ledger; `name` is that of the file.
    """
    text = run.get(LEDGER_KEY, "")
    try:
        return Ledger.from_dict(json.loads(text)) if text else Ledger()
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelFileError(f"{name}: its metadata {LEDGER_KEY!r} is not a ledger: {error}") from error


def ledger_between(before: Sequence[Run], after: Sequence[Run], graph: Graph) -> Ledger:
    """Return what was done to get from one model to another, in one ledger.

    Args:
        before: the runs that made the one, oldest first.
        after: the runs that made the other; those that both begin with are left out.
        graph: the other model. When a run was made in another graph language, the export after it gave new keys, and no
            key of a later run is one of the first model: then sites are known by their names alone.

    Raises:
        ModelFileError: when a run's ledger is none.
    """
    shared = 0
    while shared < min(len(before), len(after)) and before[shared] == after[shared]:
        shared += 1
    joined = Ledger()
    for run in after[shared:]:
        joined = joined.followed_by(ledger_of(run, graph.name))
    exported = any(run.get(LANGUAGE_KEY) != graph.kind for run in after[shared:])
    return joined.without_keys() if exported else joined


def fingerprint(graph: Graph) -> str:
    """Return a SHA-256 over the program's text and the bytes of its weights; equal for equal models."""
    digest = hashlib.sha256(str(graph.snapshot()).encode())
    for value in graph.constants():
        digest.update(value.name.encode())
        content = graph.constant(value)
        if content is not None:
            digest.update(_raw_bytes(content))
        elif isinstance(graph, OnnxGraph):  # of a type that torch has not: 4-bit and 8-bit floats, texts
            digest.update(graph.constant_bytes(value))
    return digest.hexdigest()


def _raw_bytes(tensor: Tensor) -> Any:
    """The content as a buffer, not copied."""
    plain = tensor.detach().cpu().contiguous()
    return plain.reshape(-1).view(torch.uint8).numpy().data
