"""Writes the plans of a pass into a copy of a graph, without those whose build fails."""

from collections.abc import Callable, Sequence

from regraft.graph import Graph
from regraft.passes._run import Candidate, PassRun


def build_sites(run: PassRun, chosen: Sequence[Candidate], lose: Callable[[Candidate, Exception], None]) -> Graph:
    """Return a valid copy of the graph before the pass, with the chosen sites written into it.

    A build that fails may leave anything behind, so the graph is then made anew without it. What fails behind another
    failure may do so because of it: it is tried again, after all others, and lost when it fails twice.

    Args:
        run: the pass.
        chosen: sites to write.
        lose: called with a site that is left out and what its build raised; sets `Candidate.lost`, or raises.

    Raises:
        GraphError: when the graph is not valid in the end.
    """
    doubted: list[Candidate] = []
    while True:
        graph = run.before.copy()
        failures = [(item, error) for item in chosen if (error := _failure(run, graph, item)) is not None]
        if not failures:
            graph.validate()
            return graph
        for place, (item, error) in enumerate(failures):
            if place == 0 or item in doubted:
                lose(item, error)
        failed = [item for item, _ in failures]
        doubted = [item for item in failed if not item.lost]
        chosen = [*(item for item in chosen if item not in failed), *doubted]


def _failure(run: PassRun, graph: Graph, candidate: Candidate) -> Exception | None:
    """Write one site; return what its build raised."""
    try:
        run.item.build(graph, candidate.site, candidate.plan)
        for call in candidate.site.calls:
            graph.annotate(call.output, {"regraft.pass": run.item.name, "regraft.site": call.name})
    except Exception as error:  # one site that a pass cannot build must not take the others down with it
        return error
    return None
