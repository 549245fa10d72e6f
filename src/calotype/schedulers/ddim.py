"""DDIM: the transfer of family A, deterministic for η = 0, DDPM-like for η = 1 (Song et al., arXiv:2010.02502)."""

from __future__ import annotations

from calotype.schedulers.implicit import ImplicitScheduler
from calotype.schedulers.outputs import PredictionSchedulerOutput as DDIMSchedulerOutput

__all__ = ["DDIMScheduler", "DDIMSchedulerOutput"]


class DDIMScheduler(ImplicitScheduler):
    """x' = α'·x̂0 + √(σ'² − ς²)·ε̂ + ς·z, where the next step is always T//N training steps on."""
