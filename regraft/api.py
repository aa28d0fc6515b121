"""The smaller public functions: load, diff, explain."""

from collections.abc import Mapping
from typing import Any

from regraft._provenance import LEDGER_KEY, RECIPE_KEY, Run, ledger_between, ledger_of, runs_of
from regraft.diff import GraphDiff
from regraft.diff import diff as diff_snapshots
from regraft.errors import OptionError
from regraft.graph import Graph
from regraft.models import to_graph
from regraft.passes import Explanation, PassLike, explain_graph, resolve_passes
from regraft.result import Optimized


def load(model: Any, *, example_inputs: Any = None, dynamic_shapes: Any = "auto") -> Optimized:
    """Return a model as it is: to run, compare, export or compile it without rewriting anything.

    Args:
        model: anything that `optimize` takes. An ONNX file that Regraft wrote brings its ledger and recipe along.
        example_inputs: to capture a PyTorch model with.
        dynamic_shapes: as in `optimize`.

    Raises:
        ModelNotFoundError, ModelFileError, CaptureError: when there is no such model, or it cannot be read.
    """
    graph = to_graph(model, example_inputs=example_inputs, dynamic_shapes=dynamic_shapes)
    *earlier, last = runs_of(graph) or ({},)
    provenance = {key: text for key, text in last.items() if key != LEDGER_KEY}
    recipe = tuple(part for part in provenance.get(RECIPE_KEY, "").split("\n") if part)
    return Optimized(graph, None, ledger_of(last, graph.name), recipe, provenance, tuple(earlier))


def diff(before: Any, after: Any, *, example_inputs: Any = None, dims: Mapping[str, int] | None = None) -> GraphDiff:
    """Return what changed between two models: modules, files, graphs or results of `optimize`.

    `example_inputs` are used to capture PyTorch modules. The ledgers of all runs of `optimize` that made `after`, and
    did not make `before`, name the causes. `dims` are extents of the dynamic dims, by name: then the totals have
    multiply-adds and the modelled peak of activations as numbers.

    Raises:
        ModelFileError: when what a file says of the runs that made it cannot be read.
        ShapeError: when `dims` lacks an extent.
    """
    old, new = (to_graph(model, example_inputs=example_inputs) for model in (before, after))
    ledger = ledger_between(_runs(before, old), _runs(after, new), new)
    return diff_snapshots(old.snapshot(), new.snapshot(), ledger, dims=dims)


def _runs(model: Any, graph: Graph) -> tuple[Run, ...]:
    return model.runs if isinstance(model, Optimized) else runs_of(graph)


def explain(model: Any, pass_spec: PassLike, site: str | None = None, *, example_inputs: Any = None) -> Explanation:
    """Return what a pass would do with every place of a model, and why not; nothing is changed.

    Args:
        model: as in `optimize`.
        pass_spec: one pass, as an instance or a spelling.
        site: name of one layer, a glob or a `re:` pattern; all when None.
        example_inputs: to capture a PyTorch module with.

    Raises:
        UnknownNameError: when no place has the name `site`.
    """
    passes = resolve_passes(pass_spec)
    if len(passes) != 1:
        raise OptionError(f"explain takes one pass; got {len(passes)}")
    return explain_graph(to_graph(model, example_inputs=example_inputs), passes[0], site)
