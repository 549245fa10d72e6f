"""Faster calls of the models, from outside of them: CUDA graphs, kernels, layouts.

On by default where a pipeline runs on CUDA. :func:`off` and :func:`on` switch it for all pipelines, and so does the
environment variable ``CALOTYPE_ACCELERATION=0``; ``pipe.acceleration = None`` switches it off for one, and
``pipe.acceleration = Options(…)`` chooses what is used.
"""

from calotype.acceleration.options import Options
from calotype.acceleration.switch import is_on, off, on

__all__ = ["Options", "is_on", "off", "on"]
