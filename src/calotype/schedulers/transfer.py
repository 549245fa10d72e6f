"""Family A, the transfer: carry x̂0 and ε̂ to another noise level, replacing some of the old noise by new.

x_t = α_t·x̂0 + √(σ_t² − ς²)·ε̂ + ς·z with ς = η·σ_t·√(1 − κ_t²/κ_s²), κ = σ/α: Song et al., arXiv:2010.02502,
equations 12 and 16. η = 0 is DDIM (and, in other coordinates, Euler), η = 1 is DDPM's posterior and ancestral sampling.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from calotype.core.errors import InputError


class Level(NamedTuple):
    """A noise level: x = alpha·x0 + sigma·ε."""

    alpha: float
    sigma: float


def level_of_alpha_bar(alpha_bar: float) -> Level:
    """The variance-preserving level of ᾱ."""
    return Level(math.sqrt(alpha_bar), math.sqrt(1.0 - alpha_bar))


def fresh_noise(s: Level, t: Level, eta: float) -> float:
    """ς = η·σ_t·√(1 − κ_t²/κ_s²), the standard deviation of the new noise in a step from ``s`` to ``t``."""
    if eta == 0 or t.sigma == 0:
        return 0.0
    ratio = (t.sigma / t.alpha) * (s.alpha / s.sigma)
    return eta * t.sigma * math.sqrt(max(1.0 - ratio**2, 0.0))


def transfer(t: Level, fresh: float) -> tuple[float, float]:
    """Weights of x̂0 and ε̂ at ``t``; raises ``InputError`` if more new noise is asked for than the level holds."""
    left = t.sigma**2 - fresh**2
    if left < -1e-9 * t.sigma**2:
        raise InputError(
            f"The step would add new noise of {fresh:.4g} to a level that holds {t.sigma:.4g}: choose eta in [0, 1]."
        )
    return t.alpha, math.sqrt(max(left, 0.0))


def posterior(s: Level, t: Level, beta: float) -> tuple[float, float, float]:
    """Weights of x and x̂0 in DDPM's posterior mean, and its variance (Ho et al., arXiv:2006.11239, equation 7).

    β = 1 − ᾱ_s/ᾱ_t is given: it is rounded to float32 where the model was trained with float32.
    """
    left = (t.sigma / s.sigma) ** 2
    return math.sqrt(1.0 - beta) * left, t.alpha * beta / s.sigma**2, left * beta
