"""ONNX graphs: loading, views, rewriting, saving."""

from regraft.frontends.onnx._attention import AttentionBuilder
from regraft.frontends.onnx._builder import Sym
from regraft.frontends.onnx._canonical import DOMAIN, structured_op
from regraft.frontends.onnx._functions import VERSION, function_for, single_node_model, weight_value
from regraft.frontends.onnx._graph import OnnxGraph
from regraft.frontends.onnx._load import load
from regraft.frontends.onnx._run import bind_inputs
from regraft.frontends.onnx._save import save
from regraft.frontends.onnx._session import Session, SessionSettings, light_proto, open_session
from regraft.frontends.onnx._tensors import dtype_label, to_torch
from regraft.frontends.onnx._views import constant_of

__all__ = [
    "DOMAIN",
    "VERSION",
    "AttentionBuilder",
    "OnnxGraph",
    "Session",
    "SessionSettings",
    "Sym",
    "bind_inputs",
    "constant_of",
    "dtype_label",
    "function_for",
    "light_proto",
    "load",
    "open_session",
    "save",
    "single_node_model",
    "structured_op",
    "to_torch",
    "weight_value",
]
