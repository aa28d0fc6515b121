"""Masks of a site as the one mask and the one bias of four dims that ops of attention take."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Final, TypeVar

from torch import Tensor

from regraft.graph import Graph, Site
from regraft.ops import evaluate
from regraft.ops.combined_mask import DIMS
from regraft.ops.combined_mask import op as combined_mask

SiteT = TypeVar("SiteT", bound=Site)

KINDS: Final = ("mask", "bias")
"""Operands of a site that are masks, further ones of a kind with "#2", "#3" behind: booleans, and numbers."""


def with_one_mask(graph: Graph, site: SiteT, pass_name: str) -> SiteT:
    """Return the site with one mask of a kind, of four dims: nodes in front of it add dims and combine several.

    What stands there already for the same masks is used again.
    """
    operands = {name: key for name, key in site.operands.items() if _kind(name) not in KINDS}
    for kind in KINDS:
        first, *others = [key for name, key in site.operands.items() if _kind(name) == kind] or [""]
        if not first:
            continue
        for other in others or [""]:
            lead = DIMS - (graph.value(first).type.rank or 0)
            if not other and not lead:
                break
            second = {"second": other} if other else {}
            behind = DIMS - (graph.value(other).type.rank or 0) if other else 0
            attributes = _attributes(kind, lead, behind)
            first = graph.insert(
                combined_mask, {"first": first, **second}, attributes, site.output, f"{site.name}.{kind}"
            )
            graph.annotate(first, {"regraft.pass": pass_name, "regraft.site": site.name})
        operands[kind] = first
    return replace(site, operands=operands)


def in_one_mask(operands: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the contents of a site's operands with one mask of a kind, as `with_one_mask` makes them in a graph."""
    found = {name: tensor for name, tensor in operands.items() if _kind(name) not in KINDS}
    for kind in KINDS:
        masks = [tensor for name, tensor in operands.items() if _kind(name) == kind]
        for mask in masks:
            if kind in found:
                attributes = _attributes(kind, 0, DIMS - mask.dim())
                found[kind] = evaluate(combined_mask, {"first": found[kind], "second": mask}, attributes)
            else:
                found[kind] = evaluate(combined_mask, {"first": mask}, _attributes(kind, DIMS - mask.dim(), 0))
    return found


def _kind(name: str) -> str:
    return name.split("#", maxsplit=1)[0]


def _attributes(kind: str, first_lead: int, second_lead: int) -> dict[str, int]:
    return {"first_lead": first_lead, "second_lead": second_lead, "boolean": int(kind == "mask")}
