"""torch.fx graphs: capture, views, rewriting."""

from regraft.frontends.torch._capture import capture
from regraft.frontends.torch._graph import FxGraph, Rung
from regraft.frontends.torch._layout import TURNS
from regraft.frontends.torch._module import borrowed
from regraft.frontends.torch.library import register_ops

__all__ = ["TURNS", "FxGraph", "Rung", "borrowed", "capture", "register_ops"]

register_ops()
