"""A mask of attention with its four dims, from one of fewer dims, or from two.

    y = first                       with `first_lead` dims of extent 1 in front
    y = first + second              numbers that are added to scores
    y = first and second            booleans (true: look there), with boolean=1

first, second: what broadcasts to [batch, heads, queries, keys] together with its new dims; `second_lead` is for the
other. Dims in front are what broadcasting adds, so that the meaning stays what it was beside scores of four dims.

Source: NumPy's broadcasting rules.
"""

from typing import Final

from regraft.graph.cost_types import OpCost
from regraft.graph.types import Dim, TensorType
from regraft.ops._builder import Builder, V
from regraft.ops._op import Example, Op, require

DIMS: Final = 4


def infer(
    first: TensorType, second: TensorType | None = None, *, first_lead: int, second_lead: int = 0, boolean: int = 0
) -> TensorType:
    """Return the type of y; raise ShapeError where it has not four dims, or the masks do not broadcast."""
    for label, type_ in (("first", first), ("second", second)):
        fits = type_ is None or type_.dtype is None or (type_.dtype == "bool") == bool(boolean)
        require(fits, f"{op.name}: {label} must be of {'booleans' if boolean else 'numbers'}; got {type_}")
    one = _led("first", first, first_lead)
    if second is None:
        return one
    other = _led("second", second, second_lead)
    alike = None in (one.dtype, other.dtype) or one.dtype == other.dtype
    require(alike, f"{op.name}: both masks must be of one type; got {first} and {second}")
    if one.shape is None or other.shape is None:
        return TensorType(one.dtype)
    pairs = list(zip(one.shape, other.shape, strict=True))
    fits = all(a == b or 1 in (a, b) or isinstance(a, str) or isinstance(b, str) for a, b in pairs)
    require(fits, f"{op.name}: masks do not broadcast; got {first} and {second}")
    return TensorType(one.dtype, tuple(_broadcast(a, b) for a, b in pairs))


def _led(label: str, given: TensorType, lead: int) -> TensorType:
    fits = lead >= 0 and (given.shape is None or len(given.shape) + lead == DIMS)
    require(fits, f"{op.name}: {label} must have {DIMS} dims with the {lead} in front; got {given}")
    return TensorType(given.dtype, None if given.shape is None else (*(1,) * lead, *given.shape))


def _broadcast(a: Dim, b: Dim) -> Dim:
    if a == 1 or isinstance(b, int):
        return b if a == 1 or b != 1 else a
    return a


def decompose(
    b: Builder[V], first: V, second: V | None = None, *, first_lead: int, second_lead: int = 0, boolean: int = 0
) -> V:
    """New dims, then the sum, or what both allow."""
    y = b.lead(first, first_lead)
    if second is None:
        return y
    other = b.lead(second, second_lead)
    if not boolean:
        return b.add(y, other)
    both = b.mul(b.cast(y, "int32"), b.cast(other, "int32"))  # no choice between booleans: ONNX Runtime has none
    return b.cast(both, "bool")


def cost(
    first: TensorType, second: TensorType | None = None, *, first_lead: int, second_lead: int = 0, boolean: int = 0
) -> OpCost:
    """Nothing but its result."""
    del first, second, first_lead, second_lead, boolean
    return OpCost()


op: Final = Op(
    name="combined_mask",
    doc="A mask of attention with four dims, from one of fewer or from two",
    infer=infer,
    decompose=decompose,
    cost=cost,
    examples=(
        Example(
            "positions and padding",
            {"first": (1, 3, 5, 7), "second": (2, 1, 1, 7)},
            {"first_lead": 0, "second_lead": 0, "boolean": 0},
            dynamic=(2,),
        ),
        Example(
            "a row for each query", {"first": (5, 7)}, {"first_lead": 2, "second_lead": 0, "boolean": 0}, dynamic=(0, 1)
        ),
        Example("keys", {"first": (7,)}, {"first_lead": 3, "second_lead": 0, "boolean": 0}, dynamic=(0,)),
        Example(
            "heads and rows",
            {"first": (3, 5, 1), "second": (5, 7)},
            {"first_lead": 1, "second_lead": 2, "boolean": 0},
            dynamic=(0,),
        ),
    ),
)
