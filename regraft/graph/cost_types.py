"""What an operation costs, as symbolic expressions over the dynamic dims."""

from dataclasses import dataclass
from typing import Final

import sympy

ZERO: Final[sympy.Expr] = sympy.Integer(0)


@dataclass(frozen=True, slots=True)
class OpCost:
    """Cost of one operation.

    Attributes:
        macs: multiply-adds.
        transient_bytes: bytes of the largest buffer that lives only inside the operation (0 for most).
    """

    macs: sympy.Expr = ZERO
    transient_bytes: sympy.Expr = ZERO
