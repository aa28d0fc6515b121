"""A captured PyTorch program as an ONNX model: torch's exporter, with our ops kept as nodes.

torch inlines functions that are given to it as translations, so an op is first translated to an opaque node of the
domain "regraft", and its function is attached afterwards.
"""

import logging
import re
import warnings
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, Final

import onnx
import onnx_ir as ir
import torch
from onnxscript.values import Opset

from regraft.backends._again import export_again, first_line
from regraft.backends.onnxruntime._attach import attach_functions
from regraft.backends.onnxruntime._copies import merge_copies
from regraft.errors import ExportError
from regraft.frontends.onnx import OnnxGraph, load
from regraft.frontends.torch import FxGraph
from regraft.ops import Op, all_ops

DOMAIN: Final = "regraft"
DEFAULT_OPSET: Final = 21
OLDEST_OPSET: Final = 18
_TYPES: Final = ["tensor(float)", "tensor(float16)", "tensor(bfloat16)", "tensor(double)"]
_INTEGERS: Final = ["tensor(int8)", "tensor(uint8)", "tensor(int32)", "tensor(int64)"]


def to_onnx(graph: FxGraph, opset: int = DEFAULT_OPSET) -> OnnxGraph:
    """Return the program as an ONNX graph; structured ops are function nodes.

    Args:
        graph: captured from PyTorch.
        opset: version of the standard operators, OLDEST_OPSET or later.

    Raises:
        ExportError: when an operator has no ONNX form.
    """
    program = export_again(graph)
    with _quiet():
        try:
            exported = torch.onnx.export(
                program,
                dynamo=True,
                opset_version=opset,
                custom_translation_table=_translations(),
                verbose=False,
                external_data=False,
            )
        except torch.onnx.errors.OnnxExporterError as error:
            raise ExportError(f"{graph.name} cannot be written as ONNX: {_cause(error)}") from error
    assert exported is not None, "the exporter returns a program unless it is given a file"
    model = exported.model
    _name_dims(model, graph.dim_names)
    _carry_metadata(model, graph)
    merge_copies(model, {value.name for value in graph.constants()})
    attach_functions(model)
    return load(model)


def _cause(error: BaseException) -> str:
    """The innermost reason that the exporter gives, in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return first_line(error)


@lru_cache(maxsize=1)
def _translations() -> dict[Any, Callable[..., Any]]:
    """Opaque translations of every op, each with its schema registered once."""
    opset = Opset(DOMAIN, 1)
    return {
        getattr(torch.ops.regraft, name).default: _translation(getattr(opset, _registered(op).name), op)
        for name, op in all_ops().items()
    }


def _translation(node: Callable[..., Any], op: Op) -> Callable[..., Any]:
    count = len(op.operands)

    def translate(*args: Any, **attributes: Any) -> Any:
        return node(*args[:count], **attributes)

    return translate


def _registered(op: Op) -> onnx.defs.OpSchema:
    """Register and return the ONNX schema of an op: operands of one floating type, or of integers."""
    parameter, option = onnx.defs.OpSchema.FormalParameter, onnx.defs.OpSchema.FormalParameterOption
    first = op.operands[0].name
    inputs = [
        parameter(
            operand.name,
            "T" if operand.name == first else f"T_{operand.name}",
            param_option=option.Optional if operand.optional else option.Single,
        )
        for operand in op.operands
    ]
    constraints = [("T", _TYPES, "floating point")]
    constraints += [(f"T_{operand.name}", [*_TYPES, *_INTEGERS], "any") for operand in op.operands[1:]]
    attribute = onnx.defs.OpSchema.Attribute
    types = onnx.defs.OpSchema.AttrType
    kinds = {"int": types.INT, "float": types.FLOAT, "str": types.STRING}
    schema = onnx.defs.OpSchema(
        op.onnx_name,
        DOMAIN,
        1,
        inputs=inputs,
        outputs=[parameter("y", "T")],
        type_constraints=constraints,
        attributes=[attribute(name, kinds[kind], required=True) for name, kind in op.attributes.items()],
    )
    if not onnx.defs.has(op.onnx_name, domain=DOMAIN):
        onnx.defs.register_schema(schema)
    return schema


def _carry_metadata(model: ir.Model, graph: FxGraph) -> None:
    """Say of structured nodes which pass made them, and say nothing of the files of the machine that exported."""
    made = [node for node in graph.nodes() if node.op in all_ops()]
    written = [node for node in model.graph if node.domain == DOMAIN]
    for ours, theirs in zip(made, written, strict=True):
        theirs.metadata_props.update(ours.metadata)
    for node in model.graph.all_nodes():
        node.metadata_props.pop("pkg.torch.onnx.stack_trace", None)


def _name_dims(model: ir.Model, names: Mapping[str, str]) -> None:
    """Give the exporter's symbols (s43) the names that people know (batch), also inside expressions (s43 + 1)."""
    if not names:
        return
    symbol = re.compile(r"\b(" + "|".join(map(re.escape, names)) + r")\b")
    for value in _all_values(model):
        if value.shape is None:
            continue
        dims = [_renamed(dim, symbol, names) for dim in value.shape]
        value.shape = ir.Shape(dims)


def _renamed(dim: Any, symbol: re.Pattern[str], names: Mapping[str, str]) -> Any:
    if isinstance(dim, ir.SymbolicDim) and dim.value:
        return symbol.sub(lambda found: names[found.group()], dim.value)
    return dim


def _all_values(model: ir.Model) -> Iterator[ir.Value]:
    yield from model.graph.inputs
    for node in model.graph:
        yield from node.outputs


@contextmanager
def _quiet() -> Generator[None]:
    """Silence the exporter's warnings and log lines about packages that are not there."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
