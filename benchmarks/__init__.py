"""Measurements of calotype beside the reference: ``python -m benchmarks``."""
