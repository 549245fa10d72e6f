"""Kernels in CUDA C++, for what Triton does not say: clusters, shared copies, products of any width."""
