"""Faster calls of the models, from outside of them: CUDA graphs, kernels, layouts.

It is on where a pipeline runs on CUDA. :func:`off` and :func:`on` switch it for all pipelines, and with
``CALOTYPE_ACCELERATION=0`` in the environment it begins switched off. ``pipe.acceleration = None`` switches it off for
one, and ``pipe.acceleration = Options(…)`` chooses what is used. What changes results is used by name alone, on any
device: ``Options(step_cache=StepCache(interval=3), linears="int8")``.
"""

from calotype.acceleration.options import Options, StepCache
from calotype.acceleration.switch import is_on, off, on

__all__ = ["Options", "StepCache", "is_on", "off", "on"]
