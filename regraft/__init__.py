"""Regraft: a compiler-style graph rewriting framework for neural networks."""
