"""External data, which an untrusted file points to: it must stay in the model's folder, exist and be long enough."""

from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath

import onnx_ir as ir

from regraft.errors import ModelFileError, UnsafeModelError


def stored_tensors(model: ir.Model) -> Iterator[tuple[str, ir.TensorProtocol]]:
    """Yield every tensor in the model with what it is called: initializers, then attributes, of functions too."""
    for graph in _graphs(model):
        for name, value in graph.initializers.items():
            if value.const_value is not None:
                yield f"initializer {name!r}", value.const_value
    for node in _nodes(model):
        for name, attribute in node.attributes.items():
            if not attribute.is_ref():
                where = f"attribute {name!r} of node {node.name or node.op_type!r}"
                yield from ((where, tensor) for tensor in _attribute_tensors(attribute))


def settle_external(model: ir.Model, name: str, folder: Path | None) -> None:
    """Check the external data of a model.

    Args:
        model: its external tensors get `folder` as their base, if one is given.
        name: what the model is called in messages.
        folder: where the model file is; None for a model whose tensors know their folders.

    Raises:
        UnsafeModelError: when data lies outside the folder.
        ModelFileError: when data is missing or too short.
    """
    sizes: dict[Path, int] = {}
    for where, tensor in stored_tensors(model):
        if not isinstance(tensor, ir.ExternalTensor):
            continue
        if folder is not None:
            tensor.base_dir = folder
        path = _contained(f"{name}: external data {str(tensor.location)!r} of {where}", tensor)
        if path not in sizes:
            sizes[path] = path.stat().st_size
        _check_length(f"{name}: {where}", tensor, sizes[path])


def _contained(label: str, tensor: ir.ExternalTensor) -> Path:
    location = str(tensor.location)
    folder = Path(tensor.base_dir or ".").resolve()
    absolute = PurePosixPath(location).is_absolute() or PureWindowsPath(location).is_absolute()
    path = folder / location
    if absolute or not path.resolve().is_relative_to(folder):
        raise UnsafeModelError(f"{label} points outside the model's folder; refused")
    if not path.is_file():
        raise ModelFileError(f"{label} is missing in {folder}" if not path.exists() else f"{label} is no file")
    if path.stat().st_nlink > 1:
        # Another name of the file may lie anywhere: a hard link is how a path check is got round.
        raise UnsafeModelError(f"{label} has another hard link; refused", hint="copy the data file")
    return path


def _check_length(label: str, tensor: ir.ExternalTensor, size: int) -> None:
    offset, needed = tensor.offset or 0, int(tensor.nbytes)
    length = needed if tensor.length is None else tensor.length
    if offset < 0 or length < needed or offset + length > size:
        span = f"{length} bytes from {offset} on"
        raise ModelFileError(f"{label} needs {needed} bytes, said to be {span}; {tensor.location} has {size}")


def _graphs(model: ir.Model) -> Iterator[ir.Graph]:
    yield model.graph
    yield from model.graph.subgraphs()
    for function in model.functions.values():
        yield from function.subgraphs()


def _nodes(model: ir.Model) -> Iterator[ir.Node]:
    yield from model.graph.all_nodes()
    for function in model.functions.values():
        yield from function.all_nodes()


def _attribute_tensors(attribute: ir.Attr) -> Iterator[ir.TensorProtocol]:
    if attribute.type == ir.AttributeType.TENSOR:
        yield attribute.as_tensor()
    elif attribute.type == ir.AttributeType.TENSORS:
        yield from attribute.as_tensors()
