"""Training weights that will be sums of powers of two: forward with the sums, backward as if there were none."""

import torch
from torch import Tensor, nn

from regraft.numerics.power_of_two_fit import quantize_rows


class PowerOfTwoWeight(nn.Module):
    """A parametrization that lets any layer train with the weights that the pass `shift-add` will give it.

        torch.nn.utils.parametrize.register_parametrization(linear, "weight", PowerOfTwoWeight(terms=1))

    The layer keeps its own floating-point weight, which the optimizer moves; what it multiplies with is that weight
    rounded to sums of powers of two, and the derivative passes through the rounding unchanged. After training,
    `parametrize.remove_parametrizations(linear, "weight")` leaves the rounded weight, which the pass finds exactly.

    Attributes:
        terms: of each sum, 1 or 2.
        search: look for the best scale of every row in each step; slow, and training finds its way without it.

    Source: Bengio et al. 2013, arXiv:1308.3432 (the straight-through estimator).
    """

    def __init__(self, terms: int = 2, *, search: bool = False) -> None:
        super().__init__()
        self.terms, self.search = terms, search

    def forward(self, weight: Tensor) -> Tensor:
        """Return the rounded weight, [out, in] in the weight's type."""
        rounded = quantize_rows(weight.detach(), self.terms, search=self.search).dequantize().to(weight.dtype)
        return weight + (rounded - weight).detach() if torch.is_grad_enabled() else rounded
