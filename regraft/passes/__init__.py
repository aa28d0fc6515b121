"""Rewrite passes: one file a pass, and the manager that runs and checks them."""
