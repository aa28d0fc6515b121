"""Captured programs that do not depend on the order in memory of what operators return.

torch traces `x.reshape(...)` as a view where the values at hand allow one. Attention's result lies in memory one way
without gradients and another way with them, so that a view of it, turned, exists only in the former case.
"""

from typing import Final

import torch
from torch import fx

TURNS: Final = (torch.ops.aten.transpose.int, torch.ops.aten.permute.default)
"""Operators that leave the content where it is and read it in another order."""


def reshape_what_is_turned(module: fx.GraphModule) -> None:
    """Let views of turned values copy where they must; where a view is possible, a reshape is one."""
    for node in module.graph.find_nodes(op="call_function", target=torch.ops.aten.view.default):
        turned = node.args[0]
        if isinstance(turned, fx.Node) and turned.target in TURNS:
            node.target = torch.ops.aten.reshape.default
    module.recompile()
