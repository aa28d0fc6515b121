"""Loading ONNX models: from a file, a protobuf or a native model; nothing of what is given is ever changed."""

import os
from pathlib import Path
from typing import cast

import onnx
import onnx_ir as ir
from onnx_ir.serde import SerdeError

from regraft.errors import ModelFileError, ModelTypeError
from regraft.frontends.onnx._defaults import settle_defaults
from regraft.frontends.onnx._external import settle_external, stored_tensors
from regraft.frontends.onnx._graph import OnnxGraph
from regraft.frontends.onnx._infer import infer_types
from regraft.frontends.onnx._inline import inline_products
from regraft.frontends.onnx._opset import OLDEST, default_opset, newest_opset
from regraft.frontends.onnx._read import read_model
from regraft.frontends.onnx._structure import check_operands, check_proto, is_sorted, sort_nodes
from regraft.graph.escape import escape


def load(source: str | os.PathLike[str] | onnx.ModelProto | ir.Model) -> OnnxGraph:
    """Return an ONNX model as a graph.

    Weights are read when asked for, from the mapped file where they are external data.

    Args:
        source: the path of an .onnx file, or a model in memory, which stays as it is.

    Raises:
        ModelNotFoundError: when there is no such file.
        ModelFileError: when the file is no model, or a malformed one, or of an opset that is too old or unknown.
        UnsafeModelError: when it wants to read outside its folder, or is a pickle.
        ModelTypeError: when `source` is none of these.
    """
    if isinstance(source, ir.Model):
        return _from_native(source)
    if isinstance(source, onnx.ModelProto):
        return _from_proto(source)
    path = _as_path(source)
    proto = read_model(path)
    model = _parsed(proto, path.name)
    settle_external(model, path.name, path.absolute().parent)
    return _graph(model, path.name, path, _left_out(proto))


def _as_path(source: object) -> Path:
    if not isinstance(source, str | os.PathLike):
        kind = type(source).__name__
        raise ModelTypeError(f"an ONNX model is a path, an onnx.ModelProto or an onnx_ir.Model; got {kind}")
    return Path(cast("str | os.PathLike[str]", source))


def _from_proto(proto: onnx.ModelProto) -> OnnxGraph:
    name = _title(proto.graph.name)
    model = _parsed(proto, name)
    for where, tensor in stored_tensors(model):
        if isinstance(tensor, ir.ExternalTensor):
            raise ModelFileError(
                f"{name}: {where} is external data, and a model in memory has no folder",
                hint="pass the path of the .onnx file, or load the data first: onnx.load(path)",
            )
    return _graph(model, name, None, _left_out(proto))


def _from_native(source: ir.Model) -> OnnxGraph:
    name = _title(source.graph.name)
    for node in source.graph.all_nodes():
        for value in node.inputs:
            if value is not None and value.graph is None:
                where = f"node {node.name!r} ({escape(node.op_type)})"
                raise ModelFileError(f"{name}: {where} reads {value.name!r}, which nothing defines")
    if not is_sorted(source.graph):
        raise ModelFileError(f"{name}: the nodes are in no topological order", hint="call model.graph.sort()")
    settle_external(source, name, None)
    return _graph(source.clone(), name, None, [])


def _parsed(proto: onnx.ModelProto, name: str) -> ir.Model:
    check_proto(proto, name)
    try:
        return ir.from_proto(proto)
    except (SerdeError, ValueError, TypeError) as error:
        raise ModelFileError(f"{name}: {_root_cause(error)}") from error


def _title(name: str | bytes | None) -> str:
    """What a model in memory is called in messages."""
    return escape(name) if isinstance(name, str) and name else "model"


def _left_out(proto: onnx.ModelProto) -> list[str]:
    return ["the file's training information is left out"] if proto.training_info else []


def _graph(model: ir.Model, name: str, path: Path | None, notes: list[str]) -> OnnxGraph:
    _check_opset(model, name)
    check_operands(model, default_opset(model), name)
    if sort_nodes(model, name):
        notes.append("nodes were not in topological order; sorted")
    notes.extend(settle_defaults(model))
    opened, remarks = inline_products(model)
    notes.extend(remarks)
    return OnnxGraph(model, name=name, path=path, notes=notes, inferred=infer_types(model), opened=opened)


def _check_opset(model: ir.Model, name: str) -> None:
    opset = default_opset(model)
    if opset == 0:
        raise ModelFileError(f"{name}: the model says no version of the default operator domain")
    if opset < OLDEST:
        raise ModelFileError(
            f"{name}: opset {opset} is too old; {OLDEST} or later is needed",
            hint=f"convert it: onnx.version_converter.convert_version(model, {max(OLDEST, 18)})",
        )
    if opset > newest_opset():
        raise ModelFileError(
            f"{name}: opset {opset} is unknown; the installed onnx {onnx.__version__} knows up to {newest_opset()}",
            hint="upgrade onnx, or convert the model: onnx.version_converter.convert_version(model, 21)",
        )


def _root_cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return escape(str(error).split("\n", maxsplit=1)[0])
