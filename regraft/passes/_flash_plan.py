"""What the pass flash-svd writes in the place of a site."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from regraft.ops import AttributeValue, Op, evaluate
from regraft.passes._masks import in_one_mask
from regraft.passes._pass import Plan


@dataclass(frozen=True, eq=False)
class FlashPlan(Plan):
    """One op with its weights.

    `announced_error` is the largest error among the products of weights that were cut, 0 where none was: then the
    function is the same. What a cut does to the result behind softmax or an activation is measured, not promised; that
    the graph computes what the op means is checked in either case.
    """

    tensors: Mapping[str, Tensor]
    attributes: Mapping[str, AttributeValue]
    insert: Op

    def definition(self, operands: Mapping[str, Tensor]) -> Tensor:
        """Return what the op means on these operands and weights."""
        named = {**in_one_mask(operands), **self.tensors}
        exact = {name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in named.items()}
        return evaluate(self.insert, exact, self.attributes)


def bytes_of(tensors: Mapping[str, Tensor]) -> int:
    """Return the size of tensors in bytes."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
