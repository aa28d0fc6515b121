"""Capture: from a PyTorch model, in whatever form, to an FxGraph."""

# torch has no public name for some of what is used here.
# pyright: reportPrivateUsage=false

import inspect
import io
import logging
import warnings
from collections.abc import Generator, Iterator, Mapping
from contextlib import ExitStack, contextmanager, redirect_stderr
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import fx, nn
from torch.export import ExportedProgram

from regraft.errors import CaptureError, InputError, RegraftWarning
from regraft.frontends.torch._canonical import is_assertion
from regraft.frontends.torch._diagnosis import diagnose
from regraft.frontends.torch._fixed import REMEDY, fixed_extents
from regraft.frontends.torch._graph import FxGraph, Rung
from regraft.frontends.torch._inputs import Example, dummy_inputs_of, example_of
from regraft.frontends.torch._layout import reshape_what_is_turned

_STATIC: Final = "static shapes"
_UNWRITABLE: Final = frozenset('"\\\n\r\0')
"""What torch does not escape where it writes the name of a module into the code of a graph."""


def capture(
    model: nn.Module | ExportedProgram | fx.GraphModule,
    example_inputs: Any = None,
    dynamic_shapes: Any = "auto",
) -> FxGraph:
    """Capture a PyTorch model, in evaluation mode and without gradients, as a graph that can be rewritten.

    The model is not changed, and the graph shares its weights. Models of transformers are captured without their cache.

    Args:
        model: a module, or what torch.export or torch.fx made of one.
        example_inputs: a tensor, a tuple of positional or a mapping of keyword arguments; without them a module's own
            `dummy_inputs` are used. ExportedPrograms and ATen-level GraphModules need none.
        dynamic_shapes: "auto" leaves every dim free that the model does not fix; None fixes all; else as in
            torch.export.

    Returns:
        The graph; its `capture_report` says which way of tracing worked, and why those before did not. When only fixed
        shapes work, or the model's code fixes a batch or sequence that was left free, a RegraftWarning says so.

    Raises:
        InputError: when example inputs are missing or do not fit the model's forward.
        CaptureError: when nothing worked: names what in the model is at fault.
    """
    if isinstance(model, ExportedProgram):
        return _from_program(model)
    if isinstance(model, fx.GraphModule) and example_inputs is None:
        return _from_graph_module(model)
    return _from_module(model, example_inputs, dynamic_shapes)


@dataclass(frozen=True)
class _Attempt:
    """One way of tracing."""

    name: str
    example: Example
    dynamic_shapes: Any
    strict: bool = False


def _from_program(program: ExportedProgram) -> FxGraph:
    with _quiet():
        module = program.run_decompositions({}).module()
    assert isinstance(module, fx.GraphModule)
    reshape_what_is_turned(module)
    name = _root_name(module)
    return FxGraph.of(module, name, None, (Rung("exported program"),))


def _from_graph_module(module: fx.GraphModule) -> FxGraph:
    for node in module.graph.nodes:
        problem = _not_aten(node)
        if problem:
            hint = "pass example_inputs, so that it can be traced again by torch.export"
            raise CaptureError(f"the GraphModule is not at the level of ATen: {problem}", hint=hint)
    return FxGraph.of(module, _root_name(module), None, (Rung("graph module"),))


def _from_module(model: nn.Module, example_inputs: Any, dynamic_shapes: Any) -> FxGraph:
    name = type(model).__name__
    if isinstance(model, torch.jit.ScriptModule):
        hint = "pass the nn.Module that it was made from"
        raise CaptureError(f"{name} cannot be captured: TorchScript keeps no Python code to trace", hint=hint)
    _check_names(model, name)
    example = example_of(model, _given_or_dummy(model, name, example_inputs))
    if isinstance(model, fx.GraphModule) and not any(_not_aten(node) for node in model.graph.nodes):
        return FxGraph.of(model, _root_name(model), (example.args, example.kwargs), (Rung("graph module"),))
    with ExitStack() as stack:
        stack.enter_context(_evaluation(model))
        stack.enter_context(_without_cache(model))
        module, rungs, used = _climb(model, name, example, dynamic_shapes)
    notes: list[str] = []
    if rungs[-1].name == _STATIC and dynamic_shapes is not None:
        reason = f"{name} was captured with fixed shapes and runs with no others: {rungs[-1].reason}"
        warnings.warn(reason, RegraftWarning, stacklevel=3)
    elif isinstance(dynamic_shapes, str) and (fixed := fixed_extents(module)):
        notes.append(f"{name} fixes extents and runs with no others: {', '.join(fixed)}")
        warnings.warn(f"{notes[0]}; {REMEDY}", RegraftWarning, stacklevel=3)
    return FxGraph.of(module, name, (used.args, used.kwargs), rungs, notes)


def _check_names(model: nn.Module, name: str) -> None:
    named = [*model.named_modules(), *model.named_parameters(), *model.named_buffers()]
    for path, _ in named:
        if _UNWRITABLE.intersection(path):
            hint = "rename it: torch writes names into code, where quotes, backslashes and line breaks end a string"
            raise CaptureError(f"{name} cannot be captured: torch has no way to write the name {path!r}", hint=hint)


def _given_or_dummy(model: nn.Module, name: str, example_inputs: Any) -> Any:
    found = dummy_inputs_of(model) if example_inputs is None else example_inputs
    if found is None:
        hint = "pass a tensor, a tuple of inputs or a mapping of keyword arguments (on the command line, --inputs FILE)"
        raise InputError(f"{name}: example_inputs are needed to capture an nn.Module; got none", hint=hint)
    return found


def _climb(
    model: nn.Module, name: str, example: Example, dynamic_shapes: Any
) -> tuple[fx.GraphModule, tuple[Rung, ...], Example]:
    """Try one way of tracing after the other, until one works."""
    rungs: list[Rung] = []
    reason, hint = "", ""
    for attempt in _attempts(model, example, dynamic_shapes):
        rungs.append(Rung(attempt.name, reason))
        outcome = _trace(model, attempt)
        if isinstance(outcome, fx.GraphModule):
            return outcome, tuple(rungs), attempt.example
        if len(rungs) == 1:
            _check_runs(model, name, example)
        reason, hint = diagnose(outcome)
    raise CaptureError(f"{name} cannot be captured: {reason}", hint=hint)


def _attempts(model: nn.Module, example: Example, dynamic_shapes: Any) -> Iterator[_Attempt]:
    """Ways of tracing, the best one first."""
    if dynamic_shapes is None or not isinstance(dynamic_shapes, str):
        fixed = dynamic_shapes is None
        yield _Attempt(_STATIC if fixed else "export, dims as given", example, dynamic_shapes)
        yield _Attempt("strict export", example, dynamic_shapes, strict=True)
        return
    grown = example.grown((0, 1))
    yield _Attempt("export, all dims dynamic", grown, grown.dynamic(model, None))
    for places in ((0,), ()):
        other = example.grown(places)
        if other.shapes() != grown.shapes():
            yield _Attempt("export, all dims dynamic, but extents of 1", other, other.dynamic(model, None))
    yield _Attempt("strict export", grown, grown.dynamic(model, None), strict=True)
    batched = example.grown((0,))
    yield _Attempt("batch dynamic only", batched, batched.dynamic(model, (0,)))
    yield _Attempt(_STATIC, example, None)


def _trace(model: nn.Module, attempt: _Attempt) -> fx.GraphModule | Exception:
    """Trace once; return what torch raised when it could not."""
    example = attempt.example.copied()
    try:
        with torch.no_grad(), _quiet():
            program = torch.export.export(
                model,
                example.args,
                example.kwargs,
                dynamic_shapes=attempt.dynamic_shapes,
                strict=attempt.strict,
            )
            module = program.run_decompositions({}).module()
    except Exception as error:  # tracing runs the user's code and raises whatever that raises; `diagnose` reads it
        return error
    assert isinstance(module, fx.GraphModule)
    reshape_what_is_turned(module)
    return module


def _check_runs(model: nn.Module, name: str, example: Example) -> None:
    """Tell a model that cannot be traced from inputs that it cannot be called with."""
    try:
        with torch.no_grad(), _quiet():
            model(*example.args, **example.kwargs)
    except Exception as error:  # the user's code may raise anything
        first = next(iter(str(error).splitlines()), type(error).__name__)
        hint = f"{name}.forward takes {', '.join(inspect.signature(model.forward).parameters)}"
        raise InputError(f"{name} cannot be called with the example inputs: {first}", hint=hint) from error


@contextmanager
def _quiet() -> Generator[None]:
    """Silence what torch warns, logs and prints of its own internals; what matters is in the exception it raises."""
    level = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


@contextmanager
def _evaluation(model: nn.Module) -> Generator[None]:
    """Evaluation mode inside; each module's own flag afterwards."""
    flags = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in flags:
            module.training = training


@contextmanager
def _without_cache(model: nn.Module) -> Generator[None]:
    """No key-value cache inside: it is no tensor, and a captured program could not return it."""
    configs: list[Any] = [getattr(module, "config", None) for module in model.modules()]
    caching = list({id(config): config for config in configs if getattr(config, "use_cache", None) is True}.values())
    for config in caching:
        config.use_cache = False
    try:
        yield
    finally:
        for config in caching:
            config.use_cache = True


def _not_aten(node: fx.Node) -> str:
    """Why a node has no place in an ATen-level graph, or ""."""
    if node.op == "call_method" or (node.op == "call_module" and not is_assertion(node)):
        return f"node {node.name} calls the {node.op.removeprefix('call_')} {node.target}"
    if node.op == "call_function" and not _is_operator(node.target):
        return f"node {node.name} calls {node._pretty_print_target(node.target)}"
    if node.op in ("call_function", "placeholder") and "val" not in node.meta and not is_assertion(node):
        return f"node {node.name} has no type"
    return ""


def _is_operator(target: Any) -> bool:
    module = getattr(target, "__module__", "") or ""
    is_native = isinstance(target, torch._ops.OpOverload | torch._ops.HigherOrderOperator)
    return is_native or module in ("_operator", "math") or target is torch._assert or "torch.sym_" in str(target)


def _root_name(module: fx.GraphModule) -> str:
    """Class name of the model that was traced, as far as nodes tell."""
    for node in module.graph.nodes:
        stack: Mapping[str, Any] = node.meta.get("nn_module_stack") or {}
        for path, kind in stack.values():
            if path == "":
                text = kind if isinstance(kind, str) else kind.__qualname__
                return text.rpartition(".")[2]
    return type(module).__name__.removesuffix("Impl")
