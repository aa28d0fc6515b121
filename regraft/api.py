"""The smaller public functions: load, diff, explain."""

import json
import os
from pathlib import Path
from typing import Any

from regraft.diff import GraphDiff
from regraft.diff import diff as diff_snapshots
from regraft.errors import ModelFileError, OptionError
from regraft.frontends import onnx as onnx_frontend
from regraft.ledger import Ledger
from regraft.models import to_graph
from regraft.passes import Explanation, PassLike, explain_graph, resolve_passes
from regraft.result import Optimized


def load(path: str | os.PathLike[str]) -> Optimized:
    """Return an exported ONNX file as the `Optimized` that wrote it, ledger included.

    A file that Regraft did not write has an empty ledger. The original model is not in the file: `.diff` needs it, so use
    `regraft.diff(original, path)`.

    Raises:
        ModelNotFoundError, ModelFileError: when there is no such model.
    """
    graph = onnx_frontend.load(Path(path))
    metadata = dict(graph.model.metadata_props)
    text = metadata.pop("regraft.ledger", "")
    try:
        ledger = Ledger.from_dict(json.loads(text)) if text else Ledger()
    except (ValueError, KeyError, TypeError) as error:
        raise ModelFileError(f"{path}: its metadata 'regraft.ledger' is not a ledger: {error}") from error
    recipe = tuple(part for part in metadata.get("regraft.recipe", "").split("\n") if part)
    provenance = {key: value for key, value in metadata.items() if key.startswith("regraft.")}
    return Optimized(graph, None, ledger, recipe, provenance)


def diff(before: Any, after: Any, *, example_inputs: Any = None) -> GraphDiff:
    """Return what changed between two models: modules, files, graphs or results of `optimize`.

    `example_inputs` are used to capture PyTorch modules. When `after` is a result of `optimize`, its ledger names the
    causes.
    """
    ledger = after.ledger if isinstance(after, Optimized) else None
    graphs = [to_graph(model, example_inputs=example_inputs) for model in (before, after)]
    return diff_snapshots(graphs[0].snapshot(), graphs[1].snapshot(), ledger)


def explain(
    model: Any, pass_spec: PassLike, site: str | None = None, *, example_inputs: Any = None
) -> Explanation:
    """Return what a pass would do with every place of a model, and why not; nothing is changed.

    Args:
        model: as in `optimize`.
        pass_spec: one pass, as an instance or a spelling.
        site: name of one layer, or a glob; all when None.
        example_inputs: to capture a PyTorch module with.

    Raises:
        UnknownNameError: when no place has the name `site`.
    """
    passes = resolve_passes(pass_spec)
    if len(passes) != 1:
        raise OptionError(f"explain takes one pass; got {len(passes)}")
    return explain_graph(to_graph(model, example_inputs=example_inputs), passes[0], site)
