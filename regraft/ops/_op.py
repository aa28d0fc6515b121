"""What a structured op is: one declaration from which every backend's form follows."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, Literal

import torch
from torch import Tensor

from regraft.errors import ShapeError
from regraft.graph.cost_types import OpCost
from regraft.graph.types import TensorType

AttributeKind = Literal["int", "float", "str"]
AttributeValue = int | float | str
_KINDS: Final[Mapping[Any, AttributeKind]] = {int: "int", float: "float", str: "str"}


@dataclass(frozen=True, slots=True)
class Operand:
    """One tensor operand of an op; operands that may be absent come last."""

    name: str
    optional: bool


@dataclass(frozen=True, slots=True)
class Ints:
    """Shape and range (both ends included) of an integer operand of an example."""

    shape: tuple[int, ...]
    low: int
    high: int
    dtype: str = "int8"


@dataclass(frozen=True)
class Example:
    """Shapes (and attributes) on which the conformance test runs an op; the content is drawn from a seed.

    Attributes:
        name: what is special about it.
        shapes: operand name to shape of a floating-point operand, or `Ints`. Absent optional operands are left out.
        dynamic: dims of the first operand that stay symbolic in exported forms.
    """

    name: str
    shapes: Mapping[str, tuple[int, ...] | Ints]
    attributes: Mapping[str, AttributeValue] | None = None
    dynamic: tuple[int, ...] = (0,)

    def tensors(self, dtype: torch.dtype = torch.float64, seed: int = 0) -> dict[str, Tensor]:
        """Return operands by name: floating-point ones from a normal distribution in `dtype`, integers uniform."""
        generator = torch.Generator().manual_seed(seed)
        return {name: _draw(spec, dtype, generator) for name, spec in self.shapes.items()}


def _draw(spec: tuple[int, ...] | Ints, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    if isinstance(spec, Ints):
        drawn = torch.randint(spec.low, spec.high + 1, spec.shape, generator=generator)
        return drawn.to(getattr(torch, spec.dtype))
    return torch.randn(spec, generator=generator, dtype=torch.float64).to(dtype)


@dataclass(frozen=True)
class Op:
    """A structured op.

    Attributes:
        name: snake case; the torch op is `torch.ops.regraft.<name>`, the ONNX node `regraft::<CamelCase>`.
        doc: one line for lists and for the doc string of the ONNX function.
        infer: types by operand name (None where absent), attributes by keyword -> type of the result;
            raises ShapeError.
        decompose: (builder, *operands, *, attributes) -> result. Its signature declares the op: positional parameters
            are operands in order, those with the default None are optional, keyword-only ones annotated int, float or
            str are attributes.
        cost: as `infer`, returns an OpCost.
        examples: what the conformance test runs.
        linear_weights: operands that `decompose` uses only as the weight of `Builder.linear` and its kin, whole or in
            parts made by `split`, or turned by `swap_last`: a backend may store them transposed.
        smooth: whether its derivatives are those of its values; not where it rounds and they are straight-through.
        chain: weights of linear layers, when the op is nothing but these layers one after the other with the operand
            "bias" behind the last: then a graph can write it out as linear layers, so that each can be rewritten.
    """

    name: str
    doc: str
    infer: Callable[..., TensorType]
    decompose: Callable[..., Any]
    cost: Callable[..., OpCost]
    examples: tuple[Example, ...]
    linear_weights: tuple[str, ...] = ()
    smooth: bool = True
    chain: tuple[str, ...] = ()

    @cached_property
    def operands(self) -> tuple[Operand, ...]:
        """Tensor operands in order."""
        parameters = _parameters(self.decompose)[1:]
        return tuple(
            Operand(parameter.name, parameter.default is None)
            for parameter in parameters
            if parameter.kind is not inspect.Parameter.KEYWORD_ONLY
        )

    @cached_property
    def attributes(self) -> Mapping[str, AttributeKind]:
        """Attributes in order, with their kinds."""
        return {
            parameter.name: _KINDS[parameter.annotation]
            for parameter in _parameters(self.decompose)
            if parameter.kind is inspect.Parameter.KEYWORD_ONLY
        }

    @property
    def onnx_name(self) -> str:
        """Name of the ONNX function when every optional operand is present ("LowrankLinear")."""
        return "".join(part.capitalize() for part in self.name.split("_"))


def _parameters(function: Callable[..., Any]) -> list[inspect.Parameter]:
    # Annotations may be texts, where a file postpones their evaluation.
    return list(inspect.signature(function, eval_str=True).parameters.values())


def require(condition: bool, message: str) -> None:
    """Raise ShapeError with that message unless the condition holds."""
    if not condition:
        raise ShapeError(message)
