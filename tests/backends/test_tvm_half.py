"""Whole graphs in 16-bit floats through TVM."""

import ml_dtypes
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from regraft.backends import compile_graph
from regraft.frontends.torch import capture


class Block(nn.Module):
    """A layer, its normalization and its activation."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm = nn.Linear(8, 6), nn.LayerNorm(6)

    def forward(self, x: Tensor) -> Tensor:
        return torch.softmax(nn.functional.gelu(self.norm(self.layer(x))), -1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_graph_of_16_bit_floats_takes_and_returns_them(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model, x = Block().to(dtype).eval(), torch.randn(3, 4, 8).to(dtype)
    executable = compile_graph(capture(model, (x[:2],)), "tvm", "llvm")
    (found,) = executable(x)
    assert found.dtype == dtype
    wanted = model.float()(x.float()).detach()
    assert float((found.float() - wanted).norm() / wanted.norm()) <= 1e-2
    if dtype == torch.bfloat16:
        (array,) = executable(x.float().numpy().astype(ml_dtypes.bfloat16))
        assert array.dtype == ml_dtypes.bfloat16
        np.testing.assert_array_equal(array.astype(np.float32), found.float().numpy())
