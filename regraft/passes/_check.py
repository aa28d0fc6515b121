"""The numeric checks: of a rewritten site against the dense layer, and of a whole model against the original."""

import math
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

import torch
from torch import Tensor

from regraft.errors import RegraftError
from regraft.graph import Graph
from regraft.graph.graph import Outputs
from regraft.graph.site import LinearSite
from regraft.graph.types import dtype_name, torch_dtype
from regraft.passes._pass import Plan

RANDOM_ROWS: Final = 256
"""Half of them are the other half with the sign turned: their mean is exactly 0."""

CHANCE: Final = 4 / RANDOM_ROWS**0.5
"""Share of the announced error that the mean of the errors may reach by chance.

On rows whose mean is 0 an approximate product errs in all directions alike. A constant offset, such as a bias that was
lost, does not, and may hide below a large announced error.
"""

TOGETHER: Final = 64
"""Sites that are evaluated in one run of the graph."""

SLACK: Final = 1.5
"""How far above its announcement a measured error may be: it is measured on a sample of rows."""

ROUNDING: Final[Mapping[str, float]] = {"float64": 1e-10, "float32": 1e-4, "float16": 1e-2, "bfloat16": 6e-2}
"""Relative error of a layer's product that rounding alone may cause, by element type."""


@dataclass(frozen=True, slots=True)
class SiteCheck:
    """What was measured on a rewritten site.

    Attributes:
        error: ‖y - ŷ‖ / ‖W x‖ over the rows, y in float64 from the dense layer, ŷ from the rewritten graph.
        allowed: largest error that the plan's announcement covers.
        rows: where the rows came from.
        failure: what is wrong beside the error, as a phrase, or "".
    """

    error: float
    allowed: float
    rows: Literal["calibration", "random"]
    failure: str = ""

    @property
    def holds(self) -> bool:
        """Whether the site keeps its promise."""
        return not self.failure and self.error <= self.allowed

    def __str__(self) -> str:
        if self.failure:
            return self.failure
        return f"measured error {self.error:.3g} on {self.rows} inputs, at most {self.allowed:.3g} was announced"


@dataclass(frozen=True, slots=True, eq=False)
class Question:
    """A rewritten site to be checked.

    Attributes:
        site: one call of a layer, found in the graph before.
        plan: its announcement.
        sample: calibration rows [rows, in], or None.
    """

    site: LinearSite
    plan: Plan
    sample: Tensor | None

    @property
    def rows_from(self) -> Literal["calibration", "random"]:
        """Calibration rows where the promise was made for them, else isotropic random ones."""
        return "calibration" if self.plan.announced_on == "calibration" and self.sample is not None else "random"


def check_sites(
    graph: Graph, questions: Sequence[Question], seed: int, advance: Callable[[int], None] = lambda _: None
) -> list[SiteCheck]:
    """Compare rewritten sites with the dense layers that stood there, many in one run of the graph.

    Args:
        graph: the rewritten graph.
        questions: what to check; the answers come in the same order.
        seed: of random rows.
        advance: called with the number of sites checked so far.
    """
    checks: list[SiteCheck] = []
    for group in _groups(questions):
        try:
            checks.extend(_ask(graph, group, seed))
        except (RegraftError, RuntimeError):
            # One site that cannot even be computed must not take the others down with it.
            checks.extend(_ask_alone(graph, question, seed) for question in group)
        advance(len(checks))
    return checks


def worst(checks: Sequence[SiteCheck]) -> SiteCheck:
    """Return the check of the call that is worst off."""
    return max(checks, key=lambda check: (not check.holds, check.error))


def violation_of(checks: Sequence[SiteCheck]) -> str:
    """Return what is wrong with a layer that does not hold, and in which of its calls when it has several."""
    check = worst(checks)
    if len(checks) == 1:
        return str(check)
    return f"in call {checks.index(check) + 1} of {len(checks)}, which share one weight: {check}"


def _ask(graph: Graph, group: Sequence[Question], seed: int) -> list[SiteCheck]:
    given = {
        question.site.input: _with_rank(_rows(question, seed), question.site.input_type.rank) for question in group
    }
    results = graph.evaluate([question.site.output for question in group], given)
    return [
        _answer(question, given[question.site.input], rewritten)
        for question, rewritten in zip(group, results, strict=True)
    ]


def _ask_alone(graph: Graph, question: Question, seed: int) -> SiteCheck:
    try:
        return _ask(graph, [question], seed)[0]
    except (RegraftError, RuntimeError) as error:
        return _broken(question, error)


def _broken(question: Question, error: Exception) -> SiteCheck:
    first = next(iter(str(error).splitlines()), type(error).__name__)
    allowed = question.plan.announced_error * SLACK
    return SiteCheck(math.inf, allowed, question.rows_from, f"it cannot be computed: {first}")


def _groups(questions: Sequence[Question]) -> Iterator[list[Question]]:
    """Runs of sites that can be evaluated together: the same rows for each input, nested bodies alone.

    A site that reads what another one computes is not evaluated with it: given rows would stand in for the result.
    """
    group: list[Question] = []
    given: dict[str, Tensor | None] = {}
    results: set[str] = set()
    for question in questions:
        site = question.site
        rows = question.sample if question.rows_from == "calibration" else None
        clash = given.get(site.input, rows) is not rows
        chained = site.input in results or site.output in given
        if group and (clash or chained or len(group) == TOGETHER or site.nested or group[-1].site.nested):
            yield group
            group, given, results = [], {}, set()
        group.append(question)
        given[site.input] = rows
        results.add(site.output)
    if group:
        yield group


def _rows(question: Question, seed: int) -> Tensor:
    site = question.site
    dtype = torch_dtype(site.input_type.dtype or "") or site.weight.dtype
    if question.rows_from == "calibration" and question.sample is not None:
        return question.sample.to(dtype)
    generator = torch.Generator().manual_seed(seed + zlib.crc32(site.input.encode()))
    half = torch.randn(RANDOM_ROWS // 2, site.in_features, generator=generator)
    return torch.cat([half, -half]).to(site.weight.device, dtype)


def _answer(question: Question, given: Tensor, rewritten: Tensor) -> SiteCheck:
    site, announced, source = question.site, question.plan.announced_error, question.rows_from
    rows = given.reshape(-1, site.in_features)
    wanted = site.reference(rows)
    if rewritten.shape[-1:] != wanted.shape[-1:] or rewritten.numel() != wanted.numel():
        needed = [*given.shape[:-1], site.out_features]
        return SiteCheck(math.inf, announced * SLACK, source, f"its result is {list(rewritten.shape)}, not {needed}")
    product = wanted if site.bias is None else wanted - site.bias.double()
    size = float(product.norm())
    difference = wanted - rewritten.reshape(wanted.shape).double().to(wanted.device)
    error = _finite(float(difference.norm()) / (size or 1.0))
    # Results are rounded relative to themselves, bias included, which may be larger than the product.
    scale = max(1.0, float(wanted.norm()) / size) if size > 0 else 1.0
    rounding = ROUNDING.get(dtype_name(rows.dtype), 1e-4) * scale
    check = SiteCheck(error, announced * SLACK + rounding, source)
    if source == "calibration" or not check.holds:
        return check
    return replace(check, failure=_offset(difference, size, announced * CHANCE + rounding))


def _offset(difference: Tensor, size: float, allowed: float) -> str:
    """Why the mean of the differences cannot be chance, as a phrase, or ""."""
    offset = float(difference.mean(dim=0).norm()) * len(difference) ** 0.5 / (size or 1.0)
    if offset <= allowed:
        return ""
    return f"its results are off by {offset:.3g} in the mean, at most {allowed:.3g} can be chance"


def _finite(number: float) -> float:
    return number if math.isfinite(number) else math.inf


def model_error(original: Sequence[Outputs], rewritten: Sequence[Outputs]) -> float:
    """Return the largest relative error among a model's floating-point outputs, over all batches together.

    The error of one output is ‖y - ŷ‖ / ‖y‖ (Frobenius). Outputs of another shape, or not finite where the original's
    are, count as infinitely wrong.
    """
    worst = 0.0
    for place in range(len(original[0]) if original else 0):
        pairs = [(before[place], after[place]) for before, after in zip(original, rewritten, strict=True)]
        if pairs[0][0].is_floating_point():
            worst = max(worst, error_of(pairs))
    return worst


def error_of(pairs: Sequence[tuple[Tensor, Tensor]]) -> float:
    """Return ‖y - ŷ‖ / ‖y‖ over pairs of y and ŷ together; infinite for another shape, or for ŷ that is not finite."""
    difference = total = 0.0
    for before, after in pairs:
        if before.shape != after.shape:
            return math.inf
        finite = torch.isfinite(before)
        y, z = before[finite].double(), after[finite].double().to(before.device)
        difference += float((y - z).square().sum())
        total += float(y.square().sum())
    if not math.isfinite(difference):
        return math.inf
    return (difference / total) ** 0.5 if total > 0 else (0.0 if difference == 0 else math.inf)


def _with_rank(rows: Tensor, rank: int | None) -> Tensor:
    """[rows, n] with leading dims of one, so that it has the rank that the graph declares."""
    return rows.reshape(*[1] * max((rank or 2) - 2, 0), *rows.shape)
