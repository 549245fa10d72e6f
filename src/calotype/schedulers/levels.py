"""Noise levels: what those of a run mean, and family A, the transfer of x̂0 and ε̂ from one to another.

x_t = α_t·x̂0 + √(σ_t² − ς²)·ε̂ + ς·z with ς = η·σ_t·√(1 − κ_t²/κ_s²), κ = σ/α: Song et al., arXiv:2010.02502,
equations 12 and 16. η = 0 is DDIM (and, in other coordinates, Euler), η = 1 is DDPM's posterior and ancestral sampling.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from calotype.core.errors import InputError


class Level(NamedTuple):
    """A noise level: x = alpha·x0 + sigma·ε."""

    alpha: float
    sigma: float

    @property
    def log_snr(self) -> float:
        """λ = ln(α/σ); infinite where no noise is left, or no signal."""
        if self.sigma == 0:
            return math.inf
        return math.log(self.alpha) - math.log(self.sigma) if self.alpha > 0 else -math.inf


def level_of_alpha_bar(alpha_bar: float) -> Level:
    """The variance-preserving level of ᾱ."""
    return Level(math.sqrt(alpha_bar), math.sqrt(1.0 - alpha_bar))


def exploding(kappa: float) -> Level:
    """The level whose samples are x0 + κ·ε."""
    return Level(1.0, kappa)


def preserving(kappa: float) -> Level:
    """The level whose samples are (x0 + κ·ε)/√(κ² + 1), as networks of discrete time want them."""
    alpha = 1.0 / math.sqrt(kappa**2 + 1.0)
    return Level(alpha, kappa * alpha)


def flow(sigma: float) -> Level:
    """The level whose samples are (1 − σ)·x0 + σ·ε, σ in [0, 1]."""
    return Level(1.0 - sigma, sigma)


class Coordinates(NamedTuple):
    """What a run's ``sigmas`` mean: the ``level`` of its samples, and ``data``, that of the data where networks take the
    sample divided by √(σ² + data²) (None: the sample itself)."""

    level: Callable[[float], Level]
    data: float | None = None


def transfer(s: Level, t: Level, eta: float = 0.0) -> tuple[float, float, float]:
    """Weights of x̂0, ε̂ and new noise at ``t``, coming from ``s``; raises ``InputError`` if that is more new noise than
    the level holds."""
    if eta == 0 or t.sigma == 0:
        return t.alpha, t.sigma, 0.0
    ratio = (t.sigma / t.alpha) * (s.alpha / s.sigma)
    fresh = eta * t.sigma * math.sqrt(max(1.0 - ratio**2, 0.0))
    left = t.sigma**2 - fresh**2
    if left < -1e-9 * t.sigma**2:
        raise InputError(
            f"The step would add new noise of {fresh:.4g} to a level that holds {t.sigma:.4g}: choose eta in [0, 1]."
        )
    return t.alpha, math.sqrt(max(left, 0.0)), fresh


def posterior(s: Level, t: Level, beta: float) -> tuple[float, float, float]:
    """Weights of x and x̂0 in DDPM's posterior mean, and its variance (Ho et al., arXiv:2006.11239, equation 7).

    β = 1 − ᾱ_s/ᾱ_t is given: it is rounded to float32 where the model was trained with float32.
    """
    left = (t.sigma / s.sigma) ** 2
    return math.sqrt(1.0 - beta) * left, t.alpha * beta / s.sigma**2, left * beta
