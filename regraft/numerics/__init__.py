"""Tensor mathematics without graphs: factorizations, projections, statistics."""
