"""ONNX graphs: loading, views, rewriting, saving."""
