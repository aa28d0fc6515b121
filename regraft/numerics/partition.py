"""How a weight is cut into a grid of blocks: k runs of input features by l groups of output features.

A run or group is either contiguous (features a·p ... a·p + p - 1) or strided (features a, a + k, a + 2k, ...). Which
one a matrix needs depends on the matrix: published Monarch layers have contiguous inputs and strided outputs, a
discrete Fourier transform has both strided, and for a weight whose features have no order all are alike.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from regraft.errors import ShapeError


@dataclass(frozen=True, slots=True)
class Partition:
    """A grid of blocks over an [out, in] weight. Counts need not divide the extents: the grid is padded with zeros.

    Attributes:
        in_features: n.
        out_features: m.
        in_blocks: k, number of runs of input features; 1 to n.
        out_blocks: l, number of groups of output features; 1 to m.
        in_strided: whether a run takes every k-th input feature.
        out_strided: whether a group takes every l-th output feature.

    Raises:
        ShapeError: when there are more blocks than features.
    """

    in_features: int
    out_features: int
    in_blocks: int
    out_blocks: int
    in_strided: bool = False
    out_strided: bool = False

    def __post_init__(self) -> None:
        for side, blocks, features in (
            ("in", self.in_blocks, self.in_features),
            ("out", self.out_blocks, self.out_features),
        ):
            if not 1 <= blocks <= features:
                raise ShapeError(
                    f"{side}_blocks must be at least 1 and at most the {features} {side}put features; got {blocks}"
                )

    @property
    def width(self) -> int:
        """p, input features of a block; padding included."""
        return -(-self.in_features // self.in_blocks)

    @property
    def height(self) -> int:
        """s, output features of a block; padding included."""
        return -(-self.out_features // self.out_blocks)

    @property
    def in_padding(self) -> int:
        """Input features that are added to fill the grid."""
        return self.width * self.in_blocks - self.in_features

    @property
    def out_padding(self) -> int:
        """Output features that are added to fill the grid."""
        return self.height * self.out_blocks - self.out_features

    @property
    def full_rank(self) -> int:
        """Rank at which every block is reproduced exactly."""
        return min(self.width, self.height)

    @property
    def break_even_rank(self) -> int:
        """Smallest block rank with at least as many parameters as the dense weight; at most `full_rank`."""
        return -(-self.in_features * self.out_features // self.parameters(1))

    def parameters(self, rank: int) -> int:
        """Return the number of parameters of blocks of that rank: rank · (l · k · p + k · l · s), padding included."""
        return rank * self.in_blocks * self.out_blocks * (self.width + self.height)

    def rank_for(self, keep: float) -> int:
        """Return the largest block rank with at most a share `keep` of the dense parameters (0 when none has)."""
        return int(keep * self.in_features * self.out_features / self.parameters(1))

    def with_order(self, *, in_strided: bool, out_strided: bool) -> "Partition":
        """Return the same counts in another order of features."""
        return replace(self, in_strided=in_strided, out_strided=out_strided)

    def cut(self, weight: Tensor) -> Tensor:
        """Return the blocks [k, l, s, p] of a weight [out, in]."""
        if weight.dim() != 2 or tuple(weight.shape) != (self.out_features, self.in_features):
            needed = f"[{self.out_features}, {self.in_features}]"
            raise ShapeError(f"a weight to cut into these blocks must be {needed}; got {list(weight.shape)}")
        padded = torch.nn.functional.pad(weight, (0, self.in_padding, 0, self.out_padding))
        k, l, s, p = self.in_blocks, self.out_blocks, self.height, self.width  # noqa: E741 - the formula's letters
        rows = padded.reshape(s, l, k * p).transpose(0, 1) if self.out_strided else padded.reshape(l, s, k * p)
        grid = rows.reshape(l, s, p, k).transpose(2, 3) if self.in_strided else rows.reshape(l, s, k, p)
        return grid.permute(2, 0, 1, 3)

    def join(self, blocks: Tensor) -> Tensor:
        """Return the weight [out, in] that is made of blocks [k, l, s, p]."""
        k, l, s, p = blocks.shape  # noqa: E741 - the formula's letters
        grid = blocks.permute(1, 2, 0, 3)
        rows = (grid.transpose(2, 3) if self.in_strided else grid).reshape(l, s, k * p)
        padded = (rows.transpose(0, 1) if self.out_strided else rows).reshape(l * s, k * p)
        return padded[: self.out_features, : self.in_features]

    def runs(self, features: Tensor) -> Tensor:
        """Return what belongs to each input feature, [in], run by run, [k, p]; zeros where padded."""
        padded = torch.nn.functional.pad(features, (0, self.in_padding))
        return padded.reshape(self.width, -1).t() if self.in_strided else padded.reshape(-1, self.width)

    def cut_inputs(self, moment: Tensor) -> Tensor:
        """Return a moment of the inputs [in, in] in the order of the blocks, [k · p, k · p], zeros where padded."""
        padded = torch.nn.functional.pad(moment, (0, self.in_padding, 0, self.in_padding))
        if not self.in_strided:
            return padded
        order = torch.arange(self.width * self.in_blocks, device=moment.device).reshape(self.width, -1).t().reshape(-1)
        return padded[order][:, order]
