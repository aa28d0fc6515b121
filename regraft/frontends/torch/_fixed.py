"""Which extents that one expects to be free a capture fixed all the same, because the model's code writes them out."""

from collections.abc import Sequence
from typing import Final

from torch import Tensor, fx

from regraft.frontends.torch._types import Typer
from regraft.graph.types import Dim, TensorType

_PLACES: Final = ("batch", "sequence")
REMEDY: Final = (
    "a reshape, view or expand with that number in the model's code does so: take it from x.shape there; "
    "dynamic_shapes=None says that fixed extents are meant"
)


def fixed_extents(module: fx.GraphModule) -> list[str]:
    """Return the batch and sequence dims of a captured program that run with one extent only, as phrases.

    Not counted are features and channels, which weights fix: the last dim of floating-point inputs, and dim 1 of those
    whose last dim is free or that have more than three dims.

    Args:
        module: captured with every dim left to torch (`Dim.AUTO`), which makes some of them constants without a word.
    """
    typer = Typer({})
    found = [(str(node.target), node.meta.get("val")) for node in module.graph.nodes if node.op == "placeholder"]
    types = [(name, typer.type_of(value)) for name, value in found if isinstance(value, Tensor)]
    phrases: list[str] = []
    for place, meaning in enumerate(_PLACES):
        free = [isinstance(dim, str) for _, kind in types for dim in _dims(kind)[place : place + 1]]
        for name, kind in types:
            extent = _unexpected(kind, place)
            if extent is not None and not (extent == 1 and any(free)):  # 1 is repeated along what is free
                phrases.append(f"dim {place} ({meaning}) of {name!r} is {extent}")
    return phrases


def _unexpected(kind: TensorType, place: int) -> int | None:
    """The one extent that a dim has, if it is a dim that should be free."""
    dims = _dims(kind)
    expected = place < len(dims)
    if kind.is_floating and place == 0:
        expected = len(dims) > 1
    elif kind.is_floating:
        expected = len(dims) == 3 and isinstance(dims[2], int)
    extent = dims[place] if expected else None
    return extent if isinstance(extent, int) else None


def _dims(kind: TensorType) -> Sequence[Dim]:
    return kind.shape or ()
