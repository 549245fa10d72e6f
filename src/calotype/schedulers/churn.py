"""Churn: noise added before a deterministic step, which it then removes again (arXiv:2206.00364, algorithm 2)."""

from __future__ import annotations

import math

from torch import Tensor

from calotype.core.random import Generators, randn_tensor
from calotype.schedulers.affine import Value, affine


def raised_level(kappa: float, steps: int, s_churn: float, s_tmin: float, s_tmax: float) -> float | None:
    """The level κ̂ = κ·(1 + min(s_churn/steps, √2 − 1)) to begin the step at; None where nothing is added."""
    if s_churn <= 0 or not s_tmin <= kappa <= s_tmax:
        return None
    return kappa * (1 + min(s_churn / steps, math.sqrt(2) - 1))


def noise_like(output: Tensor, generator: Generators) -> Tensor:
    """Fresh noise of the network output's shape, device and dtype."""
    return randn_tensor(output.shape, generator, output.device, output.dtype)


def raised_sample(x: Value, z: Tensor, kappa: float, raised: float, s_noise: float) -> Value:
    """The sample at κ̂: x + s_noise·√(κ̂² − κ²)·z."""
    return affine((1.0, x), (s_noise * math.sqrt(raised**2 - kappa**2), z))
