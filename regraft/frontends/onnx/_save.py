"""Saving: the whole file or none of it, the same bytes for the same model, and never over a file that was read."""

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, Final, Literal

import onnx_ir as ir
from google.protobuf.message import EncodeError
from onnx_ir.passes.common import InlinePass

from regraft.errors import ExportError, OutputError
from regraft.frontends.onnx._canonical import DOMAIN
from regraft.frontends.onnx._convert import convert_opset
from regraft.frontends.onnx._external import stored_tensors
from regraft.frontends.onnx._files import PendingFiles
from regraft.frontends.onnx._graph import OnnxGraph
from regraft.frontends.onnx._opset import default_opset
from regraft.frontends.onnx._session import embed_external
from regraft.frontends.onnx._settle import settle_types

EXTERNAL_ABOVE: Final = 2**31 - 2**27
"""Bytes of weights above which they go to a file of their own; a protobuf ends at 2 GB, with all that is in it."""

_SMALLEST_EXTERNAL: Final = 1024  # smaller tensors may be shapes, which readers want to see
_PAGE: Final = 4096
_LINE: Final = 64


def save(
    model: OnnxGraph | ir.Model,
    path: str | os.PathLike[str],
    *,
    opset: int | None = None,
    functions: Literal["keep", "inline"] = "keep",
    metadata: Mapping[str, str] | None = None,
    external_above: int = EXTERNAL_ABOVE,
    respell: Callable[[ir.Model], None] | None = None,
) -> None:
    """Write a model to a file, and large weights to "<file>.data" beside it.

    The model stays as it is. Files appear under their names only when they are complete; a failure leaves nothing.

    Args:
        model: what to save.
        path: the file; an existing one is replaced, unless the model was read from it.
        opset: version of the default domain; the model's own when None.
        functions: whether structured ops stay one node each, with a model-local function, or all functions are inlined.
        metadata: properties to add to the model's own.
        external_above: bytes of weights above which they become external data.
        respell: changes the bodies of the functions of structured ops for one runtime, at the opset that is written.

    Raises:
        OutputError: when the file cannot be written there.
        ExportError: when the model cannot be expressed that way.
    """
    target = Path(path)
    source = model.model if isinstance(model, OnnxGraph) else model
    _check_target(target, source, model.path if isinstance(model, OnnxGraph) else None)
    outgoing = (model.closed() if isinstance(model, OnnxGraph) else model).clone()
    _drop_unused_functions(outgoing)
    if opset is not None and opset != default_opset(outgoing):
        convert_opset(outgoing, opset, target.name)
    if respell is not None:
        respell(outgoing)
    if functions == "inline":
        _inline_all(outgoing, target.name)
    outgoing.metadata_props.update(metadata or {})
    try:
        _write(outgoing, target, external_above)
    except OSError as error:
        raise OutputError(f"{target}: cannot be written: {error.strerror or error}") from error


def data_path(path: Path) -> Path:
    """Return where the external data of a model file goes."""
    return path.with_name(f"{path.name}.data")


def _check_target(target: Path, source: ir.Model, read_from: Path | None) -> None:
    if target.is_dir():
        raise OutputError(f"{target}: a directory; the path of a file is needed")
    if not target.parent.is_dir():
        raise OutputError(f"{target}: the folder {target.parent} does not exist", hint="create it first")
    if not os.access(target.parent, os.W_OK):
        raise OutputError(f"{target}: the folder {target.parent} is read-only")
    inputs = {Path(tensor.path) for _, tensor in stored_tensors(source) if isinstance(tensor, ir.ExternalTensor)}
    for read in (*([read_from] if read_from is not None else []), *inputs):
        if any(_is_same(read, written) for written in (target, data_path(target))):
            raise OutputError(
                f"{target}: {read.name} is what the model was read from; an input file is never changed in place",
                hint="choose another path",
            )


def _is_same(read: Path, written: Path) -> bool:
    return written.exists() and read.exists() and read.samefile(written)


def _drop_unused_functions(model: ir.Model) -> None:
    """Functions of structured ops that were rewritten again are called by nothing any more."""
    called = {node.op_identifier() for node in model.graph.all_nodes()}
    for function in model.functions.values():
        called |= {node.op_identifier() for node in function.all_nodes()}
    for identifier in list(model.functions):
        if identifier[0] == DOMAIN and identifier not in called:
            del model.functions[identifier]


def _inline_all(model: ir.Model, name: str) -> None:
    try:
        InlinePass()(model)
    except (ValueError, ir.passes.PreconditionError) as error:
        raise ExportError(f"{name}: functions cannot be inlined: {error}") from error
    settle_types(model)
    if not any(node.domain == DOMAIN for node in model.graph.all_nodes()):
        model.opset_imports.pop(DOMAIN, None)


def _write(model: ir.Model, target: Path, external_above: int) -> None:
    """Data first, so that a model file never points to data that is not there yet."""
    weights = list(_weights(model))
    with PendingFiles(target.parent) as files:
        outside: list[ir.Value] = []
        if sum(int(tensor.nbytes) for _, tensor in weights) > external_above:
            outside = [value for value, tensor in weights if tensor.nbytes >= _SMALLEST_EXTERNAL]
            _write_data(outside, data_path(target).name, files.open(data_path(target)))
        embed_external(model, keep=frozenset(outside))
        try:
            content = ir.to_proto(model).SerializeToString(deterministic=True)
        except EncodeError as error:
            raise ExportError(
                f"{target.name}: too large for one protobuf, which ends at 2 GB",
                hint="lower external_above, so that the weights become external data",
            ) from error
        files.open(target).write(content)
        files.commit()


def _weights(model: ir.Model) -> Iterator[tuple[ir.Value, ir.TensorProtocol]]:
    for graph in (model.graph, *model.graph.subgraphs()):
        for value in graph.initializers.values():
            tensor = value.const_value
            if tensor is not None and tensor.dtype != ir.DataType.STRING:
                yield value, tensor


def _write_data(values: list[ir.Value], location: str, file: BinaryIO) -> None:
    """Write tensors one behind the other, and let the values point there; large ones begin at a page."""
    for value in values:
        tensor = value.const_value
        assert tensor is not None, "a weight has a content"
        size = int(tensor.nbytes)
        file.write(b"\0" * (-file.tell() % (_PAGE if size >= _PAGE else _LINE)))
        offset = file.tell()
        copy_to: Callable[[BinaryIO], object] | None = getattr(tensor, "tofile", None)
        if copy_to is None:  # the protocol does not promise it
            file.write(tensor.tobytes())
        else:
            copy_to(file)  # within the kernel when the tensor lies in a file itself
        value.const_value = ir.ExternalTensor(
            location, offset, size, tensor.dtype, shape=ir.Shape(tensor.shape.numpy()), name=str(value.name)
        )
