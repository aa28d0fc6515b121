"""The layer of the user's model that an ONNX node comes from: from what the exporter wrote, else from names of weights.

1. metadata of the torch exporter: "['', 'encoder', 'encoder.layer.0', 'linear']" -> "encoder.layer.0"
2. node names of the TorchScript exporter: "/encoder/layer.0/MatMul" -> "encoder.layer.0"
3. a weight or bias that it reads (a product: also the bias that is added to it): "encoder.layer.0.bias"
4. the node's name
"""

import re
from collections.abc import Iterator
from typing import Final

import onnx_ir as ir

from regraft.frontends.onnx._canonical import DOMAIN

NAME_SCOPES: Final = "pkg.torch.onnx.name_scopes"
SITE: Final = "regraft.site"

_PARAMETER: Final = re.compile(r"(?P<layer>.+)\.(weight|bias|gamma|beta)$")
_QUOTED: Final = re.compile(r"""'([^']*)'|"([^"]*)\"""")
_NO_MODULE: Final = "_empty_nn_module_stack"  # torch's mark for what its own passes add
_STRICT_EXPORT: Final = re.compile(r"^L\['self'\]\.?")


def scope_of(node: ir.Node) -> str:
    """Return the name of the layer as `model.named_modules()` spells it, or the best guess; "" when nothing says it."""
    scopes = node.metadata_props.get(NAME_SCOPES)
    if scopes is not None:
        return _innermost(scopes)
    name = node.name or ""
    if name.startswith("/") and name.count("/") > 1:
        return ".".join(name.strip("/").split("/")[:-1])
    if node.domain == DOMAIN:
        return node.metadata_props.get(SITE, name)
    return next(_layers(node), name)


def _innermost(scopes: str) -> str:
    """The last module of the list; its last entry is the operation itself. Read as text: the file is not trusted."""
    names = [single or double for single, double in _QUOTED.findall(scopes)]
    if len(names) < 2 or names[-2].startswith(_NO_MODULE):
        return ""
    return _STRICT_EXPORT.sub("", names[-2])


def _layers(node: ir.Node) -> Iterator[str]:
    yield from _layers_of_parameters(node)
    if node.op_type == "MatMul" and len(node.outputs[0].uses()) == 1:
        (consumer,) = node.outputs[0].consumers()
        if consumer.op_type == "Add":
            yield from _layers_of_parameters(consumer)


def _layers_of_parameters(node: ir.Node) -> Iterator[str]:
    for value in node.inputs:
        if value is not None and value.is_initializer():
            found = _PARAMETER.match(value.name or "")
            if found:
                yield found["layer"]
