"""Which new constants of a rewrite can be one: small integer tensors of equal content, such as masks and places.

Layers that read one activation often need the same ones. As one constant, what they are applied to is computed once.
"""

from collections.abc import Hashable
from typing import Final

from torch import Tensor

from regraft.graph.types import dtype_name

_MOST_BYTES: Final = 1 << 16


def content_key(tensor: Tensor) -> Hashable | None:
    """Return what is equal for tensors of equal content.

    Returns:
        None for tensors that are never shared: floating-point ones, which may be trained apart, and large ones.
    """
    if tensor.is_floating_point() or tensor.is_complex() or tensor.numel() * tensor.element_size() > _MOST_BYTES:
        return None
    return dtype_name(tensor.dtype), tuple(tensor.shape), str(tensor.device), tensor.cpu().numpy().tobytes()
