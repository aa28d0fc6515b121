"""Runs a graph in PyTorch."""
