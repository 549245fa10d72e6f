"""DDPM: ancestral sampling along the trained chain (Ho et al., arXiv:2006.11239; Nichol & Dhariwal 2102.09672)."""

from __future__ import annotations

from calotype.schedulers.outputs import PredictionSchedulerOutput as DDPMSchedulerOutput
from calotype.schedulers.posterior import AncestralScheduler

__all__ = ["DDPMScheduler", "DDPMSchedulerOutput"]


class DDPMScheduler(AncestralScheduler):
    """x' = posterior mean of (x, x̂0) + ς·z; ``variance_type`` says where ς comes from."""
