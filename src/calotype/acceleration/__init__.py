"""Faster calls of the models, from outside of them: CUDA graphs, kernels, layouts."""
