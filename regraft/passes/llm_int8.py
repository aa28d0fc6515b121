"""The pass `llm-int8`: a dense linear layer becomes one in 8-bit integers, its outliers apart."""

from dataclasses import dataclass
from typing import ClassVar, Final, Literal

from torch import Tensor

from regraft.errors import OptionError, VerificationError
from regraft.graph import Graph, LinearSite, NearMiss
from regraft.numerics import int8
from regraft.numerics.int8_state import Int8State, open_state
from regraft.ops import Op, int8_linear, int8_monarch_linear, int8_outlier_linear, int8_topk_linear
from regraft.passes._block_operands import int8_blocks
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

Outliers = Literal["auto", "calibrated", "dynamic", "none"]

FEWEST_DYNAMIC: Final = 8
"""Columns that "dynamic" looks for at least; the published method met 7 at most in models up to 13 G parameters."""


@dataclass(frozen=True)
class LLMInt8(SitePass[LinearSite, QuantizedPlan]):
    """Replace `linear` by products of 8-bit integers, with the few outlier columns of its input in floating point.

    Weights get one scale a row, made without the outlier columns; activations are quantized when the model runs.
    Factors of low-rank layers are layers like any other; of a Monarch layer, both stacks of blocks are quantized.

    Attributes:
        outliers: "calibrated" finds outlier columns on calibration inputs and keeps their original weights; "dynamic"
            finds them in every call, needs no calibration, and restores their weights from 8 bits; "none" has none;
            "auto" is "calibrated" where there are calibration inputs, else "dynamic" ("none" for blocks of a Monarch
            layer, which has no columns of its own to restore).
        threshold: a column whose magnitude reaches it is an outlier; 0 turns the rule off.
        relative: with calibration, a column that reaches this many times the median column is one, too; 0 turns the
            rule off.
        cap: largest share of columns that may be outliers, in [0, 1].
        activations: "row" has one step for each row, "tensor" one for the whole activation: faster, less accurate.
        state: a .safetensors file, or a folder of them, with weights that bitsandbytes quantized: taken as they are.
        targets: layers to rewrite, as globs or `re:` patterns; all when empty.
        exclude: layers to leave alone, as globs or `re:` patterns.
        heads: also rewrite classifier heads, poolers and layers that the model returns directly; naming a layer in
            targets does so, too.
        small: also rewrite layers that are too small to get faster.
    """

    name: ClassVar[str] = "llm-int8"
    uses_calibration: ClassVar[bool] = True
    after: ClassVar[tuple[str, ...]] = ("low-rank", "monarch")
    expands: ClassVar[tuple[str, ...]] = ("lowrank_linear",)

    outliers: Outliers = "auto"
    threshold: float = 6.0
    relative: float = 8.0
    cap: float = 0.01
    activations: Literal["row", "tensor"] = "row"
    state: str | None = None
    targets: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    heads: bool = False
    small: bool = False

    def __post_init__(self) -> None:
        for option, allowed in (
            ("outliers", ("auto", "calibrated", "dynamic", "none")),
            ("activations", ("row", "tensor")),
        ):
            if getattr(self, option) not in allowed:
                raise OptionError(f"llm-int8: {option} must be {' or '.join(allowed)}; got {getattr(self, option)!r}")
        for option in ("threshold", "relative"):
            if not getattr(self, option) >= 0:
                raise OptionError(f"llm-int8: {option} must be at least 0; got {getattr(self, option)}")
        if not 0 <= self.cap <= 1:
            raise OptionError(f"llm-int8: cap must be at least 0 and at most 1; got {self.cap}")
        check_patterns(self.name, (*self.targets, *self.exclude))
        if self.state is not None:
            open_state(self.state)

    def find(self, graph: Graph) -> tuple[list[LinearSite], list[NearMiss]]:
        """Return all linear layers, dense or in blocks."""
        return find_layers(graph)

    def refuse(self, site: LinearSite) -> Reject | None:
        """Refuse what is not asked for, and what is too wide or too small for integers to be of use."""
        unasked = refuse_layer(site, targets=self.targets, exclude=self.exclude, heads=self.heads)
        return unasked or refuse_wide(site)

    def plan(self, site: LinearSite, statistics: SiteStatistics | None) -> QuantizedPlan | Reject:
        """Find outliers, quantize, refuse what would not get smaller or faster, and measure the error."""
        mode = self._mode(site, statistics)
        if mode == "calibrated" and statistics is None:
            return Reject("outliers=calibrated needs calibration inputs, and there are none for it")
        if isinstance(site, MonarchSite) and (mode == "dynamic" or self.state is not None):
            option = "outliers=dynamic is" if mode == "dynamic" else "a state with weights in 8 bits is"
            return Reject(f"{option} for whole weights; this one is held in blocks")
        small = None if self.small else refuse_small(site, self.activations, _kind(mode))
        refused = small or refuse_not_finite(site, statistics)
        if refused is not None:
            return refused
        outliers = self._columns(site, statistics) if mode == "calibrated" else None
        if isinstance(site, MonarchSite):
            tensors = int8_blocks(site, outliers) | ({} if outliers is None else outlier_operands(site, outliers))
            return self._plan(site, statistics, int8_monarch_linear.op, tensors, site.attributes, mode, outliers)
        quantized = self._quantize(site, outliers)
        if isinstance(quantized, Reject):
            return quantized
        return self._plan_dense(site, statistics, quantized, mode, outliers)

    def build(self, graph: Graph, site: LinearSite, plan: QuantizedPlan) -> None:
        """Write codes and scales; a bias that did not change stays the same constant."""
        build_quantized(graph, site, plan)

    def _mode(self, site: LinearSite, statistics: SiteStatistics | None) -> Outliers:
        if self.outliers != "auto":
            return self.outliers
        if statistics is not None:
            return "calibrated"
        return "none" if isinstance(site, MonarchSite) else "dynamic"

    def _columns(self, site: LinearSite, statistics: SiteStatistics | None) -> Tensor | None:
        assert statistics is not None
        return calibrated_outliers(site, statistics, threshold=self.threshold, relative=self.relative, cap=self.cap)

    def _quantize(self, site: LinearSite, outliers: Tensor | None) -> int8.Quantized | Reject:
        if self.state is None:
            return int8.quantize_rows(site.weight, outliers)
        state = open_state(self.state)
        layer = state.layer_named(site.name.partition("#")[0])
        if layer is None:
            return Reject(f"{state.source} has no weight in 8 bits for it")
        if site.alpha != 1.0:
            return Reject(f"its product is scaled by {site.alpha:g}, the weight in {state.source} is not")
        return _checked(site, state, layer)

    def _plan_dense(
        self,
        site: LinearSite,
        statistics: SiteStatistics | None,
        quantized: int8.Quantized,
        mode: Outliers,
        outliers: Tensor | None,
    ) -> QuantizedPlan | Reject:
        tensors = {"weight": quantized.codes, "scale": quantized.scale}
        attributes: dict[str, int | float] = {}
        insert = int8_linear.op
        if outliers is not None:
            insert = int8_outlier_linear.op
            tensors |= outlier_operands(site, outliers)
        elif mode == "dynamic" and self.threshold > 0:
            insert = int8_topk_linear.op
            columns = min(site.in_features, max(FEWEST_DYNAMIC, int8.column_budget(site.in_features, self.cap)))
            attributes = {"columns": columns, "threshold": self.threshold}
        return self._plan(site, statistics, insert, tensors, attributes, mode, outliers)

    def _plan(
        self,
        site: LinearSite,
        statistics: SiteStatistics | None,
        insert: Op,
        tensors: dict[str, Tensor],
        attributes: dict[str, int | float],
        mode: Outliers,
        outliers: Tensor | None,
    ) -> QuantizedPlan | Reject:
        attributes = {"per_row": int(self.activations == "row"), **attributes}
        kept = 0 if outliers is None else len(outliers)
        size = bytes_of(site, tensors)
        if size >= site.bytes:
            return Reject(f"in 8 bits, with {kept} columns kept, the {site.shape} layer would not be smaller")
        return QuantizedPlan(
            op=insert.name,
            after=_after(mode, kept, attributes),
            announced_error=measured_error(site, statistics, insert, tensors, attributes),
            announced_on="isotropic" if statistics is None else "calibration",
            bytes_after=size,
            tensors=tensors,
            attributes=attributes,
            insert=insert,
        )


def _checked(site: LinearSite, state: Int8State, layer: str) -> int8.Quantized:
    """Weights of a state dict, if they are the site's own, to a step: half by rounding, a little by types."""
    found = state.read(layer)
    shape = "x".join(map(str, found.codes.shape))
    if found.codes.shape != site.weight.shape:
        raise OptionError(f"llm-int8: {state.source}: {layer} is {shape}, the layer {site.name} is {site.shape}")
    steps = (site.weight.double() - found.dequantize().double()).abs() / found.scale.double()[:, None]
    if float(steps.max()) > 1:
        raise VerificationError(
            f"llm-int8: {state.source}: {layer} is up to {float(steps.max()):.3g} steps off the weight of {site.name}; "
            "at most 1 is due to rounding",
            hint="load its weights into the model first: dict(int8_state.open_state(path).dequantized()) has them",
        )
    return found


def _kind(mode: Outliers) -> Literal["fixed", "dynamic"]:
    return "dynamic" if mode == "dynamic" else "fixed"


def _after(mode: Outliers, kept: int, attributes: dict[str, int | float]) -> str:
    step = "int8 a row" if attributes["per_row"] else "int8"
    if "columns" in attributes:
        return f"{step}, up to {attributes['columns']} columns kept"
    return f"{step}, {kept_text(kept)}" if mode == "calibrated" else step
