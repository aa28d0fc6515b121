"""ONNX graphs: loading, views, rewriting, saving."""

from regraft.frontends.onnx._functions import function_for, single_node_model
from regraft.frontends.onnx._graph import OnnxGraph
from regraft.frontends.onnx._load import load

__all__ = ["OnnxGraph", "function_for", "load", "single_node_model"]
