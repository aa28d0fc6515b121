"""Functions of the user's model that multiply by weights: inlined, so that the layers inside are seen as layers.

A call in which nothing is rewritten is put back when the model is handed out (`_calls`).
"""

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Final

import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

from regraft.frontends.onnx._calls import Opened, mark_calls, settle_calls
from regraft.frontends.onnx._canonical import DOMAIN
from regraft.graph.escape import escape

_PRODUCTS: Final = frozenset({"MatMul", "Gemm"})


def inline_products(model: ir.Model) -> tuple[Opened | None, list[str]]:
    """Inline functions that hold a MatMul or Gemm, or call one that does.

    Returns:
        What the model was before, or None when nothing was inlined; and notes of one line each.
    """
    wanted = _with_products(model)
    refusals = {identifier: _refusal(model, model.functions[identifier]) for identifier in wanted}
    chosen = {identifier for identifier in wanted if not refusals[identifier]}
    notes = [f"function {_label(one)} stays closed: {reason}" for one, reason in refusals.items() if reason]
    if not chosen:
        return None, notes
    counts = Counter(node.op_identifier() for node in _all_nodes(model))
    opened, calls = mark_calls(model, chosen)
    InlinePass(criteria=lambda function: function.identifier() in chosen)(model)
    settle_calls(model, calls)
    listed = ", ".join(f"{_label(one)} ({counts[one]} calls)" for one in wanted if one in chosen)
    notes.append(
        f"calls of functions that multiply by weights are inlined where something inside is rewritten: {listed}"
    )
    return opened, notes


def inline_functions(model: ir.Model, wanted: Callable[[ir.OperatorIdentifier], bool]) -> None:
    """Inline the functions that are wanted, and drop them from the model."""
    InlinePass(criteria=lambda function: wanted(function.identifier()))(model)


def _with_products(model: ir.Model) -> list[ir.OperatorIdentifier]:
    user_functions = {key: function for key, function in model.functions.items() if key[0] != DOMAIN}
    uses = {key: {node.op_identifier() for node in function.all_nodes()} for key, function in user_functions.items()}
    found = {key for key, used in uses.items() if any(not domain and op in _PRODUCTS for domain, op, _ in used)}
    grown = True
    while grown:
        more = {key for key, used in uses.items() if key not in found and used & found}
        found |= more
        grown = bool(more)
    return [key for key in user_functions if key in found]


def _refusal(model: ir.Model, function: ir.Function) -> str:
    for domain, version in function.opset_imports.items():
        if model.opset_imports.get(domain, version) != version:
            imported = f"{escape(domain) or 'ai.onnx'} {version}"
            return f"it is written for {imported}, the model for {model.opset_imports[domain]}"
    if len({*function.inputs, *function.outputs}) < len(function.inputs) + len(function.outputs):
        return "it returns an operand as it is, or one result twice"
    bodies = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
    calls = (node for node in _all_nodes(model) if node.op_identifier() == function.identifier())
    if any(attribute.type in bodies for node in calls for attribute in node.attributes.values()):
        return "a call gives it a nested graph"
    return ""


def _all_nodes(model: ir.Model) -> Iterator[ir.Node]:
    yield from model.graph.all_nodes()
    for function in model.functions.values():
        yield from function.all_nodes()


def _label(identifier: ir.OperatorIdentifier) -> str:
    domain, name, overload = map(escape, identifier)
    return f"{domain}::{name}" + (f":{overload}" if overload else "")
