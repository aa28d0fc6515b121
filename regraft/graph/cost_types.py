"""What an operation costs, as symbolic expressions over the dynamic dims."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final, Literal

import sympy

ZERO: Final[sympy.Expr] = sympy.Integer(0)

Arithmetic = Literal[
    "multiply float32",
    "add float32",
    "multiply float16",
    "add float16",
    "multiply int8",
    "add int32",
    "shift int32",
]
"""An arithmetic operation and the type that it works on."""


@dataclass(frozen=True, slots=True)
class OpCost:
    """Cost of one operation.

    Attributes:
        macs: multiply-adds.
        transient_bytes: bytes of the largest buffer that lives only inside the operation (0 for most).
        inner_bytes: bytes of all buffers that live only inside the operation, where most of them do at once; those of
            the largest one when 0.
        arithmetic: how often which arithmetic operation is done, for operations that are not made of one floating-point
            multiplication and one addition a multiply-add; empty for those that are.
    """

    macs: sympy.Expr = ZERO
    transient_bytes: sympy.Expr = ZERO
    inner_bytes: sympy.Expr = ZERO
    arithmetic: Mapping[Arithmetic, sympy.Expr] = field(default_factory=dict[Arithmetic, sympy.Expr])

    def with_floating(self, macs: sympy.Expr) -> "OpCost":
        """Return this cost and that of further multiply-adds in single precision."""
        if not self.arithmetic:
            return replace(self, macs=self.macs + macs)
        counts = dict(self.arithmetic)
        for kind in ("multiply float32", "add float32"):
            counts[kind] = counts.get(kind, ZERO) + macs
        return replace(self, macs=self.macs + macs, arithmetic=counts)
