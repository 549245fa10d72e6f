"""Triton kernels for what PyTorch does in several passes, each beside the same in PyTorch. Need Triton to import."""
