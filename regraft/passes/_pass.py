"""What a pass is: a frozen dataclass whose fields are its options, with two steps, `plan` and `build`."""

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import ClassVar, Generic, Literal, TypeVar

from torch import Tensor

from regraft.errors import OptionError
from regraft.graph import Graph, NearMiss, Site
from regraft.passes._statistics import SiteStatistics

Needs = Literal["weights", "calibration", "gradients", "training"]

SiteT = TypeVar("SiteT", bound=Site)
PlanT = TypeVar("PlanT", bound="Plan")


@dataclass(frozen=True, eq=False)
class Plan:
    """What a pass means to put in the place of a site. Passes derive their own, with the tensors that `build` needs.

    Attributes:
        op: name of the op to insert.
        after: the replacement in a few characters, for the ledger ("rank 122").
        announced_error: relative error of the layer's product that the pass promises (0 for an exact pass).
        announced_on: inputs for which it is promised: "isotropic" ones (a bound on the weights) or "calibration".
        bytes_after: size of the new parameters in bytes.
    """

    op: str
    after: str
    announced_error: float
    announced_on: Literal["isotropic", "calibration"]
    bytes_after: int

    def definition(self, operands: Mapping[str, Tensor]) -> Tensor | None:
        """Return in double precision what a site of more than one layer shall compute from its operands by name.

        None when the plan says nothing of its own; then an exact pass is held to the part that it replaces.
        """
        del operands
        return None


@dataclass(frozen=True, slots=True)
class Reject:
    """Why a site is kept as it is, as a phrase for the ledger."""

    reason: str


class SitePass(ABC, Generic[SiteT, PlanT]):
    """A pass that rewrites sites one by one.

    Derive a frozen dataclass; its fields are the options in Python, on the command line and in recipes, and their text
    in the docstring's "Attributes:" is their documentation. Those called `targets` and `exclude` are names of layers,
    as `matches_name` reads them; the manager tells of one that fits no layer. Set the class variables:

        name: the registry's and the command line's name; the file's name with "-" for "_".
        needs: what the pass cannot do without.
        uses_calibration: whether it is better with calibration inputs.
        exact: whether the function stays the same up to rounding.
        after: names of passes that must come before this one when both are asked for.
        conflicts: names of passes that cannot be asked for together with this one.
        expands: ops that are written out as linear layers before this pass looks for sites, so that a factor of a
            low-rank layer is a layer like any other.
        tells_misses: whether the ledger lists places that came close to a site, too; for passes with few sites.
    """

    name: ClassVar[str]
    needs: ClassVar[Needs] = "weights"
    uses_calibration: ClassVar[bool] = False
    exact: ClassVar[bool] = False
    after: ClassVar[tuple[str, ...]] = ()
    conflicts: ClassVar[tuple[str, ...]] = ()
    expands: ClassVar[tuple[str, ...]] = ()
    tells_misses: ClassVar[bool] = False

    @abstractmethod
    def find(self, graph: Graph) -> tuple[list[SiteT], list[NearMiss]]:
        """Return the sites of a graph that this pass looks at, and the places that came close."""

    def refuse(self, site: SiteT) -> Reject | None:
        """Return why a site is not even looked at (not a target, a head), before any calibration is run for it."""
        return None

    def taps(self, site: SiteT) -> Mapping[str, int]:
        """Return what a site that is no single layer wants calibration statistics of: keys, and extents of rows.

        They are in `SiteStatistics.layers`.
        """
        return {}

    @abstractmethod
    def plan(self, site: SiteT, statistics: SiteStatistics | None) -> PlanT | Reject:
        """Decide what to do with a site; changes nothing. `statistics` is None when there is no calibration."""

    @abstractmethod
    def build(self, graph: Graph, site: SiteT, plan: PlanT) -> None:
        """Write the plan into the graph."""


def is_selected(name: str, targets: tuple[str, ...], exclude: tuple[str, ...]) -> bool:
    """Whether a layer is asked for: matches a target (any, when there are none) and no exclusion."""
    wanted = not targets or any(matches_name(name, target) for target in targets)
    return wanted and not any(matches_name(name, refused) for refused in exclude)


def not_asked_for(name: str, targets: tuple[str, ...], exclude: tuple[str, ...]) -> str:
    """Return why a layer is not asked for, as a reason, or "" when it is."""
    if is_selected(name, targets, exclude):
        return ""
    return "excluded" if is_selected(name, targets, ()) else "not among the targets"


def matches_name(name: str, wanted: str) -> bool:
    """Whether a layer's name is the wanted one, or fits it as a glob, or all of it a regular expression after "re:"."""
    if wanted.startswith("re:"):
        return re.fullmatch(wanted[3:], name) is not None
    return name == wanted or fnmatchcase(name, wanted)


def check_patterns(pass_name: str, patterns: tuple[str, ...]) -> None:
    """Raise OptionError for a regular expression that cannot be compiled."""
    for wanted in patterns:
        if wanted.startswith("re:"):
            try:
                re.compile(wanted[3:])
            except (re.error, OverflowError) as error:
                message = f"{pass_name}: {wanted!r} is not a regular expression: {error}"
                raise OptionError(message) from error
