"""Finding linear layers, in every way that torch and ONNX spell them.

    linear(x, W, b)    addmm(b, x, Wt)    matmul(x, Wt) [+ b]    gemm(x, W, b; alpha, beta, transA, transB)

with a constant W, stored [out, in] or [in, out], possibly behind a transpose.
"""

from dataclasses import dataclass, replace
from typing import Final

from regraft.graph._calls import bring_together
from regraft.graph.graph import Graph
from regraft.graph.matcher import LOOK_THROUGH, Match, Pattern, call, constant, match, pattern, source
from regraft.graph.site import LinearSite, NearMiss
from regraft.graph.types import TensorType
from regraft.graph.view import Node, Value

_add, _matmul = call("add"), call("matmul")

FACTORS: Final = frozenset({"down", "up"})
"""Last parts of the names of factors; a factor is a layer of its own, named like its weight."""

CANDIDATES: Final = frozenset({"linear", "addmm", "matmul", "gemm"})


def _biased_product(x: Pattern, w: Pattern, bias: Pattern) -> Pattern:
    return _add(_matmul(x, w), constant(bias))


BIASED_PRODUCT: Final = pattern(_biased_product)


@dataclass(frozen=True)
class _Found:
    """The operands of a linear layer, before its weight is looked at."""

    x: Value
    weight: Value
    bias: Value | None
    output: Value
    nodes: tuple[Node, ...]
    transposed: bool
    alpha: float = 1.0
    beta: float = 1.0


def find_linear_sites(graph: Graph) -> tuple[list[LinearSite], list[NearMiss]]:
    """Return all linear layers in graph order, and the products that are none, with the reasons.

    The calls of one weight and bias are one site. Different layers of one name get "#2", "#3" behind it.
    """
    found = [_site(graph, node) for node in graph.nodes() if node.op in CANDIDATES]
    calls = [site for site in found if isinstance(site, LinearSite)]
    return bring_together(calls), [miss for miss in found if isinstance(miss, NearMiss)]


def _site(graph: Graph, node: Node) -> LinearSite | NearMiss:
    found = _operands(node)
    label = node.scope or node.key
    if isinstance(found, str):
        return NearMiss(label, found)
    weight, turned, passed = constant_behind(found.weight)
    problem = _why_not_constant(found) if weight is None else _weight_problem(found, weight)
    if weight is None or problem:
        return NearMiss(label, problem)
    transposed = found.transposed != turned
    out_features, in_features = _extents(weight, transposed)
    problem = _bias_problem(found.bias, out_features, _rank(node), spread=node.op != "matmul")
    if problem:
        return NearMiss(label, problem)
    return LinearSite(
        name=_layer_name(node, found, weight),
        operands={"x": found.x.key},
        output=found.output.key,
        nodes=tuple(covered.key for covered in (*found.nodes, *passed)),
        graph=graph,
        weight_value=weight,
        bias_value=None if found.bias is None else source(found.bias)[0],
        transposed=transposed,
        in_features=in_features,
        out_features=out_features,
        input_type=input_type(found.x, in_features),
        nested=found.x.nested,
        alpha=found.alpha,
        beta=found.beta,
        feeds_output=reaches_output(found.output),
    )


def _operands(node: Node) -> _Found | str:
    if node.op == "linear":
        x, weight, bias = _padded(node, 3)
        return _Found(_known(x), _known(weight), bias, node.outputs[0], (node,), transposed=False)
    if node.op == "matmul":
        return _product(node)
    alpha, beta = _number(node, "alpha"), _number(node, "beta")
    if alpha is None or beta is None:
        name = "alpha" if alpha is None else "beta"
        return f"its {name} is {node.attributes[name]!r}, a number is needed"
    if node.op == "addmm":
        bias, x, weight = _padded(node, 3)
        return _Found(_known(x), _known(weight), bias, node.outputs[0], (node,), True, alpha, beta)
    if node.attributes.get("transA", 0):
        return "its first operand is transposed (transA=1); a Transpose node before a Gemm with transA=0 is a layer"
    x, weight, bias = _padded(node, 3)
    transposed = not node.attributes.get("transB", 0)
    return _Found(_known(x), _known(weight), bias, node.outputs[0], (node,), transposed, alpha, beta)


def _product(node: Node) -> _Found:
    x, weight = _padded(node, 2)
    plain = _Found(_known(x), _known(weight), None, node.outputs[0], (node,), transposed=True)
    users = node.outputs[0].users
    if len(users) != 1 or users[0].op != "add" or users[0].attributes.get("alpha", 1) != 1:
        return plain
    sum_ = users[0]
    outcome = match(BIASED_PRODUCT, sum_)
    if not isinstance(outcome, Match) or outcome.bindings["w"] is not weight:
        return plain
    bias = outcome.bindings["bias"]
    weight_value = constant_behind(plain.weight)[0]
    if weight_value is None or _bias_problem(bias, _last(node.outputs[0].type, weight_value), _rank(node)):
        return plain
    return replace(plain, bias=bias, output=sum_.outputs[0], nodes=(sum_, *outcome.nodes[1:]))


def _rank(node: Node) -> int:
    """Number of dims of a product; the least that it can have when its type does not say."""
    return node.outputs[0].type.rank or (2 if node.op in ("addmm", "gemm") else 1)


def _last(result: TensorType, weight: Value) -> int:
    """Width of a product: from its type, else from the weight as matmul reads it."""
    extent = result.shape[-1] if result.shape else (weight.type.shape or (0,))[-1]
    return extent if isinstance(extent, int) else 0


def constant_behind(value: Value) -> tuple[Value | None, bool, tuple[Node, ...]]:
    """The constant that a value comes from, through transposes of a matrix; whether it is turned; the nodes passed."""
    turned = False
    nodes: tuple[Node, ...] = ()
    value, passed = source(value)
    nodes += passed
    while value.producer is not None and value.producer.op == "transpose" and value.type.rank == 2:
        operand = value.producer.inputs[0]
        if operand is None or value.producer.attributes.get("perm", (1, 0)) not in ((1, 0), None):
            break
        nodes += (value.producer,)
        value, passed = source(operand)
        nodes += passed
        turned = not turned
    return (value if value.role == "constant" else None), turned, nodes


def _why_not_constant(found: _Found) -> str:
    weight = source(found.weight)[0]
    if source(found.x)[0].role == "constant":
        return "the constant is its left operand; a layer's weight is the right one"
    if weight.has_default:
        remedy = "python -m onnxruntime.tools.remove_initializer_from_input makes it a constant"
        return f"its weight {weight.name} is also an input of the graph, which callers may override; {remedy}"
    if weight.role == "input":
        return f"its weight {weight.name} is an input of the graph"
    return f"neither operand is a constant (the right one is {weight.key})"


def _weight_problem(found: _Found, weight: Value) -> str:
    x, shape = source(found.x)[0], weight.type.shape
    if x.role == "constant":
        return f"both operands are constants ({x.name} and {weight.name})"
    if shape is None or len(shape) != 2 or not all(isinstance(extent, int) for extent in shape):
        return f"the weight {weight.name} must be a matrix, it is {weight.type}"
    if weight.type.dtype is not None and not weight.type.is_floating:
        return f"the weight {weight.name} must be of floating-point numbers, it is {weight.type}"
    return ""


def _extents(weight: Value, transposed: bool) -> tuple[int, int]:
    """out_features and in_features of a weight that is known to be a matrix."""
    rows, columns = (int(extent) for extent in weight.type.shape or ())
    return (columns, rows) if transposed else (rows, columns)


def _bias_problem(bias: Value | None, out_features: int, rank: int, *, spread: bool = False) -> str:
    """Why a summand is no bias, or ""; `spread` allows a single number, which gemm and addmm add to all features.

    Behind a matmul a single number stays what it is, an addition that costs less than a bias.
    """
    if bias is None:
        return ""
    origin = source(bias)[0]
    if origin.role != "constant":
        return f"its bias {origin.name} is not a constant"
    shape = origin.type.shape
    if shape is None:
        return f"its bias {origin.name} has no known shape"
    # One of more dims than the product would give the sum more dims than a layer's output has.
    one_row = 1 <= len(shape) <= rank and shape[-1] == out_features and all(extent == 1 for extent in shape[:-1])
    one_number = spread and len(shape) <= rank and all(extent == 1 for extent in shape)
    return "" if one_row or one_number else f"its bias {origin.name} is {origin.type}, [{out_features}] is needed"


def _layer_name(node: Node, found: _Found, weight: Value) -> str:
    if weight.name.rpartition(".")[2] in FACTORS:
        return weight.name
    if node.scope:
        return node.scope
    for value in (weight, found.bias):
        origin = None if value is None else source(value)[0]
        for ending in (".weight", ".bias"):
            if origin is not None and origin.name.endswith(ending):
                return origin.name.removesuffix(ending)
    return node.key


def input_type(x: Value, in_features: int) -> TensorType:
    """Return the type of a layer's input, whose last extent is known from the layer."""
    shape = x.type.shape
    return TensorType(x.type.dtype, None if shape is None else (*shape[:-1], in_features))


def reaches_output(value: Value) -> bool:
    """Whether the graph returns this value, through nothing but changes of layout."""
    if value.is_output:
        return not value.nested
    layout = LOOK_THROUGH | {"reshape", "squeeze", "unsqueeze", "cast"}
    return any(node.op in layout and reaches_output(node.outputs[0]) for node in value.users)


def _padded(node: Node, count: int) -> list[Value | None]:
    return [*node.inputs, *[None] * count][:count]


def _known(value: Value | None) -> Value:
    assert value is not None, "a product has two operands"
    return value


def _number(node: Node, name: str) -> float | None:
    value = node.attributes.get(name, 1.0)
    return float(value) if isinstance(value, int | float) else None
