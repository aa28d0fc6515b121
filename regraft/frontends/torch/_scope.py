"""Which layer of the user's model a node belongs to."""

import re
from typing import Any, Final

from torch import fx

from regraft.frontends.torch._store import TensorStore

_ROOT: Final = re.compile(r"^(L__self__|L\['self'\]|self)(\.|$)")
_MODULES: Final = re.compile(r"\._modules\['([^']+)'\]")
_CALL_COUNT: Final = re.compile(r"@\d+$")
_PATH: Final = re.compile(r"^[\w\-]+(\.[\w\-]+)*$")


def scope_of(node: fx.Node, store: TensorStore) -> str:
    """Return the path of the innermost module that was running when the node was traced, as in `named_modules()`.

    Where tracing left none, a weight that the node reads tells: it is the weight's name without its last part. "" when
    nothing does.
    """
    stack: Any = node.meta.get("nn_module_stack")
    if stack:
        path = _clean(str(next(reversed(stack.values()))[0]))
        if path is not None:
            return path
    for operand in node.all_input_nodes:
        if operand.op == "get_attr":
            return store.aliases(str(operand.target))[0].rpartition(".")[0]
    return ""


def _clean(path: str) -> str | None:
    """The path without what tracers add to it; None when it is no path."""
    if path.startswith("_empty_nn_module_stack"):
        return None
    path = _ROOT.sub("", _MODULES.sub(r".\1", path))
    path = _CALL_COUNT.sub("", path)
    return path if not path or _PATH.match(path) else None
