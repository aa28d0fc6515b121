"""The pass `shift-add`: the weights of a dense linear layer become sums of signed powers of two."""

from dataclasses import dataclass
from typing import ClassVar, Final, Literal

from torch import Tensor

from regraft.errors import OptionError
from regraft.graph import Graph, LinearSite, NearMiss
from regraft.numerics.power_of_two import PowersOfTwo
from regraft.numerics.power_of_two_fit import quantize_rows, quantize_with_feedback
from regraft.ops import shift_linear, shift_monarch_linear, shift_outlier_linear
from regraft.passes._block_operands import shift_blocks
from regraft.passes._monarch_site import MonarchSite
from regraft.passes._pass import Reject, SitePass, check_patterns
from regraft.passes._quantized import (
    QuantizedPlan,
    build_quantized,
    bytes_of,
    calibrated_outliers,
    find_layers,
    kept_text,
    measured_error,
    outlier_operands,
    refuse_small,
    refuse_wide,
)
from regraft.passes._selection import refuse_layer, refuse_not_finite
from regraft.passes._statistics import SiteStatistics

_ACTIVATIONS: Final = {"none": 0, "tensor": 1, "row": 2}
_DAMPING: Final = 0.1
"""Of the error feedback: with short calibration 0.1 does better than the 0.01 that is usual for long ones."""


@dataclass(frozen=True)
class ShiftAdd(SitePass[LinearSite, QuantizedPlan]):
    """Replace the weights of `linear` by sums of signed powers of two, in 4 bits a term, with one scale a row.

    They are exact in int8, so the layer runs on the kernels of `llm-int8`. With calibration inputs the sums are those
    whose output is closest on them, and outlier columns of the input stay in floating point. Factors of low-rank layers
    are layers like any other; of a Monarch layer, both stacks of blocks are rewritten.

    Attributes:
        terms: powers of two a weight: 1 (4 bits) or 2 (8 bits, several times as accurate).
        activations: "row" quantizes the input with one step for each row, "tensor" with one step for all of it: faster,
            less accurate; "none" leaves it in floating point: smaller, but not faster.
        outliers: "calibrated" finds outlier columns on calibration inputs and keeps their original weights; "none" has
            none; "auto" is "calibrated" where there are calibration inputs and the input is quantized.
        threshold: a column whose magnitude reaches it is an outlier; 0 turns the rule off.
        relative: a column that reaches this many times the median column is one, too; 0 turns the rule off.
        cap: largest share of columns that may be outliers, in [0, 1].
        worth: outlier columns cost time; they are kept where the layer's error would be above this many times as large
            without them.
        feedback: with calibration inputs, let each column make up for the rounding of those before it.
        targets: layers to rewrite, as globs or `re:` patterns; all when empty.
        exclude: layers to leave alone, as globs or `re:` patterns.
        heads: also rewrite classifier heads, poolers and layers that the model returns directly; naming a layer in
            targets does so, too.
        small: also rewrite layers that are too small to get faster.
    """

    name: ClassVar[str] = "shift-add"
    uses_calibration: ClassVar[bool] = True
    after: ClassVar[tuple[str, ...]] = ("low-rank", "monarch")
    expands: ClassVar[tuple[str, ...]] = ("lowrank_linear",)

    terms: int = 2
    activations: Literal["row", "tensor", "none"] = "row"
    outliers: Literal["auto", "calibrated", "none"] = "auto"
    threshold: float = 6.0
    relative: float = 8.0
    cap: float = 0.01
    worth: float = 1.6
    feedback: bool = True
    targets: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    heads: bool = False
    small: bool = False

    def __post_init__(self) -> None:
        if self.terms not in (1, 2):
            raise OptionError(f"shift-add: terms must be 1 or 2; got {self.terms}")
        for option, allowed in (
            ("activations", ("row", "tensor", "none")),
            ("outliers", ("auto", "calibrated", "none")),
        ):
            if getattr(self, option) not in allowed:
                raise OptionError(f"shift-add: {option} must be {' or '.join(allowed)}; got {getattr(self, option)!r}")
        if self.outliers == "calibrated" and self.activations == "none":
            raise OptionError("shift-add: outliers=calibrated is for quantized activations; activations is none")
        for option in ("threshold", "relative", "worth"):
            if not getattr(self, option) >= 0:
                raise OptionError(f"shift-add: {option} must be at least 0; got {getattr(self, option)}")
        if not 0 <= self.cap <= 1:
            raise OptionError(f"shift-add: cap must be at least 0 and at most 1; got {self.cap}")
        check_patterns(self.name, (*self.targets, *self.exclude))

    def find(self, graph: Graph) -> tuple[list[LinearSite], list[NearMiss]]:
        """Return all linear layers, dense or in blocks."""
        return find_layers(graph)

    def refuse(self, site: LinearSite) -> Reject | None:
        """Refuse what is not asked for, and what is too wide or too small for integers to be of use."""
        refused = refuse_layer(site, targets=self.targets, exclude=self.exclude, heads=self.heads) or refuse_wide(site)
        if refused is not None:
            return refused
        if self.small or self.activations == "none":
            return None
        return refuse_small(site, self.activations, "fixed")

    def plan(self, site: LinearSite, statistics: SiteStatistics | None) -> QuantizedPlan | Reject:
        """Find outliers, fit the sums, refuse what would not get smaller, and measure the error."""
        if self.outliers == "calibrated" and statistics is None:
            return Reject("outliers=calibrated needs calibration inputs, and there are none for it")
        refused = refuse_not_finite(site, statistics)
        if refused is not None:
            return refused
        outliers = self._columns(site, statistics)
        plan = self._plan(site, statistics, outliers)
        if outliers is not None:
            plain = self._plan(site, statistics, None)
            plan = plan if plain.announced_error > self.worth * plan.announced_error else plain
        if plan.bytes_after >= site.bytes:
            return Reject(f"as {plan.after}, the {site.shape} layer would not be smaller")
        return plan

    def build(self, graph: Graph, site: LinearSite, plan: QuantizedPlan) -> None:
        """Write codes and scales; a bias that did not change stays the same constant."""
        build_quantized(graph, site, plan)

    def _plan(self, site: LinearSite, statistics: SiteStatistics | None, outliers: Tensor | None) -> QuantizedPlan:
        attributes: dict[str, int | float] = {"terms": self.terms, "activations": _ACTIVATIONS[self.activations]}
        if isinstance(site, MonarchSite):
            tensors, insert = shift_blocks(site, statistics, outliers, self._fit), shift_monarch_linear.op
            attributes |= site.attributes
        else:
            moment = None if statistics is None else statistics.moments.gram
            weight = self._fit(site.weight, moment, outliers)
            tensors = {"codes": weight.packed, "scale": weight.scale}
            insert = shift_linear.op if outliers is None else shift_outlier_linear.op
            attributes["in_features"] = site.in_features
        kept = 0 if outliers is None else len(outliers)
        tensors |= {} if outliers is None else outlier_operands(site, outliers)
        return QuantizedPlan(
            op=insert.name,
            after=self._after(kept),
            announced_error=measured_error(site, statistics, insert, tensors, attributes),
            announced_on="isotropic" if statistics is None else "calibration",
            bytes_after=bytes_of(site, tensors),
            tensors=tensors,
            attributes=attributes,
            insert=insert,
        )

    def _columns(self, site: LinearSite, statistics: SiteStatistics | None) -> Tensor | None:
        if statistics is None or self.outliers == "none" or self.activations == "none":
            return None
        return calibrated_outliers(site, statistics, threshold=self.threshold, relative=self.relative, cap=self.cap)

    def _fit(self, weight: Tensor, moment: Tensor | None, outliers: Tensor | None) -> PowersOfTwo:
        """Sums for a weight [out, in], whose inputs have that moment E[x xᵀ]."""
        if moment is None:
            return quantize_rows(weight, self.terms, without=outliers)
        if self.feedback:
            return quantize_with_feedback(weight, self.terms, moment, damping=_DAMPING, without=outliers)
        return quantize_rows(weight, self.terms, importance=moment.diagonal(), without=outliers)

    def _after(self, kept: int) -> str:
        terms = "1 power of two" if self.terms == 1 else f"{self.terms} powers of two"
        inputs = {"row": ", int8 a row", "tensor": ", int8", "none": ""}[self.activations]
        return f"{terms}{inputs}" + (f", {kept_text(kept)}" if kept else "")
