"""Extrema and sums of products in whole graphs: of infinities, of what is no number, over dims that are not known."""

import pytest
import torch
from torch import Tensor, nn

from regraft.backends import compile_graph
from regraft.frontends.torch import capture


class Extrema(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return x.amax(-1), x.amin(-1, keepdim=True), x.amax((0, 2)), x.amin()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int32])
def test_extrema_of_infinities_are_infinite_and_what_is_no_number_stays_so(dtype: torch.dtype) -> None:
    x = torch.arange(-12, 12).view(2, 3, 4).to(dtype)
    if dtype.is_floating_point:
        x[0, 1], x[1, 1], x[1, 2, 2] = float("-inf"), float("inf"), float("nan")
    executable = compile_graph(capture(Extrema(), (x,)), "tvm", "llvm")
    for given in (x, x.flip(0)):
        for got, wanted in zip(executable(given), Extrema()(given), strict=True):
            torch.testing.assert_close(got, wanted, atol=0, rtol=0, equal_nan=True)


class Products(nn.Module):
    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return torch.einsum("bij,ij->b", a, b)


def test_a_sum_of_products_over_two_dims_has_any_extents() -> None:
    executable = compile_graph(capture(Products(), (torch.ones(3, 4, 5), torch.ones(4, 5))), "tvm", "llvm")
    a, b = torch.randn(2, 6, 3, generator=torch.Generator().manual_seed(0)), torch.arange(18.0).view(6, 3)
    torch.testing.assert_close(executable(a, b)[0], Products()(a, b))
