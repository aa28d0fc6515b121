"""Why a pass would rewrite a place, keep it, or not even see it."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

from regraft.errors import UnknownNameError
from regraft.graph import Graph, LinearSite, NearMiss
from regraft.graph.sizes import sizes_text
from regraft.passes._pass import Reject, check_patterns, matches_name
from regraft.passes._registry import AnyPass, spelling
from regraft.passes._spelling import meant


@dataclass(frozen=True, slots=True)
class Finding:
    """What a pass thinks of one place.

    Attributes:
        site: the layer's name in the user's model.
        verdict: what would happen.
        detail: the replacement, or the reason.
    """

    site: str
    verdict: Literal["would rewrite", "would keep", "is no site"]
    detail: str


@dataclass(frozen=True, slots=True)
class Explanation:
    """The findings of one pass on one model; prints as a line each."""

    spelling: str
    findings: tuple[Finding, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain data (JSON types)."""
        return {"pass": self.spelling, "findings": [asdict(finding) for finding in self.findings]}

    def __str__(self) -> str:
        if not self.findings:
            return f"{self.spelling}: the model has nothing like what this pass rewrites"
        width = max(len(finding.site) for finding in self.findings)
        return "\n".join(f"{item.site:<{width}}  {item.verdict}: {item.detail}" for item in self.findings)


def explain_graph(graph: Graph, item: AnyPass, site: str | None = None) -> Explanation:
    """Return what a pass, without calibration, would do with every place, or with those whose name fits `site`.

    Args:
        graph: where to look.
        item: the pass.
        site: a name, a glob, or a regular expression after "re:", as in the targets of passes; all when None.

    Raises:
        OptionError: when the regular expression is none.
        UnknownNameError: when no place has that name.
    """
    wanted = "*" if site is None else site
    check_patterns("explain", (wanted,))
    sites, misses = item.find(graph)
    chosen = [found for found in sites if any(matches_name(call.name, wanted) for call in found.calls)]
    findings = [_of_site(item, found) for found in chosen]
    findings += [_of_miss(miss) for miss in misses if matches_name(miss.name, wanted)]
    if site is not None and not findings:
        names = [place.name for place in (*sites, *misses)]
        raise UnknownNameError(f"{item.name} sees no {site!r} in {graph.name}{meant(site, names)}")
    return Explanation(spelling(item), tuple(findings))


def _of_site(item: AnyPass, site: LinearSite) -> Finding:
    outcome = item.refuse(site) or item.plan(site, None)
    if isinstance(outcome, Reject):
        return Finding(site.name, "would keep", outcome.reason)
    error = f"error {outcome.announced_error:.2g} from the weights alone"
    size = sizes_text(site.bytes, outcome.bytes_after)
    return Finding(site.name, "would rewrite", f"{site.describe()} -> {outcome.after}, {error}, {size}")


def _of_miss(miss: NearMiss) -> Finding:
    return Finding(miss.name, "is no site", miss.reason)
