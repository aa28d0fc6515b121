"""Sites: places in a graph that a pass can rewrite, named as the user's model names them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TypeVar

from torch import Tensor

from regraft.errors import GraphError
from regraft.graph.graph import Graph
from regraft.graph.types import TensorType
from regraft.graph.view import Value

SiteT = TypeVar("SiteT", bound="Site")


@dataclass(frozen=True, eq=False)
class Site:
    """A place that can be replaced by one op.

    Attributes:
        name: the layer's name in the user's model ("encoder.layer.0.attention.self.query").
        operands: keys of the activations it reads, by operand name.
        output: key of the value it computes; keeps its key when the site is replaced.
        nodes: keys of the nodes it covers.
    """

    name: str
    operands: Mapping[str, str]
    output: str
    nodes: Sequence[str]

    @property
    def calls(self) -> "tuple[Site, ...]":
        """The places where it stands, in graph order: itself, and others that share its weights."""
        return (self,)

    @property
    def bytes(self) -> int:
        """Size of the parameters that a rewrite replaces, in bytes."""
        return 0

    def describe(self) -> str:
        """Return what stands there now, in a few characters, for the ledger."""
        return self.name


class Numbering:
    """Tells sites of one name apart: the second gets "#2" behind it, the third "#3"."""

    def __init__(self) -> None:
        self._seen: dict[str, int] = {}

    def apart(self, site: SiteT) -> SiteT:
        """Return the site, under a name of its own."""
        count = self._seen[site.name] = self._seen.get(site.name, 0) + 1
        return site if count == 1 else replace(site, name=f"{site.name}#{count}")


@dataclass(frozen=True, eq=False)
class LinearSite(Site):
    """y = alpha · x · Wᵀ + beta · bias with constant W, however the graph spells it.

    A layer that is called several times, or several layers of one weight and bias, are one site: it is rewritten
    everywhere or nowhere, and its calls go on sharing what they read. Its own operands, output and nodes are those of
    the first call.

    Attributes:
        graph: where the weights are read from.
        weight_value: the constant that holds W; shared with other readers or not.
        bias_value: the constant that holds the bias, or None.
        transposed: whether the constant is stored [in, out] rather than [out, in].
        alpha: factor of the product (1 except for some Gemm and addmm).
        beta: factor of the bias.
        input_type: type of x, as far as it is known.
        nested: whether it lives in a nested body (If, Loop, Scan), where its inputs cannot be tapped.
        feeds_output: whether the graph returns y itself (a head).
        others: the calls after the first one, each a site without others.
        weight_readers: names of other operations that read W ("embedding"), for tied weights; the first few.
    """

    graph: Graph = field(repr=False)
    weight_value: Value
    bias_value: Value | None
    transposed: bool
    in_features: int
    out_features: int
    input_type: TensorType
    nested: bool = False
    alpha: float = 1.0
    beta: float = 1.0
    feeds_output: bool = False
    others: "tuple[LinearSite, ...]" = field(default=(), repr=False)
    weight_readers: tuple[str, ...] = ()

    @property
    def calls(self) -> "tuple[LinearSite, ...]":
        """All calls, in graph order, itself the first."""
        return (self, *self.others)

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers that call it, itself the first; one where a single layer is called again and again."""
        return tuple(dict.fromkeys(call.name for call in self.calls))

    @property
    def input(self) -> str:
        """Key of x."""
        return self.operands["x"]

    @property
    def inputs(self) -> tuple[str, ...]:
        """Keys of x in all calls."""
        return tuple(call.input for call in self.calls)

    @property
    def shape(self) -> str:
        """Out x in, as in the weight ("1536x384")."""
        return f"{self.out_features}x{self.in_features}"

    def describe(self) -> str:
        """Return the weight's shape, and how often it is used when that is more than once."""
        if not self.others:
            return self.shape
        if len(self.layers) == 1:
            return f"{self.shape}, called {len(self.calls)} times"
        return f"{self.shape}, shared by {len(self.layers)} layers"

    @property
    def break_even_rank(self) -> int:
        """Smallest rank at which two factors hold at least as many parameters as the dense weight."""
        m, n = self.out_features, self.in_features
        return -(-m * n // (m + n))

    @cached_property
    def weight(self) -> Tensor:
        """W as [out, in], alpha included; loaded on first use."""
        stored = self.graph.constant(self.weight_value)
        if stored is None:
            raise GraphError(f"{self.name}: weight {self.weight_value.name} has no content")
        weight = stored.detach().t() if self.transposed else stored.detach()
        return weight if self.alpha == 1.0 else weight * self.alpha

    @cached_property
    def bias(self) -> Tensor | None:
        """The bias as [out], beta included; None when there is none."""
        if self.bias_value is None:
            return None
        stored = self.graph.constant(self.bias_value)
        if stored is None:
            raise GraphError(f"{self.name}: bias {self.bias_value.name} has no content")
        bias = stored.detach().reshape(-1).expand(self.out_features)
        return bias if self.beta == 1.0 else bias * self.beta

    @property
    def bias_fits(self) -> bool:
        """Whether the stored bias is [out], so that another op can read it as it is."""
        return self.bias_value is None or self.bias_value.type.shape == (self.out_features,)

    @property
    def bytes(self) -> int:
        """Size of weight and bias in bytes, as they are stored: a bias may be a single number."""
        stored = 0 if self.bias_value is None else math.prod(map(int, self.bias_value.type.shape or ()))
        return (self.out_features * self.in_features + stored) * self.weight.element_size()

    def reference(self, x: Tensor) -> Tensor:
        """Return what the dense layer computes, in float64; x [..., in] -> [..., out]."""
        y = x.double() @ self.weight.double().t()
        return y if self.bias is None else y + self.bias.double()


@dataclass(frozen=True, slots=True)
class NearMiss:
    """A place that looked like a site and is none.

    Attributes:
        name: layer or node name.
        reason: why it is none, as a phrase that completes "not a linear layer: ...".
    """

    name: str
    reason: str
