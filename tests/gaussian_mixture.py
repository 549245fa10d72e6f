"""A distribution whose denoiser, and whose probability flow, are known exactly: a mixture of Gaussians on a line.

Every element of a tensor is a sample of its own. At noise level (α, σ) the mixture is one again, with means α·μ and
variance α²s² + σ²; the denoiser is its posterior mean. On a line the probability flow carries quantiles to quantiles
(it never changes their order), so its solution from one level to another needs no integration.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

Level = tuple[float, float]
CLEAN: Level = (1.0, 0.0)


@dataclass(frozen=True)
class Mixture:
    """Σ w·N(μ, s²); all arguments are those of the clean distribution, all tensors float64."""

    weights: tuple[float, ...] = (0.3, 0.45, 0.25)
    means: tuple[float, ...] = (-1.2, 0.4, 1.5)
    deviation: float = 0.4

    def _parts(self, level: Level) -> tuple[torch.Tensor, torch.Tensor, float]:
        alpha, sigma = level
        weights, means = (torch.tensor(v, dtype=torch.float64) for v in (self.weights, self.means))
        return weights, alpha * means, (alpha**2 * self.deviation**2 + sigma**2) ** 0.5

    def clean(self, x: torch.Tensor, level: Level) -> torch.Tensor:
        """E[x0 | x], the exact denoiser, in the dtype of ``x``."""
        weights, means, width = self._parts(level)
        parts = (-1, *(1,) * x.dim())  # they come first: sums over few neighbours in memory are slow
        apart = (x - means.to(x.dtype).view(parts)) / width
        share = torch.softmax(weights.log().to(x.dtype).view(parts) - apart**2 / 2, dim=0)
        drawn = torch.tensor(self.means, dtype=x.dtype).view(parts)
        return (share * (drawn + level[0] * self.deviation**2 / width * apart)).sum(0)

    def score(self, x: torch.Tensor, level: Level) -> torch.Tensor:
        """∇ log p(x) at the level."""
        return (level[0] * self.clean(x.double(), level) - x.double()).div(level[1] ** 2).to(x.dtype)

    def cdf(self, x: torch.Tensor, level: Level) -> torch.Tensor:
        """P(X ≤ x)."""
        weights, means, width = self._parts(level)
        return (weights * torch.special.ndtr((x.double()[..., None] - means) / width)).sum(-1)

    def quantile(self, p: torch.Tensor, level: Level) -> torch.Tensor:
        """x with P(X ≤ x) = p, to the last bits: by bisection, then by Newton's steps inside of what that leaves."""
        weights, means, width = self._parts(level)
        low, high = float(means.min()) - 9 * width, float(means.max()) + 9 * width
        low, high = torch.full_like(p, low), torch.full_like(p, high)
        for _ in range(14):
            middle = (low + high) / 2
            below = self.cdf(middle, level) < p
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        x = (low + high) / 2
        for _ in range(5):
            apart = (x[..., None] - means) / width
            density = (weights * torch.exp(-(apart**2) / 2)).sum(-1) / (width * math.sqrt(2 * math.pi))
            step = (p - self.cdf(x, level)) / density.clamp(min=1e-300)
            x = torch.minimum(torch.maximum(x + step, low), high)
        return x

    def transport(self, x: torch.Tensor, start: Level, end: Level) -> torch.Tensor:
        """The probability flow's solution from ``start`` to ``end``; with ``CLEAN`` as end the consistency function."""
        return self.quantile(self.cdf(x, start), end).to(x.dtype)


def wasserstein(samples: torch.Tensor, mixture: Mixture, level: Level = CLEAN) -> float:
    """The mean distance between sorted samples and the mixture's quantiles: the Wasserstein-1 distance."""
    found = samples.double().flatten().sort().values
    p = (torch.arange(len(found), dtype=torch.float64) + 0.5) / len(found)
    return float((found - mixture.quantile(p, level)).abs().mean())
