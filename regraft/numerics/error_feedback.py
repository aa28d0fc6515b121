"""Rounding of weights with error feedback: what one column is rounded by, the columns after it make up for.

Column by column, the rounding error of a weight is spread over the columns that are not rounded yet, so that the output
on inputs with the moment G = E[x xᵀ] changes least: with the upper Cholesky factor U of G⁻¹ (UᵀU = G⁻¹), rounding
column j by e changes the columns k > j by -e · U[j, k] / U[j, j]. Rows are independent of each other, so each may have
been divided by a scale of its own.

Source: Frantar et al. 2023, arXiv:2210.17323 (GPTQ), after Hassibi & Stork 1993 (optimal brain surgeon).
"""

from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor

from regraft.errors import ShapeError

_BLOCK: Final = 64
"""Columns between two updates of all later ones, which are one product instead of many thin ones."""


def round_with_feedback(weight: Tensor, gram: Tensor, rounded: Callable[[Tensor], Tensor], *, damping: float) -> Tensor:
    """Return a weight whose every column is rounded, with the errors of each fed back into the columns after it.

    Args:
        weight: [out, in], computed in float64; not changed.
        gram: E[x xᵀ], [in, in].
        rounded: rounds columns, [out, k] float64 -> [out, k] of any type.
        damping: share of the mean input power that is added to every direction, above 0: against too little data, and
            because quantized inputs have such noise.

    Returns:
        [out, in] float64: what `rounded` returned. Columns with the most power are rounded first. A row on which plain
        rounding does better with this moment is rounded plainly.

    Raises:
        ShapeError: when the moment does not fit the weight.
    """
    if gram.shape != (weight.shape[1], weight.shape[1]):
        raise ShapeError(
            f"a weight with {weight.shape[1]} inputs needs a square moment of them; got {list(gram.shape)}"
        )
    exact = weight.detach().to(torch.float64)
    plain = rounded(exact).double()
    moment = gram.to(exact.device, torch.float64)
    power = float(moment.diagonal().mean()) if len(moment) else 0.0
    if power <= 0:
        return plain
    moment = moment + damping * power * torch.eye(len(moment), dtype=moment.dtype, device=moment.device)
    order = torch.argsort(moment.diagonal(), descending=True, stable=True)
    fed = _sweep(exact[:, order], _inverse_factor(moment[order][:, order]), rounded)
    fed = fed.index_select(1, torch.argsort(order))
    better = output_power(exact - fed, moment) < output_power(exact - plain, moment)
    return torch.where(better[:, None], fed, plain)


def output_power(weight: Tensor, gram: Tensor) -> Tensor:
    """Return the mean square of each output of a weight [out, in] on inputs with the moment [in, in]: [out]."""
    return ((weight @ gram.to(weight.device, weight.dtype)) * weight).sum(dim=1)


def _inverse_factor(moment: Tensor) -> Tensor:
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(moment))
    return torch.linalg.cholesky(inverse, upper=True)


def _sweep(weight: Tensor, factor: Tensor, rounded: Callable[[Tensor], Tensor]) -> Tensor:
    remaining = weight.t().contiguous()  # [in, out]: what is worked on together lies together
    result = torch.empty_like(remaining)
    for start in range(0, len(remaining), _BLOCK):
        stop = min(start + _BLOCK, len(remaining))
        errors = torch.empty_like(remaining[start:stop])
        for column in range(start, stop):
            result[column] = rounded(remaining[column, :, None])[:, 0]
            error = (remaining[column] - result[column]) / factor[column, column]
            remaining[column:stop].addr_(factor[column, column:stop], error, alpha=-1)
            errors[column - start] = error
        remaining[stop:].addmm_(factor[start:stop, stop:].t(), errors, alpha=-1)
    return result.t()
