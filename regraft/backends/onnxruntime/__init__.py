"""Runs a graph in ONNX Runtime, and writes it as an ONNX file."""

from regraft.backends.onnxruntime._export import as_onnx, check_opset, export_graph
from regraft.backends.onnxruntime._session import OnnxRuntimeExecutable, compile, providers_for

__all__ = ["OnnxRuntimeExecutable", "as_onnx", "check_opset", "compile", "export_graph", "providers_for"]
