"""Kernels of structured ops, one file an op; templates for the GPU in `cuda`, for the CPU in `cpu`."""
