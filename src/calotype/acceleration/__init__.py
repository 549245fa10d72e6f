"""Faster calls of the models, from outside of them: CUDA graphs, kernels, layouts.

Where a pipeline runs on CUDA, :func:`on` and :func:`off` switch it for all pipelines, and the environment variable
``CALOTYPE_ACCELERATION=1`` says where that begins; it is off until asked for. ``pipe.acceleration = None`` switches it
off for one, and ``pipe.acceleration = Options(…)`` chooses what is used.
"""

from calotype.acceleration.options import Options
from calotype.acceleration.switch import is_on, off, on

__all__ = ["Options", "is_on", "off", "on"]
