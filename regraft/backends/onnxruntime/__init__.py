"""Runs a graph in ONNX Runtime."""
